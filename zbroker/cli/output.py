"""What commands print: tables for people, tab-separated columns for pipes, JSON for programs, progress on stderr.

Guarantees: numbers are exact in a pipe and in JSON, grouped and shortened only on a terminal; nothing is left out on a
narrow terminal: prose is folded, and a table that is still too wide goes on in the next line; records of a topic go to
stdout as they are, everything that is said about them to stderr. rich is imported only for a terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

import click

from zbroker.cli.options import Options

Cell = str | int | float | None
_PROGRESS_LINE_S: Final = 5.0
_SIZE_STEP: Final = 1024.0
_GAP: Final = 2  # blanks between two columns
_PROSE_CHARACTERS: Final = 30  # a column with longer cells is prose, and can be folded
_PROSE_CHARACTERS_MIN: Final = 12


def print_json(value: Any) -> None:
    """One JSON document; indented for a terminal. With --jsonl a list is a line for each of its items."""
    import msgspec

    context = click.get_current_context(silent=True)
    options = context.find_object(Options) if context is not None else None
    if options is not None and options.is_jsonl:
        for one in value if isinstance(value, list) else [value]:
            click.echo(msgspec.json.encode(one))
        return
    text = msgspec.json.encode(value)
    click.echo(msgspec.json.format(text, indent=2) if sys.stdout.isatty() else text)


def print_table(options: Options, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, title: str = "") -> None:
    """A table. `title` is for people only. A column whose name ends in SIZE or RSS holds bytes."""
    if options.is_json:
        keys = [column.lower().replace("-", "_").replace("/s", "_per_s").replace("%", "_percent") for column in columns]
        print_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    if not sys.stdout.isatty():
        click.echo("\t".join(columns))
        for row in rows:
            click.echo("\t".join("-" if cell is None else str(cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table

    cells = [[_for_people(column, cell) for column, cell in zip(columns, row, strict=True)] for row in rows]
    console = Console(color_system=_colors(options), highlight=False)
    widths = [max(map(len, (column, *(row[number] for row in cells)))) for number, column in enumerate(columns)]
    prose = {number for number, width in enumerate(widths) if width > _PROSE_CHARACTERS}
    total = sum(widths) + _GAP * (len(columns) - 1)
    for_prose = console.width - total + sum(widths[number] for number in prose)
    is_folded = total > console.width and bool(prose) and for_prose >= _PROSE_CHARACTERS_MIN * len(prose)
    if total > console.width and not is_folded:
        console = Console(color_system=_colors(options), highlight=False, width=total)
    if title:
        click.echo(title)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for number, column in enumerate(columns):
        is_number = all(not isinstance(row[number], str) for row in rows)
        fold = is_folded and number in prose
        table.add_column(
            column, justify="right" if is_number else "left", no_wrap=not fold, overflow="fold",
            min_width=_PROSE_CHARACTERS_MIN if fold else widths[number],
        )  # fmt: skip
    for row in cells:
        table.add_row(*row)
    console.print(table)


def _colors(options: Options) -> Literal["auto"] | None:
    return None if options.no_color else "auto"


def _for_people(column: str, cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if column.endswith(("SIZE", "RSS")):
        return size_text(cell)
    if column in ("PARTITION", "PID", "ID", "EPOCH") or isinstance(cell, float):
        return f"{cell:g}" if isinstance(cell, int) else f"{cell:,.1f}"
    return f"{cell:,}"


def size_text(size_bytes: float) -> str:
    """Bytes with a binary unit: 812.0 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < _SIZE_STEP:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= _SIZE_STEP
    return f"{size_bytes:.1f} TiB"


def duration_text(seconds: float) -> str:
    """Seconds for people: 12 s, 5 m 3 s, 2 h 14 m, 3 d 4 h."""
    whole = int(seconds)
    for size, big, small_size, small in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size} {big} {whole % size // small_size} {small}"
    return f"{whole} s"


@contextmanager
def progress(
    options: Options, what: str, total: int | None, *, unit: str = "records"
) -> Iterator[Callable[[int], None]]:
    """Give a function to call with each step's amount: a bar on a terminal, else a line every five seconds."""
    if options.verbosity < 0 or options.is_json:
        yield lambda amount: None
    elif options.shows_progress:
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True, color_system=_colors(options)), transient=True) as bars:
            task = bars.add_task(what, total=total)
            yield lambda amount: bars.advance(task, amount)
    else:
        yield _Lines(what, total, unit).advance


class _Lines:
    """Progress where nobody watches: now and then a line, so that a log shows that it goes on."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._next_s = time.monotonic() + _PROGRESS_LINE_S

    def advance(self, amount: int) -> None:
        """Count, and print when it is time."""
        self._done += amount
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _PROGRESS_LINE_S
            of = f" of {self._total:,}" if self._total else ""
            click.echo(f"{self._what}: {self._done:,}{of} {self._unit}", err=True)
