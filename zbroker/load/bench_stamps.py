"""At a steady rate: records that carry the moment at which they were due, and readers that look how old they are.

The loop is open. Record n is due at start + n / rate, and that moment is its stamp; a producer that wakes up late sends
at once what is overdue, and its lateness is kept apart, so that a reader of the figures sees whose delay it was. The
host has one monotonic clock for all processes: one-way times need no other.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from zbroker.client.admin import AdminClient
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.ids import TopicPartition
from zbroker.load.bench_task import STAMP_BYTES, Outcome, Reporter, Task, wait_for_go
from zbroker.load.histogram import Histogram
from zbroker.load.usage import Usage
from zbroker.shm.board_reader import BoardReader, PartitionCellReader

START_NS = 20_000_000  # from `go` to the first record
SPIN_NS = 60_000  # a sleep that is shorter than the kernel's slack is none


def produce(task: Task) -> Outcome:
    """Send each record when it is due; return when all are acknowledged."""
    latency, lateness, reporter = Histogram(), Histogram(), Reporter()
    padding = random.Random(task.seed).randbytes(max(0, task.size_bytes - STAMP_BYTES))
    interval_ns = 1e9 / task.rate
    guard = threading.Lock()
    settings: dict[str, object] = {"linger_ms": 0, **task.settings}
    with Producer(settings, bootstrap_servers=task.bootstrap_servers) as producer:
        producer.partitions_for(task.topic)
        for _ in range(task.warm_up_records):
            producer.send(task.topic, bytes(STAMP_BYTES) + padding, partition=task.partitions[0]).result(30)
        before = wait_for_go()
        began_ns = time.monotonic_ns() + START_NS
        for number in range(task.records):
            due_ns = began_ns + int(number * interval_ns)
            sent_ns = _wait_until(due_ns)
            lateness.add(sent_ns - due_ns)
            partition = task.partitions[number % len(task.partitions)]
            future = producer.send(task.topic, due_ns.to_bytes(STAMP_BYTES, "little") + padding, partition=partition)
            if task.mode == "wait":
                future.result(task.stop_after_s)
                latency.add(time.monotonic_ns() - due_ns)
            else:
                future.add_done_callback(_acknowledged(due_ns, latency, guard))
            reporter.advance(1)
        producer.flush()
        ended_ns = time.monotonic_ns()
        usage = Usage.of().since(before)
    return Outcome(
        name=task.name,
        records=latency.count,
        bytes=task.records * task.size_bytes,
        began_ns=began_ns,
        ended_ns=ended_ns,
        usage=usage,
        latency=latency.as_counts(),
        lateness=lateness.as_counts(),
    )


def _wait_until(due_ns: int) -> int:
    """Sleep, and look at the clock for the last bit; gives the time."""
    while True:
        now_ns = time.monotonic_ns()
        if now_ns >= due_ns:
            return now_ns
        if due_ns - now_ns > SPIN_NS:
            time.sleep((due_ns - now_ns - SPIN_NS) / 1e9)


def _acknowledged(due_ns: int, latency: Histogram, guard: threading.Lock) -> Callable[[object], None]:
    def note(_: object) -> None:
        now_ns = time.monotonic_ns()
        with guard:  # the caller's thread and the producer's own both deliver
            latency.add(now_ns - due_ns)

    return note


def consume(task: Task) -> Outcome:
    """Read stamped records as they come; return when all of them were there."""
    delivered, appended, reporter = Histogram(), Histogram(), Reporter()
    got = size_bytes = 0
    with Consumer({"auto_offset_reset": "latest", **task.settings}, bootstrap_servers=task.bootstrap_servers) as reader:
        partitions = [TopicPartition(task.topic, number) for number in task.partitions]
        reader.assign(partitions)
        for one in partitions:
            reader.position(one)
        log = _Appends(task)
        before = wait_for_go()
        began_ns = ended_ns = time.monotonic_ns()
        while got < task.records:
            records = reader.consume(1_000, timeout_ms=task.stop_after_s * 1000)
            ended_ns = time.monotonic_ns()
            if not records:
                break
            for record in records:
                assert record.value is not None
                due_ns = int.from_bytes(record.value[:STAMP_BYTES], "little")
                if due_ns:  # 0: of the producer's warm-up
                    delivered.add(ended_ns - due_ns)
                    got += 1
                    size_bytes += len(record.value)
            at_ns = log.when_appended(records[-1].offset) if len(records) == 1 else None
            if at_ns is not None and due_ns:
                appended.add(at_ns - due_ns)
            reporter.advance(len(records))
        usage = Usage.of().since(before)
        log.close()
    return Outcome(
        name=task.name,
        records=got,
        bytes=size_bytes,
        began_ns=began_ns,
        ended_ns=ended_ns,
        usage=usage,
        latency=delivered.as_counts(),
        appended=appended.as_counts(),
    )


class _Appends:
    """When the last record of the first partition was appended: what its worker publishes on its board."""

    def __init__(self, task: Task) -> None:
        self._board: BoardReader | None = None
        self._cell: PartitionCellReader | None = None
        if not task.boards_dir or len(task.partitions) != 1:
            return
        with AdminClient(bootstrap_servers=task.bootstrap_servers) as admin:
            topic = admin.describe_topics([task.topic])[task.topic]
        leader = topic.partitions[task.partitions[0]].leader_name
        if leader is not None:
            self._board = BoardReader.find(Path(task.boards_dir), leader)
        if self._board is not None:
            self._cell = self._board.partition_cell(topic.topic_id, task.partitions[0])

    def when_appended(self, offset: int) -> int | None:
        """Ns on the monotonic clock, while that record is still the last one; else None."""
        view = self._cell.view() if self._cell is not None else None
        return view.last_append_ns if view is not None and view.log_end == offset + 1 else None

    def close(self) -> None:
        """Unmap the board."""
        self._cell = None
        if self._board is not None:
            self._board.close()
