"""One producer or consumer of a chaos run, as a process of its own that may be killed at any moment.

    python -m zbroker.load.chaos_client TASK_AS_JSON PID

It writes what it does and is told, a line for each event, straight to a file: what was written before a SIGKILL is
there. A producer runs until the line `finish` comes on stdin, and then waits for what is under way; a consumer until it
has come and the end of each partition is reached. `zbroker.load.chaos_history` reads the file.
"""

from __future__ import annotations

import os
import random
import select
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from zbroker.client.batches import BatchFuture
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.errors import BrokerError, BufferFullError
from zbroker.ids import TopicPartition
from zbroker.load.child import own_task

SENT, ACKNOWLEDGED, REFUSED, POLLED, ASSIGNED, FINISHED = "s", "a", "r", "p", "g", "f"
POLL_MS = 100


class Task(msgspec.Struct):
    """What one client of a chaos run has to do. `partitions` are (topic, number)."""

    role: Literal["producer", "consumer"]
    process: int
    path: str
    partitions: list[tuple[str, int]]
    settings: dict[str, Any]
    seed: int = 0
    records_per_s: int = 250
    batch_records_max: int = 20
    value_bytes: int = 64


class EventLog:
    """Events, one JSON array a line, each written whole by one write(2)."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._encoder = msgspec.json.Encoder()
        self._lock = threading.Lock()

    def write(self, *event: object) -> None:
        """Note an event."""
        line = self._encoder.encode(event) + b"\n"
        with self._lock:
            os.write(self._fd, line)


def value_of(process: int, counter: int, size_bytes: int) -> bytes:
    """A value that names its sender and its place: b"3-17" and dots up to the size."""
    return (b"%d-%d " % (process, counter)).ljust(size_bytes, b".")


def name_of(value: bytes) -> str:
    """The part of a value that names it."""
    return value.partition(b" ")[0].decode()


def is_told_to_finish() -> bool:
    """Whether the line came. Ends the process when whoever would write it is gone: its broker is, too, and nobody reads
    what a client has seen."""
    if not select.select([sys.stdin], [], [], 0)[0]:
        return False
    if not sys.stdin.readline():
        os._exit(1)
    return True


def produce(task: Task, log: EventLog) -> None:
    """Send batches to random partitions at an even rate, without waiting for them."""
    rng = random.Random(task.seed)
    counters = dict.fromkeys(map(tuple, task.partitions), 0)
    number = 0
    with Producer(task.settings) as producer:
        next_ns = time.monotonic_ns()
        while not is_told_to_finish():
            place = rng.choice(task.partitions)
            topic, partition = place
            count = rng.randint(1, task.batch_records_max)
            first = counters[topic, partition]
            values = [value_of(task.process, first + index, task.value_bytes) for index in range(count)]
            counters[topic, partition] = first + count
            number += 1
            log.write(SENT, number, time.monotonic_ns(), f"{topic}:{partition}", first, count)
            try:
                future = producer.send_many(topic, values, partition=partition)
            except (BrokerError, BufferFullError) as error:
                log.write(REFUSED, number, time.monotonic_ns(), type(error).__name__)
            else:
                future.add_done_callback(partial(_note_outcome, log, number))
            next_ns += count * 1_000_000_000 // task.records_per_s
            pause_s = (next_ns - time.monotonic_ns()) / 1e9
            if pause_s > 0:
                time.sleep(pause_s)
            elif pause_s < -1:
                next_ns = time.monotonic_ns()
        producer.flush()
    log.write(FINISHED, time.monotonic_ns())


def _note_outcome(log: EventLog, number: int, future: BatchFuture) -> None:
    error = future.exception(0)
    if error is None:
        ranges = future.result(0)
        log.write(
            ACKNOWLEDGED, number, time.monotonic_ns(), [(found.base_offset, found.record_count) for found in ranges]
        )
    else:
        log.write(REFUSED, number, time.monotonic_ns(), type(error).__name__)


def consume(task: Task, log: EventLog) -> None:
    """Read every partition from its start, until told to finish and the end of each is reached."""
    partitions = [TopicPartition(*place) for place in task.partitions]
    with Consumer(task.settings) as consumer:
        consumer.assign(partitions)
        log.write(ASSIGNED, time.monotonic_ns(), [str(tp) for tp in partitions])
        ends: dict[TopicPartition, int] | None = None
        while ends is None or any(consumer.position(tp) < end for tp, end in ends.items()):
            invoke_ns = time.monotonic_ns()
            polled = consumer.poll(timeout_ms=POLL_MS)
            if polled:
                reads = {
                    str(tp): [(r.offset, name_of(r.value or b""), r.leader_epoch) for r in records]
                    for tp, records in polled.items()
                }
                marks = {str(tp): mark for tp in polled if (mark := consumer.highwater(tp)) is not None}
                log.write(POLLED, invoke_ns, time.monotonic_ns(), reads, marks)
            if ends is None and is_told_to_finish():
                ends = consumer.end_offsets(partitions)
    log.write(FINISHED, time.monotonic_ns())


def main() -> None:
    """Do the task that the command line holds."""
    task = own_task(Task)
    log = EventLog(Path(task.path))
    if task.role == "producer":
        produce(task, log)
    else:
        consume(task, log)


if __name__ == "__main__":
    main()
