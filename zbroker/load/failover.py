"""What copies give when a leader dies: `zbroker bench failover`, `python -m bench.failover`.

The longest time without an acknowledgement around a SIGKILL, and around a SIGSTOP, of the leader's process, for one
partition of three copies (acks=all, two in sync at least) under a steady load. Every record is read back afterwards.
"""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

from zbroker.check.streaming import CounterChecker, Summary
from zbroker.client.admin import AdminClient, NewTopic, PartitionDescription
from zbroker.client.batches import SendFuture
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.ids import TopicPartition
from zbroker.load.results import Figure
from zbroker.load.results import figure as row
from zbroker.testing import Broker

TOPIC = "failover"
PAUSE_S = 0.001
OPEN_MAX = 256
WHOLE_TIMEOUT_S = 30.0
ABOUT = "one partition of three copies, acks=all, two in sync at least, a record each millisecond"


class Load:
    """A thread that sends one record each millisecond and notes when each is acknowledged."""

    def __init__(self, servers: str) -> None:
        self._producer = Producer(bootstrap_servers=servers, acks="all", linger_ms=0)
        self._is_ending = threading.Event()
        self._open = threading.Semaphore(OPEN_MAX)
        self._thread = threading.Thread(target=self._run)
        self.count = 0
        self.acknowledged: list[tuple[int, int]] = []  # (time, counter)
        self.errors: list[BaseException] = []

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ending.set()
        self._thread.join()
        self._producer.close()

    def _run(self) -> None:
        while not self._is_ending.is_set():
            self._open.acquire()
            counter = self.count
            self.count += 1
            future = self._producer.send(TOPIC, b"%d" % counter, partition=0)
            future.add_done_callback(partial(self._done, counter))
            time.sleep(PAUSE_S)

    def _done(self, counter: int, future: SendFuture) -> None:
        at_ns = time.monotonic_ns()
        self._open.release()
        error = future.exception(0)
        if error is None:
            self.acknowledged.append((at_ns, counter))
        else:
            self.errors.append(error)

    def longest_gap_ms(self, begin_ns: int) -> float:
        """The longest time between two acknowledgements since just before `begin_ns`."""
        times = [at for at, _ in self.acknowledged]
        recent = [at for at in times if at >= begin_ns - 50_000_000]
        return max((later - earlier) / 1e6 for earlier, later in pairwise(recent))


def _partition(admin: AdminClient) -> PartitionDescription:
    return admin.describe_topics([TOPIC])[TOPIC].partitions[0]


def _wait_until_whole(admin: AdminClient, load: Load) -> PartitionDescription:
    """Wait for a leader, all copies in sync, and acknowledgements."""
    deadline_s = time.monotonic() + WHOLE_TIMEOUT_S
    before = len(load.acknowledged)
    while time.monotonic() < deadline_s:
        found = _partition(admin)
        if found.leader is not None and len(found.isr) == len(found.replicas) and len(load.acknowledged) > before + 50:
            return found
        time.sleep(0.01)
    raise TimeoutError(f"not whole after {WHOLE_TIMEOUT_S} s: {_partition(admin)}; errors {load.errors[:3]}")


def _gaps(broker: Broker, load: Load, admin: AdminClient, times: int, number: int) -> Iterator[float]:
    for _ in range(times):
        leader = _wait_until_whole(admin, load).leader_name
        assert leader is not None
        at_ns = time.monotonic_ns()
        pid = broker.signal(leader, number)
        _wait_until_whole(admin, load)
        yield load.longest_gap_ms(at_ns)
        if number == signal.SIGSTOP:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass


def _read_back(servers: str, load: Load) -> Summary:
    checker = CounterChecker()
    for _, counter in load.acknowledged:
        checker.acknowledged("p", TOPIC, counter)
    tp = TopicPartition(TOPIC, 0)
    with Consumer(bootstrap_servers=servers, auto_offset_reset="earliest") as consumer:
        consumer.assign([tp])
        end = consumer.end_offsets([tp])[tp]
        while consumer.position(tp) < end:
            for records in consumer.poll(timeout_ms=1_000).values():
                for record in records:
                    checker.read("p", TOPIC, int(record.value or b"-1"))
    return checker.summary()


def failover_rows(
    broker: Broker, kills: int, pauses: int, advance: Callable[[int], None] = lambda _: None
) -> list[Figure]:
    """Kill and pause leaders of a broker of three processes or more."""
    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        admin.create_topics([NewTopic(TOPIC, 1, 3, {"min.insync.replicas": "2"})])
        with Load(broker.bootstrap_servers) as load:
            killed: list[float] = []
            paused: list[float] = []
            for gaps, count, number in ((killed, kills, signal.SIGKILL), (paused, pauses, signal.SIGSTOP)):
                for gap_ms in _gaps(broker, load, admin, count, number):
                    gaps.append(gap_ms)
                    advance(1)
        killed.sort()
        paused.sort()
        summary = _read_back(broker.bootstrap_servers, load)
    return [
        row(f"{kills} kills of the leader: no acknowledgement, p50", statistics.median(killed), "ms", target="< 20"),
        row("the same, p99", killed[min(len(killed) - 1, len(killed) * 99 // 100)], "ms", target="< 50"),
        row("the same, longest", killed[-1], "ms"),
        *[
            row(f"{len(paused)} pauses of the leader: no acknowledgement, longest", longest, "ms", target="< 1500")
            for longest in paused[-1:]
        ],
        row("records acknowledged", summary.acknowledged, ""),
        row("lost", summary.lost.total, "", target="<= 0"),
        row("duplicated", summary.duplicated, "", target="<= 0"),
        row("reordered", summary.reordered, "", target="<= 0"),
        row("errors shown to the producer", len(load.errors), "", target="<= 0"),
    ]
