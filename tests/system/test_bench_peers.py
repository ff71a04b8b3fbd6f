"""`zbroker bench compare` runs with the peers that are here, and says of the others how to get them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from zbroker.load.results import Results

ROOT = Path(__file__).resolve().parents[2]
MEASURED = (
    "produce 100 B, M/s",
    "produce 1 KiB, MB/s",
    "consume 100 B, M/s",
    "acknowledge one, p50, us",
    "end to end, p99, us",
    "start to the first acknowledged record, s",
    "memory of all processes, idle, MiB",
    "CPU of a record, all processes, batch path, us",
)


@pytest.mark.slow
def test_the_comparison_runs_and_a_missing_peer_is_reported_with_its_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zbroker", "bench", "compare", "--small", "--json", "--peers", "kafka,redis,nats"]
    no_kafka = {**os.environ, "KAFKA_LIBS": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=no_kafka, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(done.stdout, type=Results)
    tables = {table.title: table for table in found.tables}
    side_by_side = tables["All systems: median (lowest to highest round)"]
    here = set(side_by_side.columns[1:])
    missing = {str(name): (str(what), str(command)) for name, what, command in tables["Missing systems"].rows}
    assert "zbroker" in here
    assert here | set(missing) == {"zbroker", "kafka", "redis", "nats"}
    assert "kafka" in missing, "its jars cannot be in an empty directory"
    for name, (what, how) in missing.items():
        assert what, name
        assert "install" in how, name
        assert f"missing: {name}: {what}; install it with: {how}" in done.stderr
    cells = {str(line[0]): line[1:] for line in side_by_side.rows}
    for what in MEASURED:
        assert all(cells[what]), f"{what}: every system that is here has figures"
    durable = {line[0] for line in tables["Systems and settings"].rows if line[1] == "durability" and line[2]}
    assert durable == here, "what an acknowledgement means is written down"
