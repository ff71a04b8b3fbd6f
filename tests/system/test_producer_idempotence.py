"""Numbered producers against real processes that die: everything once, in order; names, fences, expected offsets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.test_producer_failover import kill_under, stored
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.producer import Producer
from zbroker.errors import ProducerFencedError, WrongExpectedOffsetError
from zbroker.testing import Broker


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker(workers=1) as found:
        with AdminClient(bootstrap_servers=found.bootstrap_servers) as admin:
            admin.create_topics([NewTopic("t", 2)])
        yield found


def connect(broker: Broker, **settings: Any) -> Producer[Any, Any]:
    return Producer(bootstrap_servers=broker.bootstrap_servers, **({"enable_idempotence": True} | settings))


@pytest.mark.parametrize("transport", ["shm", "zmq"])
@pytest.mark.parametrize("name", ["worker-0", "router", "coordinator"])
def test_t27_deaths_between_append_and_answer_store_nothing_twice(broker: Broker, transport: str, name: str) -> None:
    with connect(broker, transport=transport, request_timeout_ms=1_000) as producer:
        futures = kill_under(producer, broker, name)
        for sent in futures.values():
            assert [future.result(60).offset for future in sent] == list(range(len(sent)))
    for partition, sent in futures.items():
        assert stored(broker, partition) == [b"%d" % number for number in range(len(sent))]


def test_t27_a_producer_goes_on_numbering_after_the_whole_broker_was_killed(broker: Broker) -> None:
    with connect(broker) as producer:
        for number in range(3):
            assert producer.send("t", b"%d" % number, partition=0).result(30).offset == number
        broker.kill_all()
        broker.start()
        for number in range(3, 6):
            assert producer.send("t", b"%d" % number, partition=0).result(60).offset == number


def test_t27_of_two_producers_with_one_name_the_older_is_fenced(broker: Broker) -> None:
    with connect(broker, transactional_id="pay") as older, connect(broker, transactional_id="pay") as newer:
        older.send("t", b"old", partition=0).result(30)
        newer.send("t", b"new", partition=0).result(30)
        with pytest.raises(ProducerFencedError):
            older.send("t", b"late", partition=0).result(30)
        with pytest.raises(ProducerFencedError):
            older.send("t", b"later", partition=1)
    assert stored(broker, 0) == [b"old", b"new"]


def test_f02_a_name_is_known_to_every_producer_and_after_a_restart(broker: Broker) -> None:
    with connect(broker) as producer:
        first = producer.send("t", b"order", dedup_id="order-7").result(30)
    broker.restart()
    for _ in range(2):
        with connect(broker) as producer:
            again = producer.send("t", b"order", dedup_id="order-7").result(30)
            assert (again.partition, again.offset) == (first.partition, first.offset)
    assert stored(broker, first.partition) == [b"order"]
    assert stored(broker, 1 - first.partition) == []


def test_f04_f06_an_atomic_batch_at_the_expected_offset_and_at_no_other(broker: Broker) -> None:
    with connect(broker) as producer:
        batch = producer.send_many("t", [b"a", b"b"], partition=0, atomic=True, expected_offset=0).result(30)
        assert (batch[0].base_offset, batch[0].record_count) == (0, 2)
        with pytest.raises(WrongExpectedOffsetError):
            producer.send("t", b"late", partition=0, expected_offset=1).result(30)
        assert producer.send("t", b"c", partition=0, expected_offset=2).result(30).offset == 2
    assert stored(broker, 0) == [b"a", b"b", b"c"]
