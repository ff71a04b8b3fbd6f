"""What the tests of consumers share: a broker that is reached in three ways, topics, and records to find again."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from typing import Any

from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.record.records import ConsumerRecord
from zbroker.testing import Broker

WAYS = ("shm", "zmq", "tcp")


def free_port() -> int:
    """A tcp port of the loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def broker_with_tcp(*, workers: int = 2, replicas: int = 0, **topics: object) -> tuple[Broker, str]:
    """A broker that is not started yet, and its tcp address."""
    address = f"tcp://127.0.0.1:{free_port()}"
    network = {"tcp_listen": address, "tcp_unauthenticated_loopback": True}
    storage = {"retention_check_interval_ms": 20}
    patient = {"hang_timeout_ms": 0}  # tests stop processes and let them go on
    config: dict[str, Any] = {"network": network, "storage": storage, "coordinator": patient, "topics": topics}
    return Broker(workers=workers, replicas=replicas, config=config), address


def settings_for(way: str, broker: Broker, tcp_address: str) -> dict[str, Any]:
    """The settings of a client that goes this way."""
    if way == "tcp":
        return {"bootstrap_servers": tcp_address}
    return {"bootstrap_servers": broker.bootstrap_servers, "transport": way}


def make_topic(settings: dict[str, Any], name: str, partitions: int = 1, factor: int = 1, **config: object) -> None:
    """Create a topic; its partitions have leaders afterwards."""
    with AdminClient(settings) as admin:
        admin.create_topics([NewTopic(name, partitions, factor, config=config)])


def fill(settings: dict[str, Any], topic: str, values: Iterable[bytes], partition: int = 0, batch: int = 10) -> None:
    """Write values in batches of `batch` records, acknowledged."""
    todo = list(values)
    with Producer(settings) as producer:
        for first in range(0, len(todo), batch):
            producer.send_many(topic, todo[first : first + batch], partition=partition).result(20)


def numbers(count: int, start: int = 0) -> list[bytes]:
    """Values that name their index."""
    return [b"%d" % index for index in range(start, start + count)]


def read_values(consumer: Consumer[Any, Any], count: int, timeout_ms: float = 20_000) -> list[Any]:
    """The values of the next `count` records, which must come within the time."""
    return [record.value for record in read_records(consumer, count, timeout_ms)]


def read_records(
    consumer: Consumer[Any, Any], count: int, timeout_ms: float = 20_000
) -> list[ConsumerRecord[Any, Any]]:
    """The next `count` records, which must come within the time."""
    found: list[ConsumerRecord[Any, Any]] = []
    while len(found) < count:
        more = consumer.consume(count - len(found), timeout_ms=timeout_ms)
        assert more, f"only {len(found)} of {count} records came"
        found += more
    return found


class Writing:
    """A producer in a thread: every acknowledged value of each partition, in order, without duplicates of its own."""

    def __init__(self, way: dict[str, Any], topic: str, partitions: int, **settings: Any) -> None:
        self._way = {**way, "request_timeout_ms": 1_000, **settings}
        self._topic = topic
        self._stop = threading.Event()
        self.sent: dict[int, list[bytes]] = {n: [] for n in range(partitions)}
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with Producer(self._way) as producer:
                index = 0
                while not self._stop.is_set():
                    partition, value = index % len(self.sent), b"%d" % index
                    producer.send(self._topic, value, partition=partition).result(60)
                    self.sent[partition].append(value)
                    index += 1
        except BaseException as error:
            self.error = error

    def end(self) -> int:
        """Stop, and give how many were acknowledged. Raises what the producer raised."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return sum(map(len, self.sent.values()))
