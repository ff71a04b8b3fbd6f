"""What groups are for: a queue for many workers, a copy for each subscriber, one order for all or for each key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest

from tests.conditions import wait_until
from tests.consuming import broker_with_tcp, fill, make_topic, numbers, read_values
from zbroker import RebalanceListener, TopicPartition
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.testing import Broker

QUICK: dict[str, Any] = {"heartbeat_interval_ms": 50, "auto_offset_reset": "earliest"}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(workers=2)
    with broker:
        yield broker, address


def read_all(
    consumers: Collection[Consumer[Any, Any]], count: int, is_ready: Callable[[], bool] = lambda: True
) -> list[list[Any]]:
    """Let consumers of one thread poll in turn until so many records came and it is so; what each was given."""
    found: list[list[Any]] = [[] for _ in consumers]

    def poll() -> bool:
        for consumer, records in zip(consumers, found, strict=True):
            records += consumer.consume(50, timeout_ms=2)
        return sum(map(len, found)) >= count and is_ready()

    wait_until(poll, what=f"{count} records")
    return found


def test_s017_point_to_point_the_members_of_one_group_share_the_records(way: dict[str, Any], topic: str) -> None:
    members = [Consumer(topic, group_id=topic, **QUICK, **way) for _ in range(3)]
    try:
        read_all(members, 0, lambda: all(len(member.subscription()) == 1 for member in members))
        wait_until(lambda: not read_all(members, 0)[0] and all(len(one._subscription.assigned) == 1 for one in members))
        for partition in range(3):
            fill(way, topic, numbers(50, 50 * partition), partition)
        found = read_all(members, 150)
        assert sorted(int(record.value) for of_one in found for record in of_one) == list(range(150))
        assert [len(of_one) for of_one in found] == [50, 50, 50]
    finally:
        for member in members:
            member.close()


def test_s012_s018_publish_and_subscribe_each_group_gets_everything_also_one_that_comes_later(
    way: dict[str, Any], topic: str
) -> None:
    for partition in range(3):
        fill(way, topic, numbers(20, 20 * partition), partition)
    for name in ("old", "new"):
        with Consumer(topic, group_id=f"{topic}-{name}", **QUICK, **way) as consumer:
            assert sorted(map(int, read_values(consumer, 60))) == list(range(60))
            consumer.commit()
    with Consumer(topic, group_id=f"{topic}-old", **QUICK, **way) as consumer:
        (found,) = read_all([consumer], 0, lambda: len(consumer.assignment()) == 3)
        positions = {consumer.position(tp) for tp in consumer.assignment()}
        assert (found, positions) == ([], {20}), "the other group has moved nothing for this one"


def test_s171_one_partition_is_one_order_and_has_one_reader(way: dict[str, Any], topic: str) -> None:
    make_topic(way, f"{topic}-one", 1)
    with (
        Consumer(f"{topic}-one", group_id=topic, **QUICK, **way) as first,
        Consumer(f"{topic}-one", group_id=topic, **QUICK, **way) as second,
    ):
        fill(way, f"{topic}-one", numbers(100))
        found = read_all([first, second], 100)
        assert sorted(map(len, found)) == [0, 100]
        assert [record.value for of_one in found for record in of_one] == numbers(100)


def test_s172_the_records_of_a_key_stay_in_order_whoever_reads_them(way: dict[str, Any], topic: str) -> None:
    steps = [b"created", b"paid", b"shipped"]
    with Producer(way) as producer:
        for step in steps:
            for order in range(20):
                producer.send(topic, step, b"order-%d" % order).result(20)  # the next step when this one is done
    members = [Consumer(topic, group_id=topic, **QUICK, **way) for _ in range(2)]
    try:
        by_key: dict[bytes, list[bytes]] = defaultdict(list)
        for of_one in read_all(members, 60):
            for record in of_one:
                by_key[record.key].append(record.value)
        assert by_key == {b"order-%d" % order: steps for order in range(20)}
    finally:
        for member in members:
            member.close()


def test_a_listener_need_say_only_what_it_cares_about(way: dict[str, Any], topic: str) -> None:
    class Revoked(RebalanceListener):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
            self.seen.append(len(assigned))

    listener = Revoked()  # type: ignore[abstract]  # what a Protocol leaves out does nothing
    with Consumer(group_id=topic, **QUICK, **way) as consumer:
        consumer.subscribe([topic], listener=listener)
        fill(way, topic, numbers(1))
        assert read_values(consumer, 1) == [b"0"]
    assert listener.seen == [3]
