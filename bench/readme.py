"""Write the figures of bench/results/ into the README: `python -m bench.readme`.

A table stands between `<!-- figures of NAME -->` and `<!-- end of figures -->`; it shows results/NAME.json. Everything
else is left as it is.
"""

from __future__ import annotations

import re
from pathlib import Path

from bench.harness import RESULTS
from zbroker.load.results import Figure, Results, load_results

README = Path(__file__).resolve().parents[1] / "README.md"
_BLOCK = re.compile(r"(<!-- figures of (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def figures(saved: Results) -> str:
    """The sentence about the machine, and the table."""
    machine = saved.machine
    lines = [
        f"`{saved.command}` on {machine.cores} cores ({machine.cpu}), Python {machine.python}, commit {machine.commit},"
        f" {machine.time[:10]}; {saved.about}. The machine had other work to do (load average"
        f" {machine.load_average_1min}); targets that are missed stand as missed.",
        "",
        "| what | measured | rounds: median (lowest to highest) | beside | ratio | target | |",
        "|---|--:|--:|---|--:|---|---|",
    ]
    for one in saved.rows:
        cells = (one.what, f"{one.value:g} {one.unit}", _rounds(one), one.beside, one.ratio, one.target, one.met)
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _rounds(one: Figure) -> str:
    if one.median is None or one.rounds == 1:
        return ""
    return f"{one.median:g} ({one.low:g} to {one.high:g})"


def written(readme: str) -> str:
    """The README with the tables of the results as they are now."""
    return _BLOCK.sub(
        lambda found: f"{found[1]}{figures(load_results(RESULTS / f'{found[2]}.json'))}\n{found[3]}", readme
    )


def main() -> None:
    """Rewrite README.md in place."""
    README.write_text(written(README.read_text()))


if __name__ == "__main__":
    main()
