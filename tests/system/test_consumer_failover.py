"""Consumers while leaders die and copies take over: no error, no record twice, none left out, whichever way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conditions import wait_until
from tests.consuming import Writing, broker_with_tcp, make_topic, settings_for
from zbroker import ids
from zbroker.client.admin import AdminClient
from zbroker.client.consumer import Consumer
from zbroker.testing import Broker

PARTITIONS = 2
FACTOR = 3
KILLS = 4
ROUND_RECORDS = 60
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(
        workers=2, replicas=2, segment_bytes=65_536, max_message_bytes=60_000, flush_ms=20
    )
    with broker:
        yield broker, address


class Reading:
    """A consumer, and what it gave out of each partition, which must be the next offset every time."""

    def __init__(self, topic: str, way: dict[str, Any], **settings: Any) -> None:
        self.consumer: Consumer[Any, Any] = Consumer(topic, auto_offset_reset="earliest", **settings, **way)
        self.found: dict[int, list[Any]] = {n: [] for n in range(PARTITIONS)}

    @property
    def count(self) -> int:
        return sum(map(len, self.found.values()))

    def more(self, count: int) -> None:
        """Read so many more, or a few more than that."""
        goal = self.count + count
        self.until(lambda: self.count >= goal)

    def until(self, is_done: Callable[[], bool]) -> None:
        """Poll until something holds. Whatever poll raises is the test's failure."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not is_done():
            assert time.monotonic() < deadline_s, f"read {self.count}"
            for tp, records in self.consumer.poll(timeout_ms=100).items():
                for record in records:
                    assert record.offset == len(self.found[tp.partition]), "no offset twice, none left out"
                    self.found[tp.partition].append(record.value)


def leader_of(settings: dict[str, Any], topic: str, partition: int) -> str:
    """The name of the process that leads a partition, once one does."""

    def leader() -> str:
        number = admin.describe_topics([topic])[topic].partitions[partition].leader
        return "" if number is None else ids.process_name(number)

    with AdminClient(settings) as admin:
        return wait_until(leader, what="a leader")


@pytest.mark.parametrize("isolation_level", ["read_uncommitted", "read_durable"])
@pytest.mark.parametrize("way_name", ["shm", "zmq"])
def test_records_go_on_in_order_while_leaders_are_killed(
    served: tuple[Broker, str], way_name: str, isolation_level: str
) -> None:
    broker = served[0]
    settings = settings_for(way_name, *served)
    topic = f"{way_name}-{isolation_level}"
    make_topic(settings, topic, PARTITIONS, FACTOR)
    reading = Reading(topic, settings, isolation_level=isolation_level)
    writing = Writing(settings, topic, PARTITIONS, acks="all")
    with reading.consumer as consumer:
        try:
            for kill in range(KILLS):
                reading.more(ROUND_RECORDS)
                name = leader_of(settings, topic, kill % PARTITIONS)
                old_pid = broker.kill(name)
                reading.more(ROUND_RECORDS)
                broker.wait_for_restart(name, old_pid)
        finally:
            writing.end()
        reading.until(lambda: all(set(writing.sent[n]) <= set(reading.found[n]) for n in range(PARTITIONS)))
        ends = consumer.end_offsets(consumer.assignment())
        assert {tp.partition: end for tp, end in ends.items()} == {n: len(reading.found[n]) for n in range(PARTITIONS)}
    assert reading.found == writing.sent, "every acknowledged record once, in the order in which it was sent"
