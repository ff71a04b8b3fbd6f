"""The measurements of groups run from begin to end, and what they count is right. Speed is not judged here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from zbroker.load.results import Results

ROOT = Path(__file__).resolve().parents[2]
ROWS = (
    "Consumer(group_id=...) to the first record, p50",
    "2 kills of a member",
    "rolling restart of 2 members: records read twice",
    "rolling restart of 2 static members: revocations",
    "commit of a record, the call",
    "consume as a group, a commit for each record",
    "2 kills of the coordinator amid a rebalance",
    "5 groups of 10 members and 100 partitions",
    "sticky, 100 small cases: loads differ by, at most",
)


def run(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_table_can_be_made_and_what_is_to_be_nothing_is_nothing() -> None:
    shown = run("bench.groups", "--small")
    for row in ROWS:
        assert f"\n{row}" in shown, row
    counted = [line.split() for line in shown.splitlines() if "<= 0" in line]
    assert len(counted) == 9
    assert [line for line in counted if line[-1] != "met"] == []


def test_rebalances_are_measured_from_the_command_line() -> None:
    words = ("zbroker", "bench", "rebalance", "--kills", "2", "--members", "2", "--partitions", "2", "--joins", "4")
    found = msgspec.json.decode(run(*words, "--coordinator-kills", "1", "--json"), type=Results)
    assert {"2 kills of a member: its partitions read by another, p50", "the same, p99"} < {
        row.what for row in found.rows
    }
    assert [row.value for row in found.rows if row.target == "<= 0"] == [0] * 8


def test_rebalances_take_no_broker_but_their_own() -> None:
    command = [sys.executable, "-m", "zbroker", "bench", "rebalance", "-b", "ipc:///dev/shm/nobody/run"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=100, check=False).returncode == 2
