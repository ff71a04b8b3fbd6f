"""How a benchmark runs: rounds of all contenders in turn, best and median of them, and where it was run.

One run compares: the contenders take turns (A B C A B C), so that a slow minute of a shared machine meets all of them.
Rates and CPU times are the best round's, because noise only ever takes away; latencies are the median round's.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"

Contender = Callable[[], dict[str, float]]
Row = dict[str, Any]


def row(what: str, value: float, unit: str, beside: str = "", ratio: float | None = None, target: str = "") -> Row:
    """One line of the table. `target` is for the ratio where there is one, else for the value: ">= 0.35", "< 2"."""
    shown = round(ratio, 3) if ratio is not None else ""
    return {
        "what": what,
        "value": round(value, 3),
        "unit": unit,
        "beside": beside,
        "ratio": shown,
        "target": target,
        "met": _verdict(value if ratio is None else ratio, target),
    }


def _verdict(figure: float, target: str) -> str:
    """Whether a figure keeps to its target: "met", "missed", or nothing where there is none."""
    if not target:
        return ""
    sign, bound = target.split()[:2]
    limit = float(bound)
    is_met = {"<": figure < limit, "<=": figure <= limit, ">": figure > limit, ">=": figure >= limit}[sign]
    return "met" if is_met else "missed"


def run_rounds(contenders: Mapping[str, Contender], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Run every contender once a round; give each one's figures, round by round."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, run in contenders.items():
            gc.collect()
            figures = run()
            found[name].append(figures)
            shown = "  ".join(f"{key} {value:,.3g}" for key, value in figures.items())
            print(f"round {number + 1}/{rounds}  {name:<28} {shown}", file=sys.stderr, flush=True)
    return found


def best(rounds: list[dict[str, float]], key: str) -> float:
    """The largest figure of a rate."""
    return max(figures[key] for figures in rounds)


def least(rounds: list[dict[str, float]], key: str) -> float:
    """The smallest figure of a CPU time."""
    return min(figures[key] for figures in rounds)


def median(rounds: list[dict[str, float]], key: str) -> float:
    """The median figure of a latency."""
    return statistics.median(figures[key] for figures in rounds)


def cpu_ns(pid: int) -> int:
    """Nanoseconds that all threads of a process have run on a CPU, exact where `psutil` counts in 10 ms."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": _commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load_average_1min": round(os.getloadavg()[0], 2),
    }


def _commit() -> str:
    changes = _git("status", "--porcelain", "-uno")
    return _git("rev-parse", "--short=12", "HEAD") + ("+changes" if changes else "")


def _git(*words: str) -> str:
    root = Path(__file__).resolve().parent
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout.strip()


def save(name: str, command: str, rows: list[Row], *, about: str) -> Path:
    """Write results/NAME.json: the command, the machine, what was done, and a row for each figure; give its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(
        json.dumps({"command": command, "machine": machine(), "about": about, "rows": rows}, indent=1) + "\n"
    )
    return path


def print_table(rows: list[Row]) -> None:
    """Print rows of one shape as a table with right-aligned numbers."""
    if not rows:
        return
    columns = list(rows[0])
    text = [[_cell(row[column]) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[index]) for line in text)) for index, column in enumerate(columns)]
    print("  ".join(column.ljust(width) for column, width in zip(columns, widths, strict=True)))
    for row, line in zip(rows, text, strict=True):
        cells = (
            cell.rjust(width) if isinstance(row[column], int | float) else cell.ljust(width)
            for column, cell, width in zip(columns, line, widths, strict=True)
        )
        print("  ".join(cells))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
