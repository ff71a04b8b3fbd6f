"""Who gets which records without groups: everybody everything, or each partition one reader; and what a partition is
the unit of."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conditions import wait_until
from tests.consuming import broker_with_tcp, fill, make_topic, numbers, read_values, settings_for
from zbroker.client.admin import AdminClient
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.ids import TopicPartition
from zbroker.testing import Broker


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(workers=2)
    with broker:
        yield broker, address


def test_publish_and_subscribe_every_consumer_gets_every_record_also_one_that_comes_later(
    way: dict[str, Any], topic: str
) -> None:
    subscribers = [Consumer(topic, auto_offset_reset="earliest", **way) for _ in range(3)]
    try:
        for partition in range(3):
            fill(way, topic, [b"%d-%d" % (partition, number) for number in range(100)], partition)
        subscribers.append(Consumer(topic, auto_offset_reset="earliest", **way))
        expected = sorted(b"%d-%d" % (partition, number) for partition in range(3) for number in range(100))
        for subscriber in subscribers:
            assert sorted(read_values(subscriber, 300)) == expected
            assert subscriber.poll(timeout_ms=0) == {}
    finally:
        for subscriber in subscribers:
            subscriber.close()


def test_point_to_point_consumers_of_different_partitions_share_the_records_without_overlap(
    way: dict[str, Any], topic: str
) -> None:
    workers = []
    try:
        for partition in range(3):
            workers.append(Consumer(auto_offset_reset="earliest", **way))
            workers[-1].assign([TopicPartition(topic, partition)])
        with Producer(way, partitioner="round_robin") as producer:
            for value in numbers(300):
                producer.send(topic, value)
        got = [read_values(worker, 100) for worker in workers]
        assert sorted(value for values in got for value in values) == sorted(numbers(300))
        assert all(worker.poll(timeout_ms=0) == {} for worker in workers)
    finally:
        for worker in workers:
            worker.close()


def test_one_partition_is_one_unit_of_concurrency(served: tuple[Broker, str]) -> None:
    """While one partition's process stands still the other partition goes on; nobody takes over for the one."""
    broker, _ = served
    way = settings_for("shm", broker, "")
    make_topic(way, "units", 2)
    with AdminClient(way) as admin:
        leaders = [found.leader_pid for found in admin.describe_topics(["units"])["units"].partitions]
    assert leaders[0] is not None
    assert len(set(leaders)) == 2, "two partitions, two processes"
    with Producer(way) as producer, Consumer(auto_offset_reset="earliest", **way) as consumer:
        consumer.assign([TopicPartition("units", 1)])
        assert [producer.send("units", b"warm", partition=number).result(20).offset for number in (0, 1)] == [0, 0]
        os.kill(leaders[0], signal.SIGSTOP)
        try:
            waiting = producer.send("units", b"waits", partition=0)
            for number in range(20):
                assert producer.send("units", b"%d" % number, partition=1).result(20).offset == number + 1
            assert read_values(consumer, 21) == [b"warm", *numbers(20)]
            assert not waiting.done()
        finally:
            os.kill(leaders[0], signal.SIGCONT)
        assert waiting.result(20).offset == 1
        # One process for a partition: the number of partitions bounds how many of them can work for a topic.
        wait_until(lambda: len(broker.process_names()) == 4, what="all processes to be there")
