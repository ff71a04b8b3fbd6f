"""A whole broker with three copies of a partition: its processes are killed under load, and everything that was
acknowledged is there afterwards, once, in order, and alike in every copy."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.conditions import wait_until
from zbroker import AdminClient, Consumer, Producer
from zbroker.check.copies import compare_copies
from zbroker.client.admin import NewTopic, PartitionDescription
from zbroker.testing import Broker

TOPIC = "pay"
CONFIG = {"min.insync.replicas": "2", "segment.bytes": "65536", "max.message.bytes": "16384"}
NAMES = ("worker-0", "worker-1", "replica-0")


class Load:
    """A producer that sends one numbered record after the other, each acknowledged before the next."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.admin = AdminClient(bootstrap_servers=broker.bootstrap_servers)
        self.admin.create_topics([NewTopic(TOPIC, 1, 3, config=CONFIG)])
        self.producer = Producer(bootstrap_servers=broker.bootstrap_servers, acks="all")
        self.count = 0

    def send(self, count: int) -> None:
        for _ in range(count):
            self.producer.send(TOPIC, b"%08d" % self.count + bytes(200)).result(timeout=30)
            self.count += 1

    def partition(self) -> PartitionDescription:
        return self.admin.describe_topics([TOPIC])[TOPIC].partitions[0]

    def leader_name(self) -> str:
        name = self.partition().leader_name
        assert name is not None
        return name

    def wait_in_sync(self, count: int = 3) -> None:
        wait_until(lambda: len(self.partition().isr) == count)

    def read(self) -> list[int]:
        found: list[int] = []
        consumer: Consumer[None, bytes] = Consumer(
            TOPIC, bootstrap_servers=self.broker.bootstrap_servers, auto_offset_reset="earliest"
        )
        with consumer:
            deadline = time.monotonic() + 30
            while len(found) < self.count and time.monotonic() < deadline:
                for records in consumer.poll(timeout_ms=100).values():
                    found += [int((record.value or b"")[:8]) for record in records]
        return found

    def check(self) -> None:
        """Everything is there once, in order, in every copy."""
        assert self.read() == list(range(self.count))
        self.wait_in_sync()
        assert self.partition().log_end == self.count
        roots = self.broker.paths.copies_dirs
        wait_until(lambda: not compare_copies(roots))

    def close(self) -> None:
        self.producer.close()
        self.admin.close()


@pytest.fixture
def load() -> Iterator[Load]:
    with Broker(workers=2, replicas=1) as broker:
        found = Load(broker)
        yield found
        found.close()


def test_kill_9_of_the_leader_loses_and_repeats_nothing(load: Load) -> None:
    load.send(50)
    for _ in range(4):
        load.wait_in_sync()
        name = load.leader_name()
        old = load.broker.kill(name)
        load.send(50)
        assert load.partition().leader_name != name or load.partition().leader_pid != old
        load.broker.wait_for_restart(name, old)
        load.send(20)
    load.check()


def test_kill_9_of_followers_holds_nobody_up_for_long(load: Load) -> None:
    load.send(50)
    for _ in range(3):
        load.wait_in_sync()
        leader = load.leader_name()
        name = next(one for one in NAMES if one != leader)
        old = load.broker.kill(name)
        load.send(50)
        load.broker.wait_for_restart(name, old)
    load.check()


def test_kill_9_of_everything_at_once_loses_nothing(load: Load) -> None:
    load.send(300)
    load.broker.kill_all()
    load.broker.start()
    load.send(50)
    load.check()


def test_kill_9_of_router_and_coordinator_does_not_stop_copying(load: Load) -> None:
    load.send(50)
    for name in ("router", "coordinator"):
        old = load.broker.kill(name)
        load.send(50)
        load.broker.wait_for_restart(name, old)
        load.send(20)
    load.check()
