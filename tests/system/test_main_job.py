"""The main job and the benchmarks, in small: they run, and what they report is right. Speed is not judged here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from tests.bench_rows import ROWS

ROOT = Path(__file__).resolve().parents[2]
REAL_INPUT = ROOT.parent / "shared" / "data" / "loghub"


def run(*words: str, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)


def input_files() -> list[str]:
    found = sorted(str(path) for path in REAL_INPUT.glob("*.log"))
    return found or sorted(str(path) for path in Path(msgspec.__file__).parent.glob("*.py"))


def test_every_line_of_the_main_job_arrives_once_and_in_order() -> None:
    """S-183: files as topics of lines, and live samples of the host's processes."""
    done = run("zbroker", "demo", "--json", *input_files())
    assert done.returncode == 0, done.stderr
    report = msgspec.json.decode(done.stdout)
    lines = sum(len(Path(name).read_bytes().splitlines()) for name in input_files())
    assert report["is_right"] is True
    assert report["differences"] == []
    assert report["records"] > lines
    assert report["latency_samples"] > 0
    assert {cost["name"] for cost in report["processes"]} >= {"router", "coordinator", "worker-0", "consumer-1"}
    assert all(cost["resident_bytes"] > 1 << 20 for cost in report["processes"]), report["processes"]


def test_the_report_is_also_for_people() -> None:
    done = run("zbroker", "demo", input_files()[0])
    assert done.returncode == 0, done.stderr
    assert "checked: every record arrived once" in done.stdout
    assert "p99.9" in done.stdout


def test_the_table_of_figures_can_be_made() -> None:
    done = run("bench", "--small", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    for name in ROWS:
        assert f"\n{name}" in f"\n{done.stdout}", name
