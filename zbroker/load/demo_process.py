"""One producer or one consumer of the demo, as a process of its own.

    python -m zbroker.load.demo_process TASK_AS_JSON PID

Writes one JSON object a line to stdout: `{"records": N, "bytes": N}` as it goes, and at the end an object with `done`
and the findings. A consumer reads until the line `finish` comes on stdin and it has reached the end of its partitions.
"""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.ids import TopicPartition
from zbroker.load.child import own_task
from zbroker.load.histogram import Histogram
from zbroker.load.inputs import lines_of, process_samples
from zbroker.load.order_check import OrderCheck

PROBE_EVERY = 256  # after so many lines a record with the time it was sent
STAMP_HEADER = "sent_ns"
PROGRESS_INTERVAL_S = 0.1


class Task(msgspec.Struct):
    """What one process of the demo has to do."""

    role: Literal["producer", "consumer"]
    bootstrap_servers: str
    topic: str
    root: str = "/"
    files: list[str] = []
    sample_rounds: int = 0
    partitions: list[int] = []


class Progress(msgspec.Struct):
    """What a process reports while it runs."""

    records: int
    bytes: int
    done: bool = False


class Findings(msgspec.Struct):
    """What a process reports at its end."""

    records: int
    bytes: int
    seconds: float
    cpu_seconds: float
    resident_bytes: int
    chains: dict[str, tuple[int, int]]
    latencies: dict[int, int]
    done: bool = True


class _Reporter:
    """Writes progress at most ten times a second."""

    def __init__(self) -> None:
        self.records = 0
        self.bytes = 0
        self._next_s = 0.0

    def tick(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + PROGRESS_INTERVAL_S
            _write(Progress(self.records, self.bytes))


def _write(message: msgspec.Struct) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def produce(task: Task) -> Findings:
    """Send every line of the task's files, and rounds of process samples; return what was sent."""
    check = OrderCheck()
    reporter = _Reporter()
    started_s = time.monotonic()
    with Producer(bootstrap_servers=task.bootstrap_servers, linger_ms=2) as producer:
        emit = producer.sender(task.topic)

        def probe(key: bytes) -> None:
            """A record of a key of its own that carries the time at which it was sent."""
            stamp = time.monotonic_ns().to_bytes(8, "little")
            producer.send(task.topic, stamp, b"probe " + key, headers=[(STAMP_HEADER, stamp)])
            check.add("probe " + os.fsdecode(key), [stamp])
            reporter.records += 1
            reporter.bytes += len(key) + 6 + len(stamp)

        for name in task.files:
            key_text = os.path.relpath(name, task.root)
            key = os.fsencode(key_text)
            lines = lines_of(Path(name))
            for index, line in enumerate(lines):
                emit(line, key)
                if not index % PROBE_EVERY:
                    probe(key)
            check.add(key_text, lines)
            reporter.records += len(lines)
            reporter.bytes += sum(map(len, lines)) + len(key) * len(lines)
            reporter.tick()
        for _ in range(task.sample_rounds):
            for key, value in process_samples():
                stamp = time.monotonic_ns().to_bytes(8, "little")
                producer.send(task.topic, value, b"pid " + key, headers=[(STAMP_HEADER, stamp)])
                check.add("pid " + key.decode(), [value])
                reporter.records += 1
                reporter.bytes += len(key) + 4 + len(value)
        producer.flush()
    seconds = time.monotonic() - started_s
    return Findings(reporter.records, reporter.bytes, seconds, *_used(), check.as_chains(), {})


def _used() -> tuple[float, int]:
    """(CPU seconds, resident bytes) of this process: nobody can ask once it has ended."""
    return time.process_time(), psutil.Process().memory_info().rss


def consume(task: Task) -> Findings:
    """Read the task's partitions until told to finish and their end is reached; return what was read."""
    check = OrderCheck()
    latencies = Histogram()
    reporter = _Reporter()
    partitions = [TopicPartition(task.topic, number) for number in task.partitions]
    ends: dict[TopicPartition, int] | None = None
    started_s = 0.0
    with Consumer(
        bootstrap_servers=task.bootstrap_servers, auto_offset_reset="earliest", max_poll_records=10_000
    ) as consumer:
        consumer.assign(partitions)
        while True:
            polled = consumer.poll(timeout_ms=100)
            now_ns = time.monotonic_ns()
            for records in polled.values():
                started_s = started_s or time.monotonic()
                reporter.records += len(records)
                for record in records:
                    assert record.key is not None
                    assert record.value is not None
                    check.add(record.key.decode(errors="surrogateescape"), (record.value,))
                    reporter.bytes += len(record.key) + len(record.value)
                    if record.headers:
                        latencies.add(now_ns - int.from_bytes(record.headers[0][1] or b"", "little"))
            reporter.tick()
            if ends is None and select.select([sys.stdin], [], [], 0)[0]:
                sys.stdin.readline()
                ends = consumer.end_offsets(partitions)
            if ends is not None and all(consumer.position(tp) >= end for tp, end in ends.items()):
                break
    seconds = time.monotonic() - started_s if started_s else 0.0
    return Findings(reporter.records, reporter.bytes, seconds, *_used(), check.as_chains(), latencies.as_counts())


def main() -> None:
    """Do the task that the command line holds."""
    task = own_task(Task)
    _write(produce(task) if task.role == "producer" else consume(task))


if __name__ == "__main__":
    main()
