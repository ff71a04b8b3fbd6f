"""Kafka's own performance tools: ProducerPerformance and ConsumerPerformance of its jars, with its Java client.

They count by their own clocks, without the start of their virtual machine; the consumer's figure leaves out the
rebalance too. Producer: acks=all, linger.ms 5, batch.size 1 MB, buffer.memory 64 MB. Consumer: the tool's defaults.
"""

from __future__ import annotations

import re
import subprocess

from bench.peers.kafka import java
from bench.peers.system import TIMEOUT_S

_HEAP = ("-Xmx512m",)  # as its kafka-run-class.sh sets it for tools
_PRODUCER = ("acks=all", "linger.ms=5", "batch.size=1000000", "buffer.memory=67108864")


def produce(address: str, topic: str, count: int, size_bytes: int) -> dict[str, float]:
    """Records and megabytes (10^6) a second of ProducerPerformance."""
    said = _run(
        "org.apache.kafka.tools.ProducerPerformance", "--topic", topic, "--num-records", str(count),
        "--record-size", str(size_bytes), "--throughput", "-1",
        "--producer-props", f"bootstrap.servers={address}", *_PRODUCER,
    )  # fmt: skip
    found = re.search(rf"^{count} records sent, ([\d.]+) records/sec", said, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"ProducerPerformance said: {said}")
    rate = float(found[1])
    return {"records_per_s": rate, "mb_per_s": rate * size_bytes / 1e6}


def consume(address: str, topic: str, count: int, size_bytes: int) -> dict[str, float]:
    """Records and megabytes (10^6) a second of ConsumerPerformance, the rebalance left out."""
    said = _run(
        "org.apache.kafka.tools.ConsumerPerformance", "--bootstrap-server", address, "--topic", topic,
        "--messages", str(count), "--timeout", "60000", "--hide-header",
    )  # fmt: skip
    cells = [line.split(", ") for line in said.splitlines() if line.count(", ") == 9]
    if not cells or int(cells[-1][4]) < count:
        raise RuntimeError(f"ConsumerPerformance said: {said}")
    rate = float(cells[-1][9])  # fetch.nMsg.sec
    return {"records_per_s": rate, "mb_per_s": rate * size_bytes / 1e6}


def _run(*words: str) -> str:
    return subprocess.run(
        java(*words, heap=_HEAP), check=True, capture_output=True, text=True, timeout=TIMEOUT_S
    ).stdout
