"""Outbox, Inbox and SqliteSink with a real broker and processes that are killed (S-168, S-170, F-33, U-19)."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.conditions import wait_until
from tests.consuming import broker_with_tcp, fill, make_topic, numbers, read_records
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.errors import DirectoryLockedError, MessageSizeTooLargeError, OffsetOutOfRangeError
from zbroker.ids import TopicPartition
from zbroker.patterns import Inbox, Outbox, OutboxRelay, SqliteSink
from zbroker.record.records import ConsumerRecord
from zbroker.testing import Broker

Record = ConsumerRecord[Any, Any]


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(workers=2)
    with broker:
        yield broker, address


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "database"


@pytest.fixture
def database(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, timeout=30, check_same_thread=False)
    yield connection
    connection.close()


def killed_on_the_way(command: list[str], progress: Callable[[], int], total: int, seed: int) -> None:
    """Start a process, and kill it when it has come some way further, six times; let the last one finish."""
    rng = random.Random(seed)
    for target in [*sorted(rng.sample(range(1, total * 9 // 10), 6)), total]:
        process = subprocess.Popen(command)
        try:
            wait_until(lambda: progress() >= target, timeout_s=60, what=f"seed {seed}: {target} of {total}")  # noqa: B023
        finally:
            process.kill()
            process.wait(10)


# --- outbox ----------------------------------------------------------------------------------------------------------


def all_records(way: dict[str, Any], topic: str, count: int) -> list[Record]:
    with Consumer(topic, way, auto_offset_reset="earliest") as consumer:
        found = read_records(consumer, count)
        assert sum(consumer.end_offsets(consumer.assignment()).values()) == count, "more than was written"
        return found


def test_u19_committed_messages_are_published_in_order_with_all_they_have(
    way: dict[str, Any], topic: str, database: sqlite3.Connection, path: Path
) -> None:
    outbox = Outbox(database)
    with database:
        for index in range(1_200):
            outbox.send(topic, b"%d" % index, b"k%d" % (index % 7))
    with database:
        last = outbox.send(topic, None, headers=[("kind", b"none"), ("empty", None)], partition=2)
    with Producer(way) as producer, OutboxRelay(path, producer) as relay:
        while relay.publish():
            pass
    assert outbox.waiting() == 0
    found = all_records(way, topic, 1_201)
    by_key: dict[bytes | None, list[int]] = {}
    for record in found:
        if record.value is not None:
            by_key.setdefault(record.key, []).append(int(record.value or b""))
    assert all(values == sorted(values) for values in by_key.values())
    assert sorted(chain.from_iterable(by_key.values())) == list(range(1_200))
    (special,) = [record for record in found if record.value is None]
    assert special.partition == 2
    assert special.headers == (("kind", b"none"), ("empty", None), ("zbroker-id", f"{outbox.name}:{last}".encode()))


def test_a_relay_that_runs_sees_commits_of_others_and_is_alone(
    way: dict[str, Any], topic: str, database: sqlite3.Connection, path: Path
) -> None:
    outbox = Outbox(database)
    with Producer(way) as producer, OutboxRelay(path, producer) as relay:
        with pytest.raises(DirectoryLockedError):
            OutboxRelay(path, producer)
        thread = threading.Thread(target=relay.run)
        thread.start()
        try:
            for index in range(3):
                with database:
                    outbox.send(topic, b"%d" % index, b"key")
                wait_until(lambda: outbox.waiting() == 0, what="publishing")
        finally:
            relay.stop()
            thread.join(20)
    assert [record.value for record in all_records(way, topic, 3)] == [b"0", b"1", b"2"]


def test_what_can_never_be_published_ends_the_relay_and_holds_back_what_follows(
    served: tuple[Broker, str], topic: str, way: dict[str, Any], database: sqlite3.Connection, path: Path
) -> None:
    outbox = Outbox(database)
    with database:
        outbox.send(topic, b"first", b"key")
    with Producer(way) as producer, OutboxRelay(path, producer) as relay:
        relay.publish()
        with database:
            outbox.send(topic, b"x" * 2_000_000, b"key")
            outbox.send(topic, b"behind", b"key")
        with pytest.raises(MessageSizeTooLargeError):
            relay.run()
    assert outbox.waiting() == 2
    assert [record.value for record in all_records(way, topic, 1)] == [b"first"]


_RELAY = """
import sys
from zbroker import Producer
from zbroker.patterns import OutboxRelay
servers, path = sys.argv[1:]
with Producer(bootstrap_servers=servers) as producer, OutboxRelay(path, producer) as relay:
    relay.run()
"""


def test_u19_a_relay_that_is_killed_publishes_each_message_once(
    served: tuple[Broker, str], database: sqlite3.Connection, path: Path
) -> None:
    broker, _ = served
    way = {"bootstrap_servers": broker.bootstrap_servers}
    topic = "outbox"
    make_topic(way, topic, 3)
    outbox = Outbox(database)
    total = 12_000
    for first in range(0, total, 100):
        with database:
            for number in range(first, first + 100):
                outbox.send(topic, b"%d" % number, b"k%d" % (number % 5))
    command = [sys.executable, "-c", _RELAY, broker.bootstrap_servers, str(path)]
    killed_on_the_way(command, lambda: total - outbox.waiting(), total, seed=1)
    by_key: dict[bytes | None, list[int]] = {}
    for record in all_records(way, topic, total):
        by_key.setdefault(record.key, []).append(int(record.value or b""))
    assert sorted(chain.from_iterable(by_key.values())) == list(range(total))
    assert all(values == sorted(values) for values in by_key.values())


# --- inbox -----------------------------------------------------------------------------------------------------------


def test_s168_what_comes_again_has_no_second_effect(way: dict[str, Any], topic: str, path: Path) -> None:
    fill(way, topic, numbers(50))
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE effects (value BLOB)")
    inbox = Inbox(connection)
    for _ in range(2):
        with Consumer(topic, way, auto_offset_reset="earliest") as consumer:
            for record in read_records(consumer, 50):
                with connection:
                    if inbox.accept(record):
                        connection.execute("INSERT INTO effects VALUES (?)", (record.value,))
    assert connection.execute("SELECT count(*), count(DISTINCT value) FROM effects").fetchone() == (50, 50)
    connection.close()


# --- sink ------------------------------------------------------------------------------------------------------------


def make_effects(database: sqlite3.Connection) -> Callable[[Record], None]:
    with database:
        database.execute("CREATE TABLE IF NOT EXISTS effects (partition INTEGER, offset INTEGER, value BLOB)")

    def write(record: Record) -> None:
        row = (record.partition, record.offset, record.value)
        database.execute("INSERT INTO effects VALUES (?, ?, ?)", row)

    return write


def effects(database: sqlite3.Connection) -> list[tuple[int, int]]:
    return database.execute("SELECT partition, offset FROM effects ORDER BY partition, offset").fetchall()


def write_until(sink: SqliteSink[Any, Any], write: Any, count: int) -> None:
    done = 0
    deadline_s = time.monotonic() + 20
    while done < count:
        assert time.monotonic() < deadline_s, f"{done} of {count}"
        done += sink.write_some(write, timeout_ms=200)


@pytest.mark.parametrize("grouped", [False, True])
def test_f33_the_database_says_where_reading_goes_on(
    way: dict[str, Any], topic: str, database: sqlite3.Connection, grouped: bool
) -> None:
    settings: dict[str, Any] = {**way, "auto_offset_reset": "earliest"}
    if grouped:
        settings["group_id"] = topic
    write = make_effects(database)
    fill(way, topic, numbers(30))
    with Consumer(topic, settings) as consumer:
        write_until(SqliteSink(consumer, database), write, 30)
    fill(way, topic, numbers(10))
    with Consumer(topic, settings) as consumer:
        write_until(SqliteSink(consumer, database), write, 10)
        if grouped:
            consumer.commit({TopicPartition(topic, 0): 5})
    with Consumer(settings) as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        sink = SqliteSink(consumer, database)
        assert consumer.position(TopicPartition(topic, 0)) == 40
        assert sink.write_some(write, timeout_ms=100) == 0
    assert effects(database) == [(0, offset) for offset in range(40)]


def test_a_failure_leaves_no_effect_and_the_record_comes_again(
    way: dict[str, Any], topic: str, database: sqlite3.Connection
) -> None:
    fill(way, topic, numbers(20))
    write = make_effects(database)

    def fail(record: Record) -> None:
        write(record)
        if record.offset == 15:
            raise ValueError("no")

    with Consumer(topic, way, auto_offset_reset="earliest") as consumer:
        sink = SqliteSink(consumer, database)
        with pytest.raises(ValueError, match="no"):
            sink.run(fail)
        assert effects(database) == []
        write_until(sink, write, 20)
    assert effects(database) == [(0, offset) for offset in range(20)]


def test_one_that_was_replaced_writes_nothing(way: dict[str, Any], topic: str, database: sqlite3.Connection) -> None:
    fill(way, topic, numbers(20))
    write = make_effects(database)
    settings = {**way, "auto_offset_reset": "earliest", "max_poll_records": 10}
    with Consumer(topic, settings) as old, Consumer(topic, settings) as new:
        sink, successor = SqliteSink(old, database), SqliteSink(new, database)
        write_until(sink, write, 10)
        write_until(successor, write, 10)
        assert sink.write_some(write, timeout_ms=5_000) == 0, "these ten were written by the other one"
        fill(way, topic, numbers(5))
        write_until(sink, write, 5)
    assert effects(database) == [(0, offset) for offset in range(25)]


def test_without_a_place_and_without_a_policy_nothing_is_read(
    way: dict[str, Any], topic: str, database: sqlite3.Connection
) -> None:
    with Consumer(topic, way, auto_offset_reset="none") as consumer:
        sink = SqliteSink(consumer, database)
        with pytest.raises(OffsetOutOfRangeError, match="auto_offset_reset is 'none'"):
            sink.write_some(lambda _: None, timeout_ms=5_000)


def test_latest_begins_at_the_end_once(way: dict[str, Any], topic: str, database: sqlite3.Connection) -> None:
    write = make_effects(database)
    fill(way, topic, numbers(10))
    with Consumer(topic, way) as consumer:
        sink = SqliteSink(consumer, database)
        wait_until(lambda: sink.write_some(write, timeout_ms=50) == 0 and len(consumer.assignment()) == 3)
    fill(way, topic, numbers(10))
    with Consumer(topic, way) as consumer:
        write_until(SqliteSink(consumer, database), write, 10)
    assert effects(database) == [(0, offset) for offset in range(10, 20)]


_SINK = """
import sqlite3, sys, time
from zbroker import Consumer
from zbroker.patterns import SqliteSink
servers, topic, path = sys.argv[1:]
database = sqlite3.connect(path, timeout=30)
def write(record):
    time.sleep(0.0005)  # so that most kills come in the middle of a transaction
    database.execute("INSERT INTO effects VALUES (?, ?, ?)", (record.partition, record.offset, record.value))
with Consumer(topic, bootstrap_servers=servers, group_id=topic, auto_offset_reset="earliest",
              max_poll_records=20) as consumer:
    SqliteSink(consumer, database).run(write)
"""


def test_f33_each_effect_is_there_once_after_any_number_of_kills(
    served: tuple[Broker, str], database: sqlite3.Connection, path: Path
) -> None:
    broker, _ = served
    way = {"bootstrap_servers": broker.bootstrap_servers}
    topic = "sink"
    make_topic(way, topic, 2)
    for partition in range(2):
        fill(way, topic, numbers(500), partition=partition)
    make_effects(database)
    command = [sys.executable, "-c", _SINK, broker.bootstrap_servers, topic, str(path)]
    killed_on_the_way(command, lambda: len(effects(database)), 1_000, seed=3)
    assert effects(database) == [(partition, offset) for partition in range(2) for offset in range(500)]
