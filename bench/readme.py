"""Write the figures of bench/results/main_path.json into the README: `python -m bench.readme`.

The table stands between the two marks; everything else is left as it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.harness import RESULTS

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN = "<!-- figures: python -m bench && python -m bench.readme -->"
END = "<!-- end of figures -->"


def figures(saved: dict[str, Any]) -> str:
    """The sentence about the machine, and the table."""
    machine = saved["machine"]
    lines = [
        f"`{saved['command']}` on {machine['cores']} cores ({machine['cpu']}), Python {machine['python']}, commit"
        f" {machine['commit']}, {machine['time'][:10]}; 100-byte records, one worker. The machine had other work to do"
        f" (load average {machine['load_average_1min']}); targets that are missed stand as missed.",
        "",
        "| what | measured | beside | ratio | target | |",
        "|---|--:|---|--:|---|---|",
    ]
    for one in saved["rows"]:
        cells = (one["what"], f"{one['value']:g} {one['unit']}", one["beside"], one["ratio"], one["target"], one["met"])
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def written(readme: str, saved: dict[str, Any]) -> str:
    """The README with the table of these results."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert after, f"README.md has no {BEGIN!r} ... {END!r}"
    return f"{before}{BEGIN}\n{figures(saved)}\n{END}{after}"


def results() -> dict[str, Any]:
    """What the last whole run has saved."""
    saved: dict[str, Any] = json.loads((RESULTS / "main_path.json").read_text())
    return saved


def main() -> None:
    """Rewrite README.md in place."""
    README.write_text(written(README.read_text(), results()))


if __name__ == "__main__":
    main()
