"""Write the results of bench/results/ into the documents, and their plots beside them: `python -m bench.readme`.

In README.md and docs/performance.md a table stands between `<!-- figures of NAME -->`, or `<!-- table N of NAME -->`,
and `<!-- end of figures -->`; it shows results/NAME.json. Everything else is left as it is. Each plot of a result is
drawn as results/NAME_PLOT.svg.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.harness import RESULTS
from zbroker.load.plot import svg
from zbroker.load.results import Cell, Figure, Results, load_results

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCUMENTS = (README, ROOT / "docs" / "performance.md")
_BLOCK = re.compile(r"(<!-- (?:figures|table (\d+)) of (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def where_measured(saved: Results) -> str:
    """The sentence about the machine."""
    machine = saved.machine
    return (
        f"`{saved.command}` on {machine.cores} cores ({machine.cpu}), Python {machine.python}, commit {machine.commit},"
        f" {machine.time[:10]}; {saved.about}. The machine had other work to do (load average"
        f" {machine.load_average_1min}); targets that are missed stand as missed."
    )


def figures(saved: Results) -> str:
    """The sentence about the machine, and the table of figures."""
    lines = [
        where_measured(saved),
        "",
        "| what | measured | rounds: median (lowest to highest) | beside | ratio | target | |",
        "|---|--:|--:|---|--:|---|---|",
    ]
    for one in saved.rows:
        cells = (one.what, f"{one.value:g} {one.unit}", _rounds(one), one.beside, one.ratio, one.target, one.met)
        lines.append(_line(cells))
    return "\n".join(lines)


def _rounds(one: Figure) -> str:
    if one.median is None or one.rounds == 1:
        return ""
    return f"{one.median:g} ({one.low:g} to {one.high:g})"


def table(saved: Results, number: int) -> str:
    """The sentence about the machine, and one of the run's other tables, counted from 1."""
    found = saved.tables[number - 1]
    kinds = [
        "--:" if all(isinstance(row[at], int | float) for row in found.rows) else "---"
        for at in range(len(found.columns))
    ]
    return "\n".join(
        [where_measured(saved), "", _line(found.columns), "|" + "|".join(kinds) + "|", *map(_line, found.rows)]
    )


def _line(cells: Sequence[Cell]) -> str:
    return "| " + " | ".join(_text(cell) for cell in cells) + " |"


def _text(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 10_000 else f"{cell:g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell or "").replace("|", "\\|")


def written(document: str) -> str:
    """A document with the tables of the results as they are now."""

    def block(found: re.Match[str]) -> str:
        saved = load_results(RESULTS / f"{found[3]}.json")
        shown = table(saved, int(found[2])) if found[2] else figures(saved)
        return f"{found[1]}{shown}\n{found[4]}"

    return _BLOCK.sub(block, document)


def drawn() -> Iterator[tuple[Path, str]]:
    """(file, SVG) of each plot of the results."""
    for path in sorted(RESULTS.glob("*.json")):
        for plot in load_results(path).plots:
            yield RESULTS / f"{path.stem}_{plot.name}.svg", svg(plot)


def main() -> None:
    """Rewrite the documents in place, and the plots."""
    for path, picture in drawn():
        path.write_text(picture)
    for document in DOCUMENTS:
        document.write_text(written(document.read_text()))


if __name__ == "__main__":
    main()
