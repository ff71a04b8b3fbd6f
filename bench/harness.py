"""What the programs in bench/ share: how rounds are run and shown, and where their results lie."""

from __future__ import annotations

import compileall
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zbroker
from zbroker.load import rounds as in_turns
from zbroker.load.results import Figure, Plot, Table, results, save_results
from zbroker.load.results import figure as row
from zbroker.load.results import this_machine as machine
from zbroker.load.rounds import Contender, Rounds, best, least, median, spread, spread_of
from zbroker.load.usage import Usage

__all__ = [
    "RESULTS",
    "Contender",
    "Row",
    "best",
    "compile_package",
    "cpu_ns",
    "least",
    "machine",
    "median",
    "print_table",
    "row",
    "run_rounds",
    "save",
    "spread",
    "spread_of",
]

RESULTS = Path(__file__).resolve().parent / "results"
Row = Figure


def run_rounds(contenders: Mapping[str, Contender], rounds: int) -> dict[str, Rounds]:
    """Run every contender once a round, in turns, and say on stderr how each went. Before several rounds there is one
    more that does not count, as a warm-up."""
    return in_turns.run_rounds(contenders, rounds, warm_up_rounds=int(rounds > 1), watch=_say)


def _say(name: str, number: int, of: int, figures: Mapping[str, float]) -> None:
    shown = "  ".join(f"{key} {value:,.3g}" for key, value in figures.items())
    when = f"round {number}/{of}" if number else "warm-up  "
    print(f"{when}  {name:<28} {shown}", file=sys.stderr, flush=True)


def compile_package() -> None:
    """Leave zbroker's bytecode beside its modules, as an installation by pip does, so that no start compiles them."""
    package = Path(zbroker.__file__).parent
    linked = [one for one in package.iterdir() if one.is_symlink()]  # compileall does not go there
    for folder in (package, *linked):
        compileall.compile_dir(folder, quiet=2)


def cpu_ns(pid: int) -> int:
    """Nanoseconds that all threads of a process have run on a CPU."""
    return Usage.of(pid).cpu_ns


def command_of(module: str) -> str:
    """The command line that runs this module as it runs now, with its options."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def save(
    name: str,
    command: str,
    rows: Sequence[Row],
    *,
    about: str,
    seed: int | None = None,
    directories: Mapping[str, Path] | None = None,
    tables: Sequence[Table] = (),
    plots: Sequence[Plot] = (),
    path: Path | None = None,
) -> Path:
    """Write results/NAME.json, or the file at `path`, as `zbroker.load.results` describes it; give its path."""
    path = path or RESULTS / f"{name}.json"
    found = results(command, rows, about=about, seed=seed, directories=directories, tables=tables, plots=plots)
    save_results(found, path)
    return path


def print_table(rows: Sequence[Row]) -> None:
    """Print figures as a table with right-aligned numbers."""
    if not rows:
        return
    columns = ("what", "value", "unit", "median", "low", "high", "beside", "ratio", "target", "met")
    cells = [[getattr(one, column) for column in columns] for one in rows]
    text = [[_cell(cell) for cell in line] for line in cells]
    widths = [max(len(column), *(len(line[index]) for line in text)) for index, column in enumerate(columns)]
    print("  ".join(column.ljust(width) for column, width in zip(columns, widths, strict=True)))
    for line, shown in zip(cells, text, strict=True):
        print(
            "  ".join(
                cell.rjust(width) if isinstance(value, int | float) else cell.ljust(width)
                for value, cell, width in zip(line, shown, widths, strict=True)
            )
        )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
