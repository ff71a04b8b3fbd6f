"""Leaders that die under a producer: no error reaches the user, and what was acknowledged is there, in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conditions import wait_until
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.batches import SendFuture
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.ids import TopicPartition
from zbroker.testing import Broker

DEATHS = 3


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker(workers=1) as found:
        with AdminClient(bootstrap_servers=found.bootstrap_servers) as admin:
            admin.create_topics([NewTopic("t", 2)])
        yield found


def stored(broker: Broker, partition: int) -> list[bytes | None]:
    with Consumer(bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest") as consumer:
        part = TopicPartition("t", partition)
        consumer.assign([part])
        found: list[bytes | None] = []
        while len(found) < consumer.end_offsets([part])[part]:
            for records in consumer.poll(timeout_ms=1000).values():
                found += [record.value for record in records]
        return found


def kill_under(producer: Producer[Any, Any], broker: Broker, name: str) -> dict[int, list[SendFuture]]:
    """Send to both partitions until a process was killed some times; the futures of each partition."""
    futures: dict[int, list[SendFuture]] = {0: [], 1: []}
    is_over = threading.Event()

    def send() -> None:
        while not is_over.is_set():
            for partition, sent in futures.items():
                sent.append(producer.send("t", b"%d" % len(sent), partition=partition))
            time.sleep(0.0005)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        for _ in range(DEATHS):
            mark = len(futures[0]) + 20
            wait_until(lambda mark=mark: len(futures[0]) > mark and futures[0][mark].done())  # type: ignore[misc]
            broker.wait_for_restart(name, broker.kill(name))
    finally:
        is_over.set()
        thread.join()
    return futures


@pytest.mark.parametrize("transport", ["shm", "zmq"])
@pytest.mark.parametrize("name", ["worker-0", "router", "coordinator"])
def test_no_death_of_a_process_reaches_the_user_and_nothing_acknowledged_is_lost(
    broker: Broker, transport: str, name: str
) -> None:
    with Producer(bootstrap_servers=broker.bootstrap_servers, transport=transport) as producer:
        futures = kill_under(producer, broker, name)
        offsets = {partition: [future.result(60).offset for future in sent] for partition, sent in futures.items()}
    for partition, found in offsets.items():
        values = stored(broker, partition)
        assert [values[offset] for offset in found] == [b"%d" % number for number in range(len(found))]
        assert found == sorted(found)
