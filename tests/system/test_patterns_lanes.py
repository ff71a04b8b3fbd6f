"""KeyLanes with a real broker: the order of keys, what is committed, errors, partitions that go, and a kill (F-16)."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conditions import wait_until
from tests.consuming import broker_with_tcp, fill, numbers
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.errors import ConfigError
from zbroker.ids import TopicPartition
from zbroker.patterns import KeyLanes
from zbroker.record.records import ConsumerRecord
from zbroker.testing import Broker

Record = ConsumerRecord[Any, Any]


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(workers=2)
    with broker:
        yield broker, address


def member(way: dict[str, Any], topic: str, **settings: Any) -> Consumer[Any, Any]:
    return Consumer(topic, way, group_id=topic, enable_auto_commit=False, auto_offset_reset="earliest", **settings)


def write(way: dict[str, Any], topic: str, keys: list[bytes | None]) -> None:
    with Producer(way) as producer:
        for index, key in enumerate(keys):
            producer.send(topic, b"%d" % index, key, partition=0)


def committed(way: dict[str, Any], topic: str) -> int:
    with Consumer(way, group_id=topic) as reader:
        found = reader.committed(TopicPartition(topic, 0))
        return found.offset if found is not None else 0


def run_until(lanes: KeyLanes[Any, Any], work: Any, is_enough: Any) -> None:
    """Run the lanes in this thread; another one stops them."""

    def watch() -> None:
        try:
            wait_until(is_enough, what="the work")
        finally:
            lanes.stop()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        lanes.run(work)
    finally:
        watcher.join()


def test_f16_keys_keep_their_order_while_several_are_worked_on_at_once(way: dict[str, Any], topic: str) -> None:
    keys: list[bytes | None] = [b"k%d" % (index % 10) for index in range(500)]
    write(way, topic, keys)
    lock = threading.Lock()
    seen: dict[bytes | None, list[int]] = {}
    at_work: list[bytes | None] = []
    most = 0

    def work(record: Record) -> None:
        nonlocal most
        with lock:
            assert record.key not in at_work, "two records of a key at once"
            at_work.append(record.key)
            most = max(most, len(at_work))
        time.sleep(0.001)
        with lock:
            at_work.remove(record.key)
            seen.setdefault(record.key, []).append(record.offset)

    with member(way, topic) as consumer:
        run_until(KeyLanes(consumer, workers=4), work, lambda: sum(map(len, seen.values())) == 500)
    assert all(offsets == sorted(offsets) for offsets in seen.values())
    assert sorted(offset for offsets in seen.values() for offset in offsets) == list(range(500))
    assert 2 <= most <= 4
    assert committed(way, topic) == 500


def test_what_is_committed_stops_before_what_is_unfinished_and_others_go_on(way: dict[str, Any], topic: str) -> None:
    keys: list[bytes | None] = [b"slow" if index == 7 else None for index in range(200)]
    write(way, topic, keys)
    release = threading.Event()
    done: list[int] = []

    def work(record: Record) -> None:
        if record.key == b"slow":
            assert release.wait(30)
        done.append(record.offset)

    def others_are_done() -> bool:
        if len(done) == 199 and not release.is_set():
            wait_until(lambda: committed(way, topic) == 7, what="the commit before the slow one")
            release.set()
        return len(done) == 200

    with member(way, topic) as consumer:
        run_until(KeyLanes(consumer, workers=3), work, others_are_done)
    assert committed(way, topic) == 200


def test_no_more_than_the_limit_is_read_ahead(served: tuple[Broker, str], topic: str, way: dict[str, Any]) -> None:
    write(way, topic, [b"one"] * 300)
    release = threading.Event()
    done: list[int] = []

    def work(record: Record) -> None:
        assert release.wait(30)
        done.append(record.offset)

    with member(way, topic) as consumer:
        lanes = KeyLanes(consumer, workers=2, in_flight_max=20)
        positions: list[int] = []

        def is_enough() -> bool:
            if not release.is_set():
                owned = lanes._owned.get(TopicPartition(topic, 0))
                positions.append(0 if owned is None else len(owned.unfinished))
                if len(positions) > 100 and positions[-1] == 20:
                    release.set()
            return len(done) == 300

        run_until(lanes, work, is_enough)
    assert max(positions) == 20
    assert done == list(range(300)), "a single key is worked on in order"


def test_an_error_ends_the_run_and_its_record_comes_again(way: dict[str, Any], topic: str) -> None:
    write(way, topic, [None] * 50)

    def fail(record: Record) -> None:
        if record.offset == 20:
            raise ValueError("no")

    with member(way, topic) as consumer, pytest.raises(ValueError, match="no"):
        KeyLanes(consumer, workers=2).run(fail)
    assert committed(way, topic) <= 20
    failed: list[int] = []
    seen: list[int] = []

    def work(record: Record) -> None:
        seen.append(record.offset)
        fail(record)

    with member(way, topic) as consumer:
        lanes = KeyLanes(consumer, workers=2, on_error=lambda record, _: failed.append(record.offset))
        run_until(lanes, work, lambda: set(range(20, 50)) <= set(seen))
    assert failed == [20]
    assert committed(way, topic) == 50


def test_a_partition_goes_when_its_work_has_ended_and_nothing_is_done_twice(way: dict[str, Any], topic: str) -> None:
    with Producer(way) as producer:
        for index in range(600):
            producer.send(topic, b"%d" % index, b"k%d" % (index % 20), partition=index % 3)
    lock = threading.Lock()
    seen: list[tuple[str, int, int]] = []

    def run(name: str, lanes: KeyLanes[Any, Any]) -> threading.Thread:
        def work(record: Record) -> None:
            time.sleep(0.002)
            with lock:
                seen.append((name, record.partition, record.offset))

        thread = threading.Thread(target=lanes.run, args=(work,))
        thread.start()
        return thread

    with member(way, topic) as first, member(way, topic) as second:
        lanes = KeyLanes(first, workers=2)
        one = run("first", lanes)
        wait_until(lambda: len(seen) > 20, what="the first member's work")
        more = KeyLanes(second, workers=2)
        other = run("second", more)
        written = [200] * 3

        def has_second_worked() -> bool:
            """Until it has, there is always some work left for it."""
            for partition in range(3):
                fill(way, topic, numbers(10), partition)
                written[partition] += 10
            return any(name == "second" for name, *_ in list(seen))

        wait_until(has_second_worked, what="the second member's work")
        wait_until(lambda: len(seen) >= sum(written), what="all work")
        lanes.stop()
        more.stop()
        one.join(20)
        other.join(20)
    places = sorted(place[1:] for place in seen)
    assert places == sorted((partition, offset) for partition in range(3) for offset in range(written[partition]))


def test_a_consumer_that_commits_by_itself_is_refused(way: dict[str, Any], topic: str) -> None:
    with Consumer(topic, way, group_id=topic) as consumer, pytest.raises(ConfigError, match="enable_auto_commit"):
        KeyLanes(consumer)
    with Consumer(topic, way) as consumer, pytest.raises(ConfigError, match="group_id"):
        KeyLanes(consumer)


_WORKER = """
import sys, time
from zbroker import Consumer
from zbroker.patterns import KeyLanes
servers, topic, path = sys.argv[1:]
out = open(path, "a", buffering=1)
def work(record):
    time.sleep(0.001 * (record.offset % 5))
    out.write(f"{record.offset}\\n")
with Consumer(topic, bootstrap_servers=servers, group_id=topic, enable_auto_commit=False,
              auto_offset_reset="earliest") as consumer:
    KeyLanes(consumer, workers=4).run(work)
"""


def test_f16_a_killed_worker_leaves_nothing_out(served: tuple[Broker, str], topic: str, tmp_path: Path) -> None:
    broker, _ = served
    way = {"bootstrap_servers": broker.bootstrap_servers}
    count = 1_500
    write(way, topic, [b"k%d" % (index % 16) for index in range(count)])
    path = tmp_path / "done"
    path.touch()

    def done() -> list[int]:
        return [int(line) for line in path.read_text().split("\n")[:-1] if line]

    for target in (200, 500, 900, count):
        before = committed(way, topic)
        process = subprocess.Popen([sys.executable, "-c", _WORKER, broker.bootstrap_servers, topic, str(path)])
        try:
            wait_until(lambda: len(set(done())) >= target, timeout_s=60, what=f"{target} records")  # noqa: B023
        finally:
            process.kill()
            process.wait(10)
        finished = set(done())
        after = committed(way, topic)
        assert before <= after
        assert set(range(after)) <= finished, "a record was committed that is not finished"
    assert finished == set(range(count))
