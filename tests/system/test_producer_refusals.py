"""What a producer refuses, and that a refused record disturbs no other: each with its own error, at its own call."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conditions import wait_until
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.errors import (
    BufferFullError,
    ForkError,
    InvalidRecordError,
    MessageSizeTooLargeError,
    UnknownTopicOrPartitionError,
)
from zbroker.ids import TopicPartition
from zbroker.testing import Broker


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker(workers=1) as found:
        yield found


@pytest.fixture
def topic(broker: Broker, request: pytest.FixtureRequest) -> str:
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        admin.create_topics([NewTopic(name, 2)])
    return name


def read(broker: Broker, topic: str, partition: int = 0) -> list[bytes | None]:
    tp = TopicPartition(topic, partition)
    with Consumer(bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest") as consumer:
        consumer.assign([tp])
        end = consumer.end_offsets([tp])[tp]
        found: list[bytes | None] = []
        while len(found) < end:
            for records in consumer.poll(timeout_ms=1000).values():
                found += [record.value for record in records]
        return found


@pytest.mark.parametrize(
    ("value", "key", "words"),
    [("text", None, "value_serializer=str.encode"), (b"x", "text", "key_serializer"), (5, None, "not int")],
)
def test_what_is_not_bytes_is_refused_alone(broker: Broker, topic: str, value: Any, key: Any, words: str) -> None:
    with Producer(bootstrap_servers=broker.bootstrap_servers, linger_ms=60_000) as producer:
        before = producer.send(topic, b"before", b"k", partition=0)
        with pytest.raises(InvalidRecordError, match=words):
            producer.send(topic, value, key)
        with pytest.raises(InvalidRecordError, match=words):
            producer.send(topic, value, key, partition=0)
        after = producer.send(topic, b"after", b"k", partition=0)
        assert (before.result(10).offset, after.result(10).offset) == (0, 1)


def test_a_buffer_is_copied_when_it_is_sent(broker: Broker, topic: str) -> None:
    value = bytearray(b"as it was")
    with Producer(bootstrap_servers=broker.bootstrap_servers, linger_ms=60_000) as producer:
        producer.send(topic, value, partition=0)
        producer.send(topic, memoryview(value)[3:5], partition=0)
        value[:] = b"something"
    assert read(broker, topic) == [b"as it was", b"it"]


@pytest.mark.parametrize("partition", [-1, 2, 1000])
def test_a_partition_that_is_not_there_is_named(broker: Broker, topic: str, partition: int) -> None:
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        calls: list[Any] = [
            lambda: producer.send(topic, b"x", partition=partition),
            lambda: producer.send_many(topic, [b"x"], partition=partition),
            lambda: producer.sender(topic, partition=partition),
        ]
        builder = producer.create_batch(topic, partition=partition)
        assert builder.append(b"x")
        calls.append(lambda: producer.send_batch(builder))
        for call in calls:
            with pytest.raises(UnknownTopicOrPartitionError, match=f"partitions 0 to 1, not {partition}"):
                call()


def test_a_partition_added_meanwhile_is_found_when_it_is_named(broker: Broker, topic: str) -> None:
    with (
        Producer(bootstrap_servers=broker.bootstrap_servers) as producer,
        AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin,
    ):
        producer.send(topic, b"x").result(10)
        admin.create_partitions({topic: 4})
        assert producer.send(topic, b"x", partition=3).result(10).offset == 0
        assert producer.partitions_for(topic) == [0, 1, 2, 3]


def test_partitions_added_meanwhile_are_used_after_the_metadatas_age(broker: Broker, topic: str) -> None:
    with (
        Producer(bootstrap_servers=broker.bootstrap_servers, metadata_max_age_ms=20) as producer,
        AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin,
    ):
        producer.send(topic, b"x").result(10)
        admin.create_partitions({topic: 4})

        def sends_to_a_new_one() -> bool:
            return producer.send(topic, b"x", os.urandom(8)).result(10).partition >= 2

        wait_until(sends_to_a_new_one, what="a key's record in an added partition")


@pytest.mark.parametrize("answer", [-1, 2, None, "0"])
def test_a_partitioner_that_answers_nonsense_is_found_out(broker: Broker, topic: str, answer: Any) -> None:
    with Producer(bootstrap_servers=broker.bootstrap_servers, partitioner=lambda _key, _count: answer) as producer:
        with pytest.raises(InvalidRecordError, match="the partitioner answered"):
            producer.send(topic, b"x", b"k")
        assert producer.send(topic, b"x", partition=1).result(10).offset == 0


def test_columns_of_different_length_are_refused_whole(broker: Broker, topic: str) -> None:
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        for columns in ({"keys": [b"k"]}, {"headers": [()]}, {"timestamps_ms": [1, 2, 3]}):
            with pytest.raises(InvalidRecordError, match="2 values, but"):
                producer.send_many(topic, [b"a", b"b"], partition=0, **columns)
        assert producer.send(topic, b"x", partition=0).result(10).offset == 0, "nothing of them was sent"


def test_a_record_that_fits_into_no_batch_is_refused_by_the_builder(broker: Broker, topic: str) -> None:
    with Producer(bootstrap_servers=broker.bootstrap_servers, max_request_size=4096) as producer:
        builder = producer.create_batch(topic, partition=0)
        with pytest.raises(MessageSizeTooLargeError, match="a batch takes"):
            builder.append(bytes(4096))
        assert builder.append(b"small")
        assert producer.send_batch(builder).result(10)[0].record_count == 1


def test_a_batch_that_was_read_is_sent_on_as_it_is(broker: Broker, topic: str) -> None:
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        producer.send_many(topic, [b"a", None, b"c"], [b"k", None, b"m"], partition=0).result(10)
        with Consumer(bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest") as consumer:
            consumer.assign([TopicPartition(topic, 0)])
            batch = next(iter(consumer.batches(timeout_ms=10_000)))
            again = producer.send_batch(batch).result(10)
            batch.release()
        assert again[0][1:] == (0, 3, 3)
    assert read(broker, topic) == [b"a", None, b"c"] * 2


def test_a_callback_that_raises_disturbs_nobody(broker: Broker, topic: str, caplog: pytest.LogCaptureFixture) -> None:
    said: list[Any] = []

    def complain(*_: Any) -> None:
        raise RuntimeError("the callback's own fault")

    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        producer.send(topic, b"x", partition=0, on_delivery=complain)
        second = producer.send(topic, b"y", partition=0, on_delivery=lambda *outcome: said.append(outcome))
        assert second.result(10).offset == 1
        assert producer.flush(timeout_ms=10_000) == 0
    assert said[0][1] is None
    assert "the callback's own fault" in caplog.text


def test_a_full_buffer_names_the_setting(broker: Broker, topic: str) -> None:
    settings: dict[str, Any] = {"buffer_memory": 65_536, "max_request_size": 32_768, "max_block_ms": 100}
    with Producer(bootstrap_servers=broker.bootstrap_servers, **settings) as producer:
        producer.send(topic, b"x", partition=0).result(10)
        with producer._delivery.lock:
            producer._delivery.used_bytes += 100_000
        with pytest.raises(BufferFullError, match="buffer_memory"):
            producer.send(topic, b"y", partition=0)
        with producer._delivery.lock:
            producer._delivery.used_bytes -= 100_000
        assert producer.send(topic, b"z", partition=0).result(10).offset == 1


def test_a_send_in_a_forked_child_is_refused_at_once(broker: Broker, topic: str) -> None:
    with Producer(bootstrap_servers=broker.bootstrap_servers, linger_ms=60_000) as producer:
        producer.send(topic, b"x", partition=0)
        builder = producer.create_batch(topic, partition=0)
        builder.append(b"y")
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            refused = 0
            for call in (
                lambda: producer.send(topic, b"x"),
                lambda: producer.send(topic, b"x", partition=0),
                lambda: producer.send_many(topic, [b"x"]),
                lambda: producer.send_batch(builder),
                lambda: producer.sender(topic),
                lambda: producer.partitions_for(topic),
            ):
                try:
                    call()
                except ForkError:
                    refused += 1
            producer.close()
            os.write(write_end, b"%d" % refused)
            os._exit(0)
        os.waitpid(child, 0)
        os.close(write_end)
        assert os.read(read_end, 10) == b"6"
        os.close(read_end)
        assert producer.send(topic, b"y", partition=0).result(10).offset == 1, "the parent's producer is untouched"
