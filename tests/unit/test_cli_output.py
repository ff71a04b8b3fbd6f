"""Tables for people and for pipes, JSON, progress."""

from __future__ import annotations

import io
import json
import sys

import pytest

from zbroker.cli import output
from zbroker.cli.options import Options
from zbroker.cli.output import duration_text, print_table, progress, size_text

COLUMNS = ("TOPIC", "PARTITION", "END-OFFSET", "SIZE", "CPU%")
ROWS: list[list[output.Cell]] = [["orders", 0, 8_121_004, 851_443_712, 97.84], ["logs", 11, None, 12, 0.0]]


class Terminal(io.StringIO):
    """A stdout that somebody looks at."""

    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_tabs_exact_numbers_and_the_header(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(Options(), COLUMNS, ROWS, title="for people")
    assert capsys.readouterr().out == (
        "TOPIC\tPARTITION\tEND-OFFSET\tSIZE\tCPU%\norders\t0\t8121004\t851443712\t97.84\nlogs\t11\t-\t12\t0.0\n"
    )


def test_a_terminal_gets_columns_grouped_numbers_and_units(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    options = Options()
    options.no_color = True
    print_table(options, COLUMNS, ROWS, title="two topics")
    lines = [line.split() for line in terminal.getvalue().splitlines()]
    assert lines[0] == ["two", "topics"]
    assert lines[1] == list(COLUMNS)
    assert lines[2] == ["orders", "0", "8,121,004", "812.0", "MiB", "97.8"]
    assert lines[3] == ["logs", "11", "-", "12", "B", "0.0"]
    assert "\t" not in terminal.getvalue()


NARROW = 60
FINDINGS: list[list[output.Cell]] = [
    [
        "WARN",
        "open files",
        "soft limit 1024, hard limit 4096",
        "LimitNOFILE=65536 in the systemd unit, or nofile elsewhere",
    ],
    ["PASS", "clock", "tsc", ""],
]


def printed(monkeypatch: pytest.MonkeyPatch, columns: tuple[str, ...], rows: list[list[output.Cell]]) -> list[str]:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(NARROW))
    options = Options()
    options.no_color = True
    print_table(options, columns, rows)
    return terminal.getvalue().splitlines()


def test_a_narrow_terminal_folds_prose_and_leaves_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(monkeypatch, ("LEVEL", "RULE", "FOUND", "FIX"), FINDINGS)
    assert all(len(line.rstrip()) <= NARROW for line in lines)
    assert lines[0].split() == ["LEVEL", "RULE", "FOUND", "FIX"]
    words = " ".join(lines).split()
    assert {word for row in FINDINGS for cell in row for word in str(cell).split() if len(word) < 12} <= set(words)
    assert "\u2026" not in "".join(lines)


def test_a_table_that_is_too_wide_to_fold_goes_on_in_the_next_line(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = tuple(f"COLUMN-{number}" for number in range(9))
    lines = printed(monkeypatch, columns, [list(range(1_000, 1_009))])
    assert [line.split() for line in lines] == [list(columns), [f"{number:,}" for number in range(1_000, 1_009)]]
    assert len(lines[0]) > NARROW


def test_json_has_an_object_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    options = Options()
    options.is_json = True
    print_table(options, COLUMNS, ROWS)
    assert json.loads(capsys.readouterr().out)[1] == {
        "topic": "logs", "partition": 11, "end_offset": None, "size": 12, "cpu_percent": 0.0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB"), (1 << 50, "1024.0 TiB")],
)
def test_sizes_have_binary_units(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (303, "5 m 3 s"), (8_040, "2 h 14 m"), (273_700, "3 d 4 h")]
)
def test_durations_have_their_two_largest_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_progress_without_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_PROGRESS_LINE_S", -1.0)
    with progress(Options(), "Verifying", 2_000, unit="copies") as advance:
        advance(1_000)
        advance(500)
    assert capsys.readouterr().err == "Verifying: 1,000 of 2,000 copies\nVerifying: 1,500 of 2,000 copies\n"


@pytest.mark.parametrize("quiet", ["verbosity", "json"])
def test_progress_is_silent_where_it_was_not_asked_for(
    quiet: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_PROGRESS_LINE_S", -1.0)
    options = Options()
    options.verbosity = -1 if quiet == "verbosity" else 0
    options.is_json = quiet == "json"
    with progress(options, "Verifying", None) as advance:
        advance(1)
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress(Options(), "Verifying", 10) as advance:
        advance(10)
    assert "Verifying" in terminal.getvalue()
