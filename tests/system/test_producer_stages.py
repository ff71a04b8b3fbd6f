"""What happens to a record on its way out: serialize, partition, accumulate, compress, send in groups."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conditions import wait_until
from tests.consuming import make_topic, read_values
from zbroker.client.accumulator import PAUSE_NS
from zbroker.client.admin import AdminClient
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.ids import TopicPartition
from zbroker.record.batch import read_header
from zbroker.shm import layout
from zbroker.shm.board_reader import BoardReader, find_boards
from zbroker.testing import Broker

WORKERS = 2


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker(workers=WORKERS) as found:
        yield found


@pytest.fixture
def way(broker: Broker) -> dict[str, Any]:
    return {"bootstrap_servers": broker.bootstrap_servers}


@pytest.fixture
def topic(way: dict[str, Any], request: pytest.FixtureRequest) -> str:
    name = re.sub(r"[^a-zA-Z0-9]", "-", request.node.name)
    make_topic(way, name, 4)
    return name


def batches_of(way: dict[str, Any], topic: str, records: int) -> list[Any]:
    """Every batch of a topic that holds so many records, as it is stored."""
    found = []
    with Consumer(topic, auto_offset_reset="earliest", **way) as consumer:
        while records > 0:
            found.append(next(consumer.batches(timeout_ms=20_000)))
            records -= found[-1].record_count
    return found


def test_records_sent_one_by_one_go_out_in_few_batches(way: dict[str, Any], topic: str) -> None:
    with Producer(way, linger_ms=50) as producer:
        for number in range(2_000):
            producer.send(topic, b"%d" % number, partition=number % 4)
        assert producer.flush(timeout_ms=20_000) == 0
        metrics = producer.metrics()
    assert metrics["records_acknowledged"] == 2_000
    assert metrics["batches_acknowledged"] <= 200
    assert len(batches_of(way, topic, 2_000)) == metrics["batches_acknowledged"]


def test_a_record_that_comes_after_a_pause_is_sent_by_the_sending_thread(way: dict[str, Any], topic: str) -> None:
    with Producer(way) as producer, Consumer(way) as consumer:
        place = TopicPartition(topic, 0)
        producer.send(topic, b"first", partition=0).result(20)
        producer._delivery.background.close()
        wait_until(lambda: producer.metrics()["records_unanswered"] == 0)
        time.sleep(2 * PAUSE_NS / 1e9)
        producer.send(topic, b"after a pause", partition=0)
        wait_until(lambda: consumer.end_offsets([place])[place] == 2)
        producer.send(topic, b"while that one is not answered", partition=0)
        assert producer.metrics()["records_unanswered"] == 2, "nobody has received"
        assert producer.flush(timeout_ms=20_000) == 0
    assert [batch.record_count for batch in batches_of(way, topic, 3)] == [1, 1, 1]


def test_a_record_like_one_that_was_waited_for_is_sent_by_the_sending_thread(way: dict[str, Any], topic: str) -> None:
    with Producer(way) as producer:
        for _ in range(3):
            producer.send(topic, b"waited for", partition=0).result(20)
        assert producer.send(topic, b"at once", partition=0)._batch.count == 1
        futures = [producer.send(topic, b"%d" % number, partition=1) for number in range(50)]
        assert [future.result(20).offset for future in futures] == list(range(50))


def test_with_a_linger_a_record_waits_whenever_it_comes(way: dict[str, Any], topic: str) -> None:
    with Producer(way, linger_ms=60_000) as producer:
        producer.send(topic, b"first", partition=0).result(20)
        time.sleep(2 * PAUSE_NS / 1e9)
        for number in range(10):
            producer.send(topic, b"%d" % number, partition=0)
        assert producer.flush(timeout_ms=20_000) == 0
    assert [batch.record_count for batch in batches_of(way, topic, 11)] == [1, 10]


def test_without_a_batch_size_worth_the_name_each_record_is_a_batch(way: dict[str, Any], topic: str) -> None:
    """The counter-example: what batching saves."""
    with Producer(way, batch_size=1) as producer:
        for number in range(100):
            producer.send(topic, b"%d" % number, partition=0)
        assert producer.flush(timeout_ms=20_000) == 0
        assert producer.metrics()["batches_acknowledged"] == 100


def test_a_batch_goes_when_it_is_full_although_its_time_has_not_come(way: dict[str, Any], topic: str) -> None:
    with Producer(way, batch_size=4_096, linger_ms=60_000) as producer:
        for _ in range(12):
            producer.send(topic, bytes(1_000), partition=0)
        wait_until(lambda: producer.metrics()["batches_acknowledged"] == 2, what="full batches to go")
        assert 0 < producer.unanswered_records() < 5
        assert producer.flush(timeout_ms=20_000) == 0


def test_a_batch_goes_when_its_time_has_come_although_it_is_not_full(way: dict[str, Any], topic: str) -> None:
    with Producer(way, batch_size=1 << 20, linger_ms=30) as producer:
        future = producer.send(topic, b"alone", partition=0)
        wait_until(future.done, what="a batch of one record to go by itself")
        assert future.result(0).offset == 0


def test_nothing_is_compressed_unless_it_is_asked_for(way: dict[str, Any], topic: str) -> None:
    for partition, settings in enumerate(({}, {"compression_type": "lz4"})):
        with Producer(way, **settings) as producer:
            producer.send_many(topic, [b"the same words again and again " * 10] * 500, partition=partition).result(20)
    stored: dict[int, set[int]] = {0: set(), 1: set()}
    for batch in batches_of(way, topic, 1_000):
        stored[batch.partition].add(read_header(batch.raw()).compression)
    assert stored == {0: {0}, 1: {3}}


def test_a_record_is_serialized_then_placed_then_packed_with_others_then_compressed(
    way: dict[str, Any], topic: str
) -> None:
    seen: list[tuple[str, Any]] = []

    def serialize(what: str) -> Any:
        def call(value: int) -> bytes:
            seen.append((what, value))
            return b"%d" % value

        return call

    def place(key: bytes | None, count: int) -> int:
        seen.append(("place", key))
        assert key is not None
        return int(key) % count

    stages = {"key_serializer": serialize("key"), "value_serializer": serialize("value"), "partitioner": place}
    with Producer(way, compression_type="lz4", linger_ms=50, **stages) as producer:
        for number in range(200):
            producer.send(topic, 7_777_777, number)
        assert producer.flush(timeout_ms=20_000) == 0
    for number in range(200):
        three = seen[3 * number : 3 * number + 3]
        assert sorted(three[:2]) == [("key", number), ("value", 7_777_777)]
        assert three[2] == ("place", b"%d" % number)
    packed = batches_of(way, topic, 200)
    assert len(packed) < 50
    assert all(batch.partition == int(key) % 4 for batch in packed for key in list(batch.keys()))
    assert any(read_header(batch.raw()).compression == 3 for batch in packed)


def test_each_partition_has_a_queue_of_its_own_and_keeps_its_order(way: dict[str, Any], topic: str) -> None:
    with Producer(way, batch_size=2_000, linger_ms=5) as producer:
        for number in range(4_000):
            producer.send(topic, b"%d" % number, partition=number % 4)
        assert producer.flush(timeout_ms=20_000) == 0
    for batch in batches_of(way, topic, 4_000):
        assert {int(value) % 4 for value in batch.values()} == {batch.partition}, "a batch is of one partition"
    with Consumer(topic, auto_offset_reset="earliest", **way) as consumer:
        by_partition: dict[int, list[int]] = {number: [] for number in range(4)}
        for value in read_values(consumer, 4_000):
            by_partition[int(value) % 4].append(int(value))
    assert by_partition == {number: list(range(number, 4_000, 4)) for number in range(4)}


def counters(broker: Broker) -> dict[str, Counter[str]]:
    """What each worker's board counts."""
    found = {}
    for number in range(WORKERS):
        name = f"worker-{number}"
        (_, _, path), *_ = find_boards(broker.paths.boards_dir, name)
        board = BoardReader.open(path)
        found[name] = Counter(
            {one.name: board.counter(one) for one in (layout.Counter.BATCHES_IN, layout.Counter.LANES_OPENED)}
        )
        board.close()
    return found


def test_batches_go_to_the_worker_that_leads_their_partition_over_one_lane_each(
    broker: Broker, way: dict[str, Any], topic: str
) -> None:
    with AdminClient(way) as admin:
        leaders = [found.leader_name for found in admin.describe_topics([topic])[topic].partitions]
    assert set(leaders) == {"worker-0", "worker-1"}
    before = counters(broker)
    with Producer(way, batch_size=1) as producer:
        for number in range(100):
            producer.send(topic, b"x", partition=0 if number < 70 else number % 3 + 1)
        assert producer.flush(timeout_ms=20_000) == 0
    after = counters(broker)
    sent = Counter(leaders[0 if number < 70 else number % 3 + 1] for number in range(100))
    for name in before:
        assert after[name]["BATCHES_IN"] - before[name]["BATCHES_IN"] == sent[name]
        assert after[name]["LANES_OPENED"] - before[name]["LANES_OPENED"] == 1


def test_a_partitioner_of_ones_own_can_place_records_at_random(way: dict[str, Any], topic: str) -> None:
    chance = random.Random(4)
    with Producer(way, partitioner=lambda _key, count: chance.randrange(count)) as producer:
        futures = [producer.send(topic, b"x", b"same key") for _ in range(400)]
        found = Counter(future.result(20).partition for future in futures)
    assert sorted(found) == [0, 1, 2, 3]
    assert min(found.values()) > 60
