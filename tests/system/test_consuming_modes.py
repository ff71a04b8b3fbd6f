"""Who gets which records without groups: everybody everything, or each partition one reader; and what a partition is
the unit of."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conditions import wait_until, wait_until_stopped
from tests.consuming import broker_with_tcp, fill, make_topic, numbers, read_values, settings_for
from zbroker.client.admin import AdminClient
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.ids import TopicPartition
from zbroker.shm.board_reader import BoardReader, find_boards
from zbroker.shm.layout import Counter
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
            wait_until_stopped(leaders[0])
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


def bytes_out(broker: Broker) -> int:
    """Bytes of records that the workers have sent in answers."""
    found = 0
    for name in ("worker-0", "worker-1"):
        (_, _, path), *_ = find_boards(broker.paths.boards_dir, name)
        board = BoardReader.open(path)
        found += board.counter(Counter.BYTES_OUT)
        board.close()
    return found


def test_what_is_fetched_ahead_of_the_reader_is_bounded_in_bytes(served: tuple[Broker, str]) -> None:
    """A reader that is slow, or has stopped, does not fill its memory with the backlog."""
    broker, _ = served
    way = settings_for("zmq", broker, "")
    make_topic(way, "backlog", 1)
    backlog_bytes = 20_000_000
    fill(way, "backlog", [bytes(10_000)] * (backlog_bytes // 10_000), batch=50)
    before = bytes_out(broker)
    limits = {"fetch_max_bytes": 1 << 20, "max_partition_fetch_bytes": 1 << 20}
    with Consumer("backlog", auto_offset_reset="earliest", **limits, **way) as consumer:
        assert consumer.consume(1, timeout_ms=20_000)
        ahead = wait_until(lambda: bytes_out(broker) - before, what="a fetch to be counted")
        for _ in range(50):
            assert consumer.poll(timeout_ms=0, max_records=1)
        assert ahead <= bytes_out(broker) - before <= 4 << 20
        assert len(read_values(consumer, backlog_bytes // 10_000 - 51)) == backlog_bytes // 10_000 - 51
        assert bytes_out(broker) - before >= backlog_bytes
