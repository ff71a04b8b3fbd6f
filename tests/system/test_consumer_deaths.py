"""Consumers over the death of every process of the broker, and over its restart."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conditions import wait_until, wait_until_stopped
from tests.consuming import Writing, broker_with_tcp, fill, make_topic, numbers, read_values, settings_for
from zbroker.client.consumer import Consumer
from zbroker.client.local_partition import LocalPartition
from zbroker.ids import TopicPartition
from zbroker.testing import Broker

TOPIC = "t"


@pytest.fixture
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(workers=2, segment_bytes=65_536, max_message_bytes=60_000)
    with broker:
        make_topic(settings_for("zmq", broker, address), TOPIC, 4)
        yield broker, address


@pytest.fixture(params=["shm", "zmq"])
def way(request: pytest.FixtureRequest, served: tuple[Broker, str]) -> dict[str, Any]:
    return settings_for(request.param, *served)


def without_repeats(values: list[Any]) -> list[Any]:
    """A send that was tried again after a death may be there twice, at once or a little later; never out of order."""
    return list(dict.fromkeys(values))


def read_until(consumer: Consumer[Any, Any], found: dict[int, list[Any]], is_done: Any, timeout_s: float = 40) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_done():
        assert time.monotonic() < deadline_s, f"read {[len(values) for values in found.values()]}"
        for tp, records in consumer.poll(timeout_ms=100).items():
            for record in records:
                assert record.offset == len(found[tp.partition]), "no offset twice, none left out"
                found[tp.partition].append(record.value)


@pytest.mark.parametrize("victim", ["worker-0", "coordinator", "router"])
def test_every_acknowledged_record_is_read_in_order_over_a_death(
    served: tuple[Broker, str], way: dict[str, Any], victim: str
) -> None:
    broker = served[0]
    found: dict[int, list[Any]] = {n: [] for n in range(4)}
    with Consumer(TOPIC, auto_offset_reset="earliest", **way) as consumer:
        writing = Writing(way, TOPIC, 4)
        try:
            for _ in range(2):
                goal = sum(map(len, found.values())) + 40
                read_until(consumer, found, lambda goal=goal: sum(map(len, found.values())) >= goal)
                old_pid = broker.kill(victim)
                broker.wait_for_restart(victim, old_pid)
            goal = sum(map(len, found.values())) + 40
            read_until(consumer, found, lambda: sum(map(len, found.values())) >= goal)
        finally:
            writing.end()
        read_until(consumer, found, lambda: all(set(writing.sent[n]) <= set(found[n]) for n in range(4)))
    for partition in range(4):
        assert without_repeats(found[partition]) == writing.sent[partition]


def test_what_is_there_is_read_while_the_coordinator_and_the_router_are_away(
    served: tuple[Broker, str],
) -> None:
    broker, address = served
    way = settings_for("shm", broker, address)
    fill(way, TOPIC, numbers(3000), batch=50)
    with Consumer(TOPIC, auto_offset_reset="earliest", metadata_max_age_ms=20, **way) as consumer:
        assert read_values(consumer, 10) == numbers(10)
        pids = [broker.signal(name, signal.SIGSTOP) for name in ("coordinator", "router")]
        try:
            assert read_values(consumer, 2990, timeout_ms=5_000) == numbers(2990, 10)
            consumer.seek((TOPIC, 0), 100)
            assert read_values(consumer, 5, timeout_ms=5_000) == numbers(5, 100)
        finally:
            for name in ("coordinator", "router"):
                assert broker.signal(name, signal.SIGCONT) in pids


def test_a_consumer_goes_on_after_the_whole_broker_was_killed_and_started_again(
    served: tuple[Broker, str], way: dict[str, Any]
) -> None:
    broker = served[0]
    fill(way, TOPIC, numbers(200))
    with Consumer(TOPIC, auto_offset_reset="earliest", **way) as consumer:
        assert read_values(consumer, 150) == numbers(150)
        broker.kill_all()
        broker.start()
        fill(way, TOPIC, numbers(50, 200))
        assert read_values(consumer, 100, timeout_ms=40_000) == numbers(100, 150)


def test_a_partition_that_its_new_leader_shows_late_is_looked_for_again(
    served: tuple[Broker, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the death of all, the metadata may name a leader whose board does not show the partition yet."""
    broker = served[0]
    way = settings_for("shm", *served)
    late: set[int] = set()

    class ShownLate(LocalPartition):
        def __init__(self, tp: TopicPartition, *others: Any, **more: Any) -> None:
            if tp.partition in late:
                late.remove(tp.partition)
                raise LookupError(tp)
            super().__init__(tp, *others, **more)

    monkeypatch.setattr("zbroker.client.fetcher.LocalPartition", ShownLate)
    with Consumer(TOPIC, auto_offset_reset="earliest", **way) as consumer:
        for partition in range(4):
            fill(way, TOPIC, [b"before"], partition)
        assert read_values(consumer, 4) == [b"before"] * 4
        broker.kill_all()
        late |= {1, 3}
        broker.start()
        for partition in range(4):
            fill(way, TOPIC, [b"after"], partition)
        assert read_values(consumer, 4) == [b"after"] * 4
    assert not late, "nothing was shown late"


def test_a_first_answer_of_the_coordinator_that_comes_too_late_is_asked_for_again_in_time(
    served: tuple[Broker, str], way: dict[str, Any]
) -> None:
    broker = served[0]
    fill(way, TOPIC, numbers(3))
    with Consumer(TOPIC, auto_offset_reset="earliest", **way) as consumer, ThreadPoolExecutor(1) as reader:
        pid = broker.signal("coordinator", signal.SIGSTOP)
        try:
            wait_until_stopped(pid)
            reading = reader.submit(consumer.consume, 3, timeout_ms=60_000)
            wait_until(lambda: consumer._fetcher.topology._lost > 0, what="a question that is given up")
            broker.signal("coordinator", signal.SIGCONT)
            assert [record.value for record in reading.result(20)] == numbers(3)
        finally:
            broker.signal("coordinator", signal.SIGCONT)
            consumer.wakeup()
