"""The consumer against real processes, by mapped files, by messages and by tcp: one suite, the same behaviour."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conditions import wait_until
from tests.consuming import broker_with_tcp, fill, make_topic, numbers, read_records, read_values
from zbroker.client.admin import AdminClient
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.errors import (
    IllegalTransition,
    OffsetOutOfRangeError,
    UnknownTopicOrPartitionError,
)
from zbroker.ids import TopicPartition
from zbroker.record.records import OffsetAndTimestamp
from zbroker.testing import Broker


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(segment_bytes=65_536, max_message_bytes=60_000, file_delete_delay_ms=0)
    with broker:
        yield broker, address


def test_iteration_gives_every_record_of_every_partition_once_and_in_order(way: dict[str, Any], topic: str) -> None:
    for partition in range(3):
        fill(way, topic, numbers(500), partition)
    with Consumer(topic, auto_offset_reset="earliest", consumer_timeout_ms=20_000, **way) as consumer:
        found: dict[int, list[bytes | None]] = {0: [], 1: [], 2: []}
        for record in consumer:
            assert record.offset == len(found[record.partition])
            assert record.value is not None
            found[record.partition].append(record.value)
            if sum(map(len, found.values())) == 1_500:
                consumer.wakeup()
        assert found == {partition: numbers(500) for partition in range(3)}
        assert consumer.assignment() == {TopicPartition(topic, n) for n in range(3)}
        assert all(lag == 0 for lag in consumer.lag().values())


def test_a_broken_off_iteration_goes_on_with_the_next_record(way: dict[str, Any], topic: str) -> None:
    fill(way, topic, numbers(50), batch=50)
    with Consumer(**way) as consumer:
        consumer.assign([(topic, 0)])
        consumer.seek_to_beginning()
        for index, record in enumerate(consumer):
            assert record.offset == index
            if index == 6:
                break
        assert consumer.position((topic, 0)) == 7
        assert read_values(consumer, 3) == numbers(3, 7)
        assert next(iter(consumer)).offset == 10


def test_a_seek_or_pause_inside_an_iteration_takes_effect_at_once(way: dict[str, Any], topic: str) -> None:
    fill(way, topic, numbers(50), batch=50)
    with Consumer(consumer_timeout_ms=20_000, **way) as consumer:
        consumer.assign([(topic, 0)])
        consumer.seek_to_beginning()
        seen = []
        for record in consumer:
            seen.append(record.offset)
            if record.offset == 3:
                consumer.seek((topic, 0), 20)
            if record.offset == 22:
                consumer.pause((topic, 0))
                consumer.wakeup()  # which ends it when there is nothing to give
        assert seen == [0, 1, 2, 3, 20, 21, 22]
        assert consumer.paused() == {TopicPartition(topic, 0)}
        consumer.resume((topic, 0))
        assert read_values(consumer, 1) == [b"23"]


def test_poll_gives_lists_by_partition_within_the_limit_and_fairly(way: dict[str, Any], topic: str) -> None:
    for partition in range(3):
        fill(way, topic, numbers(300), partition)
    with Consumer(topic, auto_offset_reset="earliest", max_poll_records=70, **way) as consumer:
        counts = dict.fromkeys(range(3), 0)
        deadline_s = time.monotonic() + 20
        while sum(counts.values()) < 900:
            assert time.monotonic() < deadline_s
            polled = consumer.poll(timeout_ms=2000)
            assert sum(map(len, polled.values())) <= 70
            for tp, records in polled.items():
                assert records[0].offset == counts[tp.partition]
                counts[tp.partition] += len(records)
            if sum(counts.values()) < 600:
                assert max(counts.values()) - min(counts.values()) <= 300
        assert consumer.poll() == {}
        assert len(consumer.poll(max_records=1)) == 0


def test_polling_without_waiting_gets_there_in_the_end(way: dict[str, Any], topic: str) -> None:
    fill(way, topic, numbers(5))
    with Consumer(topic, auto_offset_reset="earliest", **way) as consumer:
        found = wait_until(consumer.poll, what="a record")
        assert [record.value for record in found[TopicPartition(topic, 0)]] == numbers(5)


def test_batches_come_as_they_were_sent_and_stay_valid_after_close(way: dict[str, Any], topic: str) -> None:
    fill(way, topic, numbers(40), batch=20)
    with Consumer(**way) as consumer:
        consumer.assign([(topic, 0)])
        consumer.seek((topic, 0), 5)
        batches = list(itertools.islice(consumer.batches(timeout_ms=20_000), 2))
        assert consumer.position((topic, 0)) == 40
    with Consumer(topic, auto_offset_reset="latest", consumer_timeout_ms=50, **way) as consumer:
        assert (list(consumer.batches()), list(consumer)) == ([], []), "both end by the same time"
    assert [(batch.base_offset, len(batch)) for batch in batches] == [(0, 20), (20, 20)]
    assert batches[0].values().tolist() + batches[1].values().tolist() == numbers(40)
    assert batches[1].tp == TopicPartition(topic, 0)
    for batch in batches:
        batch.release()


def test_positions_can_be_sought_by_end_time_and_count(way: dict[str, Any], topic: str) -> None:
    tp = TopicPartition(topic, 0)
    start_ms = time.time_ns() // 1_000_000 - 100_000
    with Producer(way) as producer:
        for index in range(30):
            producer.send(topic, b"%d" % index, partition=0, timestamp_ms=start_ms + 1000 * index).result(20)
    with Consumer(**way) as consumer:
        consumer.assign([tp])
        consumer.seek_to_beginning(tp)
        assert consumer.position(tp) == 0
        consumer.seek_to_end(tp)
        assert consumer.position(tp) == 30
        assert consumer.poll(timeout_ms=50) == {}
        consumer.seek_to_last(4, tp)
        assert read_values(consumer, 4) == numbers(4, 26)
        consumer.seek_to_last(1000, tp)
        assert consumer.position(tp) == 0
        consumer.seek_to_timestamp(start_ms + 10_500, tp)
        assert read_values(consumer, 1) == [b"11"]
        consumer.seek_to_timestamp(start_ms + 90_000, tp)
        assert consumer.position(tp) == 30
        consumer.seek(tp, 17)
        assert read_values(consumer, 2) == numbers(2, 17)
        assert consumer.lag() == {tp: 11}
        assert consumer.highwater(tp) == 30
        found = consumer.offsets_for_times({tp: start_ms + 10_500, TopicPartition(topic, 1): 0})
        assert found[tp] == OffsetAndTimestamp(11, start_ms + 11_000)
        assert found[TopicPartition(topic, 1)] is None
        assert consumer.beginning_offsets([tp]) == {tp: 0}
        assert consumer.end_offsets([tp, (topic, 1)]) == {tp: 30, TopicPartition(topic, 1): 0}
        with pytest.raises(ValueError, match="at least 0"):
            consumer.seek(tp, -1)
        with pytest.raises(IllegalTransition):
            consumer.seek((topic, 2), 0)


def test_latest_starts_behind_what_is_there(way: dict[str, Any], topic: str) -> None:
    fill(way, topic, numbers(5))
    with Consumer(topic, **way) as consumer:
        assert consumer.position((topic, 0)) == 5
        fill(way, topic, [b"new"])
        assert read_values(consumer, 1) == [b"new"]


def test_without_a_policy_a_start_and_a_lost_position_are_errors(way: dict[str, Any], topic: str) -> None:
    fill(way, topic, numbers(20))
    tp = TopicPartition(topic, 0)
    with Consumer(auto_offset_reset="none", **way) as consumer:
        consumer.assign([tp])
        with pytest.raises(OffsetOutOfRangeError, match="seek"):
            consumer.poll(timeout_ms=5000)
        consumer.seek(tp, 21)
        for _ in range(2):
            with pytest.raises(OffsetOutOfRangeError, match="offset 21 is not in 0 to 20"):
                consumer.poll(timeout_ms=5000)
        consumer.seek(tp, 20)
        assert consumer.poll(timeout_ms=50) == {}
        consumer.seek(tp, 3)
        with AdminClient(way) as admin:
            assert admin.delete_records({tp: 10}) == {tp: 10}
        with pytest.raises(OffsetOutOfRangeError, match="offset 3 is not in 10 to 20"):
            consumer.poll(timeout_ms=5000)


@pytest.mark.parametrize(("reset", "expected"), [("earliest", numbers(10, 10)), ("latest", [b"new"])])
def test_a_deleted_position_goes_where_the_policy_says(
    way: dict[str, Any], topic: str, reset: str, expected: list[bytes]
) -> None:
    fill(way, topic, numbers(20))
    tp = TopicPartition(topic, 0)
    with Consumer(auto_offset_reset=reset, **way) as consumer:
        consumer.assign([tp])
        consumer.seek(tp, 3)
        with AdminClient(way) as admin:
            admin.delete_records({tp: 10})
        if reset == "latest":
            wait_until(lambda: consumer.poll(timeout_ms=50) == {} and consumer.position(tp) == 20, what="the reset")
            fill(way, topic, [b"new"])
        assert read_values(consumer, len(expected)) == expected


def test_an_unknown_topic_or_partition_is_a_typed_error(way: dict[str, Any], topic: str) -> None:
    with Consumer("absent", **way) as consumer:
        with pytest.raises(UnknownTopicOrPartitionError, match="'absent'"):
            consumer.poll(timeout_ms=5000)
        with pytest.raises(UnknownTopicOrPartitionError):
            consumer.partitions_for_topic("absent")
        consumer.unsubscribe()
        consumer.assign([(topic, 3)])
        with pytest.raises(UnknownTopicOrPartitionError, match="partitions 0 to 2, not 3"):
            consumer.poll(timeout_ms=5000)
        assert consumer.partitions_for_topic(topic) == {0, 1, 2}
        assert topic in consumer.topics()


def test_a_topic_that_appears_after_the_error_is_read_from_its_start(way: dict[str, Any], topic: str) -> None:
    late = topic + "-late"
    with Consumer(late, auto_offset_reset="earliest", **way) as consumer:
        with pytest.raises(UnknownTopicOrPartitionError):
            consumer.poll(timeout_ms=5000)
        make_topic(way, late)
        fill(way, late, numbers(3))

        def read() -> list[Any]:
            try:
                return [record.value for record in consumer.consume(3, timeout_ms=100)]
            except UnknownTopicOrPartitionError:
                return []

        assert wait_until(read, what="the late topic") == numbers(3)


def test_new_partitions_and_newly_matching_topics_are_found(way: dict[str, Any], topic: str) -> None:
    with Consumer(metadata_max_age_ms=50, **way) as consumer:
        consumer.subscribe(pattern=re.escape(topic) + ".*")
        assert wait_until(lambda: consumer.poll(timeout_ms=50) or consumer.subscription()) == {topic}
        assert consumer.position((topic, 2)) == 0
        make_topic(way, topic + "-second")
        fill(way, topic + "-second", [b"second"])
        with AdminClient(way) as admin:
            admin.create_partitions({topic: 4})
        fill(way, topic, [b"fourth"], partition=3)
        assert sorted(read_values(consumer, 2)) == [b"fourth", b"second"]


def test_a_deleted_and_remade_topic_is_read_anew(way: dict[str, Any], topic: str) -> None:
    fill(way, topic, numbers(5))
    with Consumer(topic, auto_offset_reset="earliest", metadata_max_age_ms=50, **way) as consumer:
        assert read_values(consumer, 5) == numbers(5)
        with AdminClient(way) as admin:
            admin.delete_topics([topic])
        with pytest.raises(UnknownTopicOrPartitionError):
            read_values(consumer, 1)
        make_topic(way, topic)
        fill(way, topic, numbers(2, 100))

        def read() -> list[Any]:
            try:
                return [record.value for record in consumer.consume(10, timeout_ms=100)]
            except UnknownTopicOrPartitionError:
                return []

        assert wait_until(read, what="the topic's records") == numbers(2, 100)


def test_a_sleeping_consumer_is_woken_by_a_record(way: dict[str, Any], topic: str) -> None:
    with (
        Consumer(topic, auto_offset_reset="earliest", fetch_max_wait_ms=60_000, **way) as consumer,
        ThreadPoolExecutor(1) as reader,
    ):
        consumer.poll(timeout_ms=100)
        reading = reader.submit(read_values, consumer, 1)
        wait_until(lambda: consumer._use._depth, what="the wait")
        fill(way, topic, [b"x"], 2)
        assert reading.result(40) == [b"x"], "a third of what it would sleep without the record"


def test_few_bytes_are_held_back_until_the_wait_is_over(way: dict[str, Any], topic: str) -> None:
    settings: dict[str, Any] = {"auto_offset_reset": "earliest", "fetch_min_bytes": 3000, **way}
    with Consumer(topic, fetch_max_wait_ms=60_000, **settings) as consumer:
        assert consumer.poll(timeout_ms=50) == {}
        fill(way, topic, [b"x"])
        assert consumer.poll(timeout_ms=200) == {}
        fill(way, topic, [b"y" * 4000])
        assert read_values(consumer, 2) == [b"x", b"y" * 4000]
    fill(way, topic, [b"z"], partition=1)
    with Consumer(fetch_max_wait_ms=300, **settings) as consumer:
        consumer.assign([(topic, 1)])
        assert read_values(consumer, 1) == [b"z"]


def test_deserializers_make_keys_and_values(way: dict[str, Any], topic: str) -> None:
    with Producer(way) as producer:
        producer.send(topic, b"12", b"k", partition=0, headers=[("h", b"v"), ("n", None)]).result(20)
        producer.send(topic, None, partition=0).result(20)
        producer.send(topic, b"bad", partition=0).result(20)
        producer.send(topic, b"13", partition=0).result(20)
    with Consumer(
        topic, auto_offset_reset="earliest", key_deserializer=bytes.decode, value_deserializer=int, **way
    ) as consumer:
        first, second = read_records(consumer, 2)
        assert (first.key, first.value, first.headers) == ("k", 12, (("h", b"v"), ("n", None)))
        assert (second.key, second.value, second.headers) == (None, None, ())
        for _ in range(2):
            with pytest.raises(ValueError, match="bad"):
                consumer.poll(timeout_ms=5000)
        assert consumer.position((topic, 0)) == 2
        consumer.seek((topic, 0), 3)
        assert read_values(consumer, 1) == [13]


def test_compressed_and_many_sized_batches_are_read(way: dict[str, Any], topic: str) -> None:
    values = [bytes([index % 256]) * (index * 37 % 3000) for index in range(400)]
    with Producer(way, compression_type="lz4") as producer:
        producer.send_many(topic, values[:200], partition=0).result(20)
    with Producer(way, batch_size=16_384) as producer:
        for value in values[200:]:
            producer.send(topic, value, partition=0)
        producer.flush(timeout_ms=20_000)
    with Consumer(topic, auto_offset_reset="earliest", **way) as consumer:
        assert read_values(consumer, 400) == values


def test_records_over_many_segments_are_read_and_sought(way: dict[str, Any], topic: str) -> None:
    values = [b"%06d" % index + b"." * 1000 for index in range(1000)]
    fill(way, topic, values, batch=20)
    with Consumer(topic, auto_offset_reset="earliest", max_partition_fetch_bytes=50_000, **way) as consumer:
        assert read_values(consumer, 1000) == values
        for offset in (0, 999, 500, 63, 64, 65):
            consumer.seek((topic, 0), offset)
            assert read_values(consumer, 1) == [values[offset]]


def test_listeners_hear_of_partitions(way: dict[str, Any], topic: str) -> None:
    heard: list[tuple[str, int]] = []
    with Consumer(**way) as consumer:
        consumer.subscribe(
            [topic],
            on_assign=lambda found: heard.append(("assigned", len(found))),
            on_revoke=lambda found: heard.append(("revoked", len(found))),
        )
        wait_until(lambda: consumer.poll(timeout_ms=50) or consumer.assignment(), what="the partitions")
        consumer.unsubscribe()
        assert consumer.assignment() == set()
        assert consumer.poll(timeout_ms=20) == {}
    assert heard == [("assigned", 3), ("revoked", 3)]
