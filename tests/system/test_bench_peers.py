"""`zbroker bench compare` runs with the peers that are here, and says of the others how to get them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEASURED = (
    "produce 100 B, send",
    "produce 100 B, send_many",
    "produce 1 KiB, send_many",
    "consume 100 B, records",
    "consume 100 B, views",
    "acknowledge one, p50",
    "end to end, p99",
    "start to the first acknowledged record",
    "memory of all processes, idle",
    "CPU of a record, all processes, batch path",
)


@pytest.mark.slow
def test_the_comparison_runs_and_a_missing_peer_is_reported_with_its_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zbroker", "bench", "compare", "--small", "--json", "--peers", "kafka,redis,nats"]
    no_kafka = {**os.environ, "KAFKA_LIBS": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=no_kafka, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told["missing"]) | set(told["systems"]) == {"zbroker", "kafka", "redis", "nats"}
    assert "kafka" in told["missing"], "its jars cannot be in an empty directory"
    for name, why in told["missing"].items():
        assert why["what"], name
        assert "install" in why["command"], name
    beside = {(row["what"], row["beside"].partition(" ")[0].strip(",")) for row in told["rows"]}
    for name in set(told["systems"]) - {"zbroker"}:
        assert {what for what, peer in beside if peer == name} >= set(MEASURED), name
    assert {what for what, _ in beside} >= set(MEASURED)
    for one in told["systems"].values():
        assert one["settings"]["durability"], "what an acknowledgement means is written down"
