"""Threads that share a producer: one that owns its batches, those that close them under it, and several that send."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.ids import TopicPartition
from zbroker.testing import Broker

RECORDS = 30_000


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker(workers=1) as found:
        yield found


def make_topic(broker: Broker, name: str, partitions: int) -> None:
    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        admin.create_topics([NewTopic(name, partitions)])


def stored(broker: Broker, topic: str, partitions: int) -> list[list[tuple[bytes | None, bytes | None]]]:
    found: list[list[tuple[bytes | None, bytes | None]]] = [[] for _ in range(partitions)]
    with Consumer(bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest") as consumer:
        named = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(named)
        end = sum(consumer.end_offsets(named).values())
        while sum(map(len, found)) < end:
            for part, records in consumer.poll(timeout_ms=1000).items():
                found[part.partition] += [(record.value, record.key) for record in records]
    return found


class Meddler:
    """Calls something again and again in a thread of its own while the test sends."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.calls = 0

    def _run(self) -> None:
        while not self._is_over.is_set():
            self._call()
            self.calls += 1

    def __enter__(self) -> Meddler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


@pytest.mark.parametrize("key", [None, b"one key"])
def test_batches_closed_by_another_thread_lose_and_repeat_nothing(broker: Broker, key: bytes | None) -> None:
    topic = f"closed-{key is None}"
    make_topic(broker, topic, 1)
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer, Meddler(producer.flush) as meddler:
        futures = [producer.send(topic, b"%d" % number, key) for number in range(RECORDS)]
        offsets = [future.result(30).offset for future in futures]
    assert meddler.calls > 5
    assert offsets == list(range(RECORDS))
    assert stored(broker, topic, 1)[0] == [(b"%d" % number, key) for number in range(RECORDS)]


def test_the_owner_of_batches_meets_other_senders(broker: Broker) -> None:
    make_topic(broker, "met", 2)
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        others: list[Any] = []

        def send_another() -> None:
            others.append(producer.send("met", b"other %d" % len(others), b"k"))

        with Meddler(send_another):
            mine = [producer.send("met", b"mine %d" % number, b"k") for number in range(RECORDS)]
        offsets = [future.result(30).offset for future in (*mine, *others)]
    assert sorted(offsets) == list(range(len(offsets)))
    assert offsets[:RECORDS] == sorted(offsets[:RECORDS])
    values = max(stored(broker, "met", 2), key=len)
    assert values == [
        value
        for _, value in sorted(
            [(offset, (b"mine %d" % number, b"k")) for number, offset in enumerate(offsets[:RECORDS])]
            + [(offset, (b"other %d" % number, b"k")) for number, offset in enumerate(offsets[RECORDS:])]
        )
    ]


def test_many_threads_that_send_to_one_partition_keep_each_ones_order(broker: Broker) -> None:
    make_topic(broker, "many", 1)
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:

        def send(name: int) -> None:
            for number in range(3_000):
                producer.send("many", b"%d %d" % (name, number))

        threads = [threading.Thread(target=send, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert producer.flush() == 0
    values = [value for value, _ in stored(broker, "many", 1)[0] if value is not None]
    for name in range(4):
        mine = [int(value.split()[1]) for value in values if value.startswith(b"%d " % name)]
        assert mine == list(range(3_000))


def test_a_batch_of_one_thread_is_owned_by_it_and_of_two_by_none(broker: Broker) -> None:
    make_topic(broker, "owned", 1)
    with Producer(bootstrap_servers=broker.bootstrap_servers, linger_ms=60_000) as producer:
        first = producer.send("owned", b"a")
        assert first._batch.owner == threading.get_ident()
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(producer.send("owned", b"b")))
        thread.start()
        thread.join()
        assert found[0]._batch is not first._batch
        assert found[0]._batch.owner == 0
        assert producer.send("owned", b"c")._batch is found[0]._batch
        assert producer.flush() == 0
    assert [value for value, _ in stored(broker, "owned", 1)[0]] == [b"a", b"b", b"c"]


class ClosedAround(list[Any]):
    """The values of an open batch that another thread closes just before, or just after, the next append."""

    def __init__(self, values: list[Any], close: Callable[[], None], is_before: bool) -> None:
        super().__init__(values)
        self._close, self._is_before = close, is_before

    def append(self, value: Any) -> None:
        if self._is_before:
            self._close()
        super().append(value)
        if not self._is_before:
            self._close()


@pytest.mark.parametrize("is_before", [True, False])
@pytest.mark.parametrize("key", [None, b"k"])
def test_a_record_appended_while_its_batch_is_closed_is_sent_once(
    broker: Broker, key: bytes | None, is_before: bool
) -> None:
    topic = f"around-{key is None}-{is_before}"
    make_topic(broker, topic, 1)
    with Producer(bootstrap_servers=broker.bootstrap_servers, linger_ms=60_000) as producer:
        first = producer.send(topic, b"a", key)
        batch = first._batch

        def close() -> None:
            with batch.queue.lock:
                batch.queue.close_open()

        batch.values = ClosedAround(batch.values, close, is_before)
        second = producer.send(topic, b"b", key)
        # With a key, a record is in the batch when its key is.
        assert (second._batch is batch) is (not is_before and key is None)
        assert [future.result(10).offset for future in (first, second)] == [0, 1]
    assert stored(broker, topic, 1)[0] == [(b"a", key), (b"b", key)]
