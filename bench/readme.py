"""Write the figures of bench/results/ into the README: `python -m bench.readme`.

A table stands between `<!-- figures of NAME -->` and `<!-- end of figures -->`; it shows results/NAME.json. Everything
else is left as it is.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bench.harness import RESULTS

README = Path(__file__).resolve().parents[1] / "README.md"
_BLOCK = re.compile(r"(<!-- figures of (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def figures(saved: dict[str, Any]) -> str:
    """The sentence about the machine, and the table."""
    machine = saved["machine"]
    lines = [
        f"`{saved['command']}` on {machine['cores']} cores ({machine['cpu']}), Python {machine['python']}, commit"
        f" {machine['commit']}, {machine['time'][:10]}; {saved['about']}. The machine had other work to do"
        f" (load average {machine['load_average_1min']}); targets that are missed stand as missed.",
        "",
        "| what | measured | beside | ratio | target | |",
        "|---|--:|---|--:|---|---|",
    ]
    for one in saved["rows"]:
        cells = (one["what"], f"{one['value']:g} {one['unit']}", one["beside"], one["ratio"], one["target"], one["met"])
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def written(readme: str) -> str:
    """The README with the tables of the results as they are now."""
    return _BLOCK.sub(lambda found: f"{found[1]}{figures(results(found[2]))}\n{found[3]}", readme)


def results(name: str) -> dict[str, Any]:
    """What the last whole run has saved."""
    saved: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return saved


def main() -> None:
    """Rewrite README.md in place."""
    README.write_text(written(README.read_text()))


if __name__ == "__main__":
    main()
