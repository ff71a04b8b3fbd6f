"""T18: every process of the broker is killed at once, five times, under the standard load of the test programme.

The load: two topics of four partitions, four producers (half by lane, half by messages) that send a thousand records a
second in batches of 1 to 20, six consumers (half by mapping, half by messages) that have every partition assigned.
What must hold: every acknowledged record is read by everybody, at the offset that was acknowledged, in the order in
which its producer sent it; a record comes twice only if one of the deaths fell between its sending and its
acknowledgement; each new start is serving soon; a clean stop leaves nothing.
"""

from __future__ import annotations

import random
import threading
import time
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from tests.conditions import wait_until
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.ids import TopicPartition
from zbroker.testing import Broker

KILLS = 5
TOPICS = ("first", "second")
PARTITIONS = [TopicPartition(topic, number) for topic in TOPICS for number in range(4)]
PRODUCERS, CONSUMERS = 4, 6
RECORDS_PER_S = 1_000
PADDING = b"." * 1_000
SERVING_MAX_S = 50.0  # ten times the figure of the test programme


class Sent(NamedTuple):
    """An acknowledged record: who sent it as which of its records, when, and what it was told."""

    producer: int
    number: int
    sent_s: float
    acknowledged_s: float
    offset: int


class Sender(threading.Thread):
    """A producer that sends batches of 1 to 20 records to partitions drawn at random, until it is told to stop."""

    def __init__(self, number: int, way: dict[str, Any], seed: int) -> None:
        super().__init__()
        self._number = number
        self._chance = random.Random(seed * 100 + number)
        self._producer = Producer(way, delivery_timeout_ms=90_000)
        self._is_stopping = threading.Event()
        self.acknowledged: dict[TopicPartition, list[Sent]] = {tp: [] for tp in PARTITIONS}
        self.count = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with self._producer as producer:
                while not self._is_stopping.is_set():
                    self._send_batch(producer)
        except BaseException as error:
            self.error = error

    def _send_batch(self, producer: Producer[Any, Any]) -> None:
        tp = self._chance.choice(PARTITIONS)
        size = self._chance.randint(1, 20)
        values = [b"%d %d " % (self._number, self.count + n) + PADDING for n in range(size)]
        sent_s = time.monotonic()
        first = producer.send_many(tp.topic, values, partition=tp.partition).result(100)[0]
        now_s = time.monotonic()
        assert first.record_count == size
        self.acknowledged[tp] += [
            Sent(self._number, self.count + n, sent_s, now_s, first.base_offset + n) for n in range(size)
        ]
        self.count += size
        self._is_stopping.wait(max(0.0, sent_s + size * PRODUCERS / RECORDS_PER_S - time.monotonic()))

    def stop(self) -> None:
        self._is_stopping.set()
        self.join(100)
        assert not self.is_alive(), "a producer hangs"
        assert self.error is None, f"a producer's user saw {self.error!r}"


class Reader(threading.Thread):
    """A consumer of every partition that notes all it reads, until it has read up to given ends."""

    def __init__(self, way: dict[str, Any]) -> None:
        super().__init__()
        self._consumer = Consumer(way, auto_offset_reset="earliest")
        self._consumer.assign(PARTITIONS)
        self.ends: dict[TopicPartition, int] | None = None
        self.read: dict[TopicPartition, list[tuple[int, int, int]]] = {tp: [] for tp in PARTITIONS}
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with self._consumer as consumer:
                while self.ends is None or any(len(self.read[tp]) < end for tp, end in self.ends.items()):
                    for tp, records in consumer.poll(timeout_ms=200).items():
                        for record in records:
                            producer, number, _ = (record.value or b"").split(b" ", 2)
                            self.read[tp].append((record.offset, int(producer), int(number)))
        except BaseException as error:
            self.error = error

    def finish(self, ends: dict[TopicPartition, int]) -> None:
        self.ends = ends
        self.join(60)
        assert self.error is None, f"a consumer's user saw {self.error!r}"
        assert not self.is_alive(), {tp: (len(self.read[tp]), end) for tp, end in ends.items()}


def judge(tp: TopicPartition, read: list[tuple[int, int, int]], sent: list[Sent], deaths_s: list[float]) -> None:
    """Hold what one reader saw of one partition against what its producers were told."""
    assert [offset for offset, _, _ in read] == list(range(len(read))), f"{tp}: offsets have gaps or go back"
    at = {offset: (producer, number) for offset, producer, number in read}
    for record in sent:
        assert at.get(record.offset) == (record.producer, record.number), f"{tp}: lost or elsewhere: {record}"
    first_of: dict[tuple[int, int], int] = {}
    for offset, producer, number in read:
        if (producer, number) in first_of:
            told = next((one for one in sent if (one.producer, one.number) == (producer, number)), None)
            assert told is None or any(told.sent_s <= death <= told.acknowledged_s for death in deaths_s), (
                f"{tp}: {told} came twice, and nothing had died"
            )
        first_of.setdefault((producer, number), offset)
    for one in range(PRODUCERS):
        numbers = [number for producer, number in first_of if producer == one]
        assert numbers == sorted(numbers), f"{tp}: producer {one}'s records are out of order"


@pytest.mark.slow
def test_t18_every_process_is_killed_at_once_under_load_and_nothing_is_lost(request: pytest.FixtureRequest) -> None:
    seed = random.randrange(1 << 32)
    request.node.add_report_section("call", "seed", str(seed))
    config = {"topics": {"segment_bytes": 262_144, "max_message_bytes": 200_000}}
    with Broker(workers=2, config=config) as broker, ExitStack() as stack:
        ways = [{"bootstrap_servers": broker.bootstrap_servers, "transport": way} for way in ("shm", "zmq")]
        with AdminClient(ways[0]) as admin:
            admin.create_topics([NewTopic(name, 4) for name in TOPICS])
        readers = [Reader(ways[number % 2]) for number in range(CONSUMERS)]
        senders = [Sender(number, ways[number % 2], seed) for number in range(PRODUCERS)]
        for thread in (*readers, *senders):
            thread.start()
        for sender in senders:
            stack.callback(sender.stop)

        def wait_for_more(count: int) -> None:
            target = sum(sender.count for sender in senders) + count
            wait_until(
                lambda: any(sender.error for sender in senders) or sum(one.count for one in senders) >= target,
                timeout_s=SERVING_MAX_S,
                what=f"{count} more acknowledgements",
            )

        deaths_s = []
        for _ in range(KILLS):
            wait_for_more(2_000)
            deaths_s.append(time.monotonic())
            broker.kill_all()
            broker.start()
            wait_for_more(1)
        wait_for_more(1_000)
        for sender in senders:
            sender.stop()
        with AdminClient(ways[0]) as admin:
            ends = {tp: found.offset for tp, found in admin.list_offsets(dict.fromkeys(PARTITIONS, "latest")).items()}
            segments = [p.segment_count for name in TOPICS for p in admin.describe_topics([name])[name].partitions]
        for reader in readers:
            reader.finish(ends)
        assert broker.stop() == 0
        left = [path for path in broker.paths.run_dir.rglob("*") if not path.is_dir()]
        assert left == []
    assert sum(found or 0 for found in segments) >= 10 + len(PARTITIONS), f"segments have hardly rolled: {segments}"
    for tp in PARTITIONS:
        sent = sorted((one for sender in senders for one in sender.acknowledged[tp]), key=lambda one: one.offset)
        for reader in readers:
            judge(tp, reader.read[tp], sent, deaths_s)


def test_the_judge_notices_what_it_is_for() -> None:
    tp = PARTITIONS[0]
    sent = [Sent(0, number, 10.0, 11.0, number) for number in range(4)]
    right = [(number, 0, number) for number in range(4)]
    judge(tp, right, sent, [])
    judge(tp, [*right, (4, 0, 1)], sent, [10.5])
    judge(tp, [*right, (4, 0, 9)], sent, [])
    for wrong, words in (
        (right[:3], "lost"),
        ([(0, 0, 0), (1, 0, 2), (2, 0, 1), (3, 0, 3)], "lost or elsewhere"),
        ([(0, 0, 0), (2, 0, 2)], "gaps"),
        ([*right, (4, 0, 1)], "twice"),
    ):
        with pytest.raises(AssertionError, match=words):
            judge(tp, wrong, sent, [9.0])
    with pytest.raises(AssertionError, match="out of order"):
        judge(tp, [(0, 0, 5), (1, 0, 4)], [], [])
