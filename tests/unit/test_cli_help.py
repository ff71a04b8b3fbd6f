"""What the helps say: examples that are right, lines that are whole; and what a shell completes."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from zbroker.cli.examples import EXAMPLES
from zbroker.cli.main import COMMANDS, cli


def find(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that a command line calls, and what is left of it."""
    command: click.Command = cli
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, words
        command, words = found, words[1:]
    return command, words


@pytest.mark.parametrize("path", EXAMPLES)
def test_the_examples_of_a_commands_help_are_right(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = CliRunner().invoke(cli, [*path.split(), "--help"]).output
    monkeypatch.chdir(tmp_path)
    for name in ("00000000000000000000.log", "billing.csv", "produce.json"):
        (tmp_path / name).touch()
    for line in EXAMPLES[path]:
        assert f"  {line}\n" in said
        assert f"zbroker {path}" in line
        for text in line.replace("~/.local/share/zbroker", ".").split(" | "):
            program, *words = shlex.split(text.partition(" > ")[0])
            if program == "zbroker":
                command, rest = find(words)
                command.make_context(str(command.name), rest).close()


@pytest.mark.parametrize("name", COMMANDS)
def test_no_line_of_a_help_is_cut_off(name: str) -> None:
    found = CliRunner().invoke(cli, [name, "--help"], terminal_width=80)
    assert found.exit_code == 0
    commands = found.output.partition("\nCommands:\n")[2]
    assert "..." not in commands


@pytest.mark.parametrize(
    ("command", "typed", "expected"),
    [
        ("explain", "client.producer.lin", ["client.producer.linger_ms"]),
        ("show", "workers.c", ["workers.count"]),
        ("show", "client.producer.lin", []),
    ],
)
def test_a_shell_completes_names_of_settings(command: str, typed: str, expected: list[str]) -> None:
    found, _ = find(["config", command])
    names = found.params[0].shell_complete(click.Context(found, info_name=command), typed)
    assert [name.value for name in names] == expected
