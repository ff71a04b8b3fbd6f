"""The producer against real processes, by lane, by messages, and by tcp: what it promises and what it refuses."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conditions import wait_until, wait_until_stopped
from tests.consuming import broker_with_tcp, make_topic
from zbroker.client.admin import AdminClient
from zbroker.client.producer import Producer
from zbroker.errors import (
    BrokerNotAvailableError,
    ClosedError,
    ConfigError,
    ForkError,
    MessageSizeTooLargeError,
    TimeoutError_,
    UnknownTopicOrPartitionError,
)
from zbroker.ids import TopicPartition
from zbroker.testing import Broker


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(workers=2)
    with broker:
        yield broker, address


@pytest.fixture
def broker(served: tuple[Broker, str]) -> Broker:
    return served[0]


def leader_of(way: dict[str, Any], topic: str) -> str:
    with AdminClient(**way) as admin:
        name = admin.describe_topics([topic])[topic].partitions[0].leader_name
    assert name is not None
    return name


def ends(way: dict[str, Any], topic: str, partitions: int) -> list[int]:
    with AdminClient(**way) as admin:
        found = admin.list_offsets({(topic, number): "latest" for number in range(partitions)})
        return [found[TopicPartition(topic, number)].offset for number in range(partitions)]


def test_an_acknowledged_record_has_its_offset(way: dict[str, Any], topic: str) -> None:
    with Producer(way) as producer:
        first = producer.send(topic, b"value", b"key", partition=1).result(10)
        second = producer.send_and_wait(topic, None, b"key", partition=1, timeout_ms=10_000)
    assert (first.topic, first.partition, first.offset) == (topic, 1, 0)
    assert (first.serialized_key_size, first.serialized_value_size) == (3, 5)
    assert (second.offset, second.serialized_value_size) == (1, -1)


def test_a_first_send_creates_the_topic(way: dict[str, Any], topic: str) -> None:
    with Producer(way) as producer:
        assert producer.partitions_for(topic + "-new") == [0]
        assert producer.send(topic + "-new", b"x").result(10).offset == 0


def test_records_of_a_key_go_to_one_partition_and_stay_in_order(way: dict[str, Any], topic: str) -> None:
    with Producer(way) as producer:
        futures = [producer.send(topic, b"%d" % n, b"k%d" % (n % 5)) for n in range(500)]
        found = [future.result(10) for future in futures]
    for key in range(5):
        mine = found[key::5]
        assert len({metadata.partition for metadata in mine}) == 1
        assert [m.offset for m in mine] == sorted(m.offset for m in mine)
    assert sum(ends(way, topic, 3)) == 500


def test_send_many_splits_and_sends_everything(way: dict[str, Any], topic: str) -> None:
    values = [b"v" * (n % 3000) for n in range(3_000)]
    with Producer(way) as producer:
        ranges = producer.send_many(topic, values).result(20)
        keyed = producer.send_many(topic, values[:100], [b"k%d" % (n % 7) for n in range(100)]).result(20)
        placed = producer.send_many(topic, values[:10], partition=2).result(20)
    assert len(ranges) > 3, "several megabytes are several batches"
    assert sum(r.record_count for r in ranges) == 3_000
    assert sum(r.record_count for r in keyed) == 100
    assert {r.partition for r in placed} == {2}
    assert sum(ends(way, topic, 3)) == 3_110


def test_a_sender_emits_without_futures(way: dict[str, Any], topic: str) -> None:
    with Producer(way) as producer:
        emit = producer.sender(topic)
        for n in range(5_000):
            emit(b"%d" % n)
            emit(b"%d" % n, b"k%d" % (n % 11))
        assert producer.flush(timeout_ms=20_000) == 0
        assert sum(ends(way, topic, 3)) == 10_000


def test_what_a_sender_holds_goes_out_by_itself(way: dict[str, Any], topic: str) -> None:
    with Producer(way) as producer:
        producer.sender(topic)(b"alone")
        gc.collect()  # nobody holds the call any more; the record must not go with it
        wait_until(lambda: sum(ends(way, topic, 3)) == 1, what="the record in the log")


def test_a_batch_filled_by_hand_says_when_it_is_full(way: dict[str, Any], topic: str) -> None:
    with Producer(way) as producer:
        builder = producer.create_batch(topic, partition=2)
        count = 0
        while builder.append(b"x" * 1000, headers=[("h", b"v")], timestamp_ms=count):
            count += 1
        assert 900 < count == len(builder) < 1100
        assert producer.send_batch(builder).result(10)[0].record_count == count


def test_callbacks_and_futures_say_the_same(way: dict[str, Any], topic: str) -> None:
    said: list[tuple[Any, Any]] = []
    with Producer(way) as producer:
        future = producer.send(
            topic, b"x", partition=0, on_delivery=lambda metadata, error: said.append((metadata, error))
        )
        future.add_done_callback(lambda done: said.append((done.result(), None)))
        producer.flush()
        assert said == [(future.result(), None)] * 2
        assert future.as_concurrent().result(1) == future.result()
        assert future.exception() is None
        future.add_done_callback(lambda done: said.append(("late", None)))
        assert said[-1] == ("late", None)


@pytest.mark.parametrize("codec", ["lz4", "gzip", "zstd"])
def test_compressed_batches_are_accepted(way: dict[str, Any], topic: str, codec: str) -> None:
    with Producer(way, compression_type=codec) as producer:
        assert producer.send_many(topic, [b"abc" * 100] * 1000, partition=0).result(10)[0].record_count > 1


def test_acks_0_promises_nothing_and_asks_for_nothing(way: dict[str, Any], topic: str) -> None:
    with Producer(way, acks=0) as producer:
        assert producer.send(topic, b"x", partition=0).result(10).offset == -1
        wait_until(lambda: ends(way, topic, 3)[0] == 1)


def test_acks_fsync_is_answered(way: dict[str, Any], topic: str) -> None:
    with Producer(way, acks="fsync") as producer:
        assert producer.send(topic, b"x", partition=0).result(10).offset == 0


def test_a_record_that_is_too_large_is_refused_at_once(way: dict[str, Any], topic: str) -> None:
    with Producer(way) as producer, pytest.raises(MessageSizeTooLargeError, match="max_request_size"):
        producer.send(topic, bytes(1 << 20))
    with Producer(way, max_request_size=2048) as small:
        with pytest.raises(MessageSizeTooLargeError):
            small.send_many(topic, [b"x", bytes(4096)])
        assert small.send(topic, bytes(1024)).result(10).serialized_value_size == 1024


def test_a_batch_above_the_topics_own_limit_fails_with_its_name(way: dict[str, Any], topic: str) -> None:
    make_topic(way, topic + "-small", 1, **{"max.message.bytes": 1024, "segment.bytes": 65_536})
    with Producer(way) as producer:
        future = producer.send(topic + "-small", bytes(5000))
        with pytest.raises(MessageSizeTooLargeError, match=r"at most 1024 .*max\.message\.bytes on the topic"):
            future.result(10)


def test_batches_are_cut_to_what_the_topic_takes(way: dict[str, Any], topic: str) -> None:
    topic += "-small"
    make_topic(way, topic, 1, **{"max.message.bytes": 20_000, "segment.bytes": 65_536})
    values = [b"%05d" % number * 20 for number in range(3_000)]
    with Producer(way, linger_ms=20) as producer:
        sent = producer.send_many(topic, values).result(20)
        assert sum(one.record_count for one in sent) == len(values)
        assert len(sent) < 2 * len(values) * 100 / 20_000
        emit = producer.sender(topic)
        for value in values:
            emit(value)
        assert producer.flush() == 0
        large = [bytes(100), bytes(15_000), bytes(6_000)]  # each fits, but not all in one batch
        for future in [producer.send(topic, value) for value in [*values, *large]]:
            assert future.exception(20) is None
    assert ends(way, topic, 1) == [3 * len(values) + len(large)]


def test_a_flush_with_acks_0_waits_for_what_a_full_lane_has_no_room_for(
    way: dict[str, Any], topic: str, broker: Broker
) -> None:
    values = [bytes(1_000)] * 40_000
    with Producer(way, acks=0, buffer_memory=256 << 20) as producer:
        producer.send(topic, b"first", partition=0)
        assert producer.flush() == 0
        leader = leader_of(way, topic)
        pid = broker.signal(leader, signal.SIGSTOP)
        try:
            wait_until_stopped(pid)
            producer.send_many(topic, values, partition=0)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert producer.flush() == 0
        wait_until(lambda: ends(way, topic, 1) == [1 + len(values)], what="all of it in the log")


def test_serializers_are_applied(way: dict[str, Any], topic: str) -> None:
    settings: dict[str, Any] = {"value_serializer": str.encode, "key_serializer": lambda key: b"%d" % key}
    with Producer(way, **settings) as producer:
        metadata = producer.send(topic, "äöü", 12345).result(10)
        assert (metadata.serialized_key_size, metadata.serialized_value_size) == (5, 6)
        producer.sender(topic)("x", 1)
        assert producer.send_many(topic, ["a", "b"], [1, 2]).exception(10) is None


def test_send_many_makes_batches_of_about_one_size(way: dict[str, Any], topic: str) -> None:
    with Producer(way) as producer:
        found = producer.send_many(topic, [bytes(1_000)] * 700, partition=0).result(20)
        few = producer.send_many(topic, [bytes(1_000)] * 700, partition=1).result(20)
    with Producer(way, buffer_memory=1 << 20, max_request_size=1 << 17) as small:
        smaller = small.send_many(topic, [bytes(1_000)] * 700, partition=0).result(20)
    sizes = [part.record_count for part in found]
    assert sum(sizes) == sum(part.record_count for part in few) == sum(part.record_count for part in smaller) == 700
    assert len(sizes) == 2
    assert max(sizes) - min(sizes) <= 1
    assert len(smaller) > len(sizes)


def test_send_many_in_a_callback_does_not_wait_for_those_before_it(way: dict[str, Any], topic: str) -> None:
    values, sent = [bytes(1_000)] * 8_000, []
    with Producer(way) as producer:
        first = producer.send_many(topic, values, partition=0)
        first.add_done_callback(lambda _: sent.append(producer.send_many(topic, values, partition=0)))
        first.result(20)
        wait_until(lambda: bool(sent))
        assert sum(part.record_count for part in sent[0].result(20)) == 8_000
    assert ends(way, topic, 1) == [16_000]


def test_many_threads_share_one_producer(way: dict[str, Any], topic: str) -> None:
    with Producer(way) as producer:

        def work() -> None:
            for _ in range(300):
                producer.send(topic, b"x" * 50)
            producer.send(topic, b"last").result(20)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(ends(way, topic, 3)) == 4 * 301


def test_batches_are_cut_to_what_the_broker_takes_of_topics_that_say_nothing() -> None:
    config = {"topics": {"max_message_bytes": 64 << 10}}
    with Broker(workers=1, config=config) as broker, Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        sent = producer.send_many("t", [bytes(1_000)] * 500).result(20)
        assert sum(one.record_count for one in sent) == 500


def test_an_unknown_topic_is_named_where_it_may_not_be_created() -> None:
    settings = {"broker": {"auto_create_topics_enable": False}}
    with (
        Broker(workers=1, config=settings) as broker,
        Producer(bootstrap_servers=broker.bootstrap_servers) as producer,
        pytest.raises(UnknownTopicOrPartitionError, match="nowhere"),
    ):
        producer.send("nowhere", b"x")


def test_nobody_answers_at_an_empty_directory() -> None:
    with pytest.raises(BrokerNotAvailableError, match="zbroker serve"):
        Producer(bootstrap_servers="ipc:///dev/shm/no-such-broker")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"linger_msec": 5}, "linger_ms"),
        ({"acks": "some"}, "acks"),
        ({"compression_type": "brotli"}, "compression_type"),
        ({"batch_size": 0}, "batch_size"),
        ({"bootstrap_servers": "localhost:9092"}, "ipc://RUN_DIR"),
        ({"bootstrap_servers": "ipc://relative"}, "absolute"),
        ({"partitioner": "random"}, "partitioner"),
    ],
)
def test_a_bad_setting_is_named(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Producer(settings)


def test_settings_may_be_written_as_kafka_writes_them(broker: Broker) -> None:
    config = {"bootstrap.servers": broker.bootstrap_servers, "linger.ms": 3, "batch.size": 1000}
    with Producer(config, linger_ms=4) as producer:
        assert (producer.settings.linger_ms, producer.settings.batch_size) == (4, 1000)


def test_a_closed_producer_says_so(broker: Broker) -> None:
    producer = Producer(bootstrap_servers=broker.bootstrap_servers)
    future = producer.send("closed", b"x")
    producer.close()
    producer.close()
    assert future.result(0).offset == 0, "close() delivers what was queued"
    with pytest.raises(ClosedError):
        producer.send("closed", b"x")
    with pytest.raises(ClosedError):
        producer.flush()


def test_a_producer_belongs_to_its_process(broker: Broker) -> None:
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        producer.send("forked", b"x").result(10)
        with pytest.raises(TypeError, match="one per process"):
            pickle.dumps(producer)
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                producer.flush()
            except ForkError as error:
                os.write(write_end, str(error).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(write_end)
        said = os.read(read_end, 1000).decode()
        os.close(read_end)
        assert f"pid {os.getpid()}" in said
        assert "post_fork" in said
        assert producer.send("forked", b"y").result(10).offset == 1, "the parent's producer is untouched"


def test_a_wait_for_an_answer_ends_with_its_time(broker: Broker) -> None:
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        producer.send("stopped", b"x").result(10)
        with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
            leader = admin.describe_topics(["stopped"])["stopped"].partitions[0].leader_name
        assert leader is not None
        pid = broker.signal(leader, signal.SIGSTOP)
        try:
            wait_until_stopped(pid)
            future = producer.send("stopped", b"y")
            with pytest.raises(TimeoutError_):
                future.result(0.2)
            assert not future.done()
        finally:
            broker.signal(leader, signal.SIGCONT)
        assert future.result(20).offset == 1
