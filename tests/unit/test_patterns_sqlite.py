"""The SQLite patterns without a broker: what a table holds after commits, rollbacks, and time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from zbroker.clock import ManualClock
from zbroker.errors import IllegalTransition
from zbroker.patterns import Inbox, Outbox
from zbroker.patterns.inbox import message_id
from zbroker.patterns.transactions import transaction
from zbroker.record.records import ConsumerRecord


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "database")
    yield connection
    connection.close()


def record(offset: int, *headers: tuple[str, bytes | None]) -> ConsumerRecord[bytes, bytes]:
    return ConsumerRecord("orders", 3, offset, 0, 0, None, b"value", headers)


def test_s168_a_message_is_accepted_once_and_the_place_of_its_record_names_it(database: sqlite3.Connection) -> None:
    inbox = Inbox(database)
    with database:
        assert inbox.accept(record(7))
        assert not inbox.accept(record(7))
        assert inbox.accept(record(8))
    with database:
        assert not inbox.accept(record(7))


def test_a_header_names_a_message_wherever_it_lies() -> None:
    assert message_id(record(1, ("zbroker-id", b"a:1"))) == message_id(record(2, ("zbroker-id", b"a:1")))
    assert message_id(record(1, ("zbroker-id", None))) != message_id(record(2))


def test_what_is_rolled_back_was_not_accepted(database: sqlite3.Connection) -> None:
    inbox = Inbox(database)
    assert inbox.accept("one")
    database.rollback()
    with database:
        assert inbox.accept("one")


def test_two_connections_accept_a_message_once(database: sqlite3.Connection, tmp_path: Path) -> None:
    inbox = Inbox(database)
    other = sqlite3.connect(tmp_path / "database")
    try:
        with transaction(other):
            assert Inbox.accept(Inbox(other), "one")
        with database:
            assert not inbox.accept("one")
    finally:
        other.close()


def test_ids_are_kept_for_their_time_and_no_longer(database: sqlite3.Connection) -> None:
    clock = ManualClock()
    inbox = Inbox(database, keep_ms=1_000, clock=clock)
    with database:
        assert inbox.accept("old")
    clock.advance(1_001)
    fresh = Inbox(database, keep_ms=1_000, clock=clock)
    with database:
        assert fresh.accept("new")
        assert fresh.accept("old")
        assert not fresh.accept("new")


def test_nothing_is_written_where_no_transaction_would_hold_it(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "database", isolation_level=None)
    try:
        inbox, outbox = Inbox(connection), Outbox(connection)
        with pytest.raises(IllegalTransition):
            inbox.accept("one")
        with pytest.raises(IllegalTransition):
            outbox.send("orders", b"value")
        with transaction(connection):
            assert inbox.accept("one")
            outbox.send("orders", b"value")
        assert outbox.waiting() == 1
    finally:
        connection.close()


def test_s170_a_message_waits_if_and_only_if_its_transaction_was_committed(database: sqlite3.Connection) -> None:
    outbox = Outbox(database)
    outbox.send("orders", b"never")
    database.rollback()
    assert outbox.waiting() == 0
    with database:
        outbox.send("orders", b"value", b"key", headers={"kind": b"new"}, partition=2)
    assert outbox.waiting() == 1


def test_an_outbox_keeps_its_name_and_no_other_has_it(database: sqlite3.Connection, tmp_path: Path) -> None:
    name = Outbox(database).name
    assert Outbox(database).name == name
    assert Outbox(database, table="second").name != name


def test_a_name_of_a_table_is_no_place_for_more(database: sqlite3.Connection) -> None:
    for name in ("a b", "", "t; DROP TABLE t", "1t", "t" * 64):
        with pytest.raises(ValueError, match="no name of a table"):
            Outbox(database, table=name)


def test_a_transaction_inside_another_is_refused_and_leaves_that_one_open(database: sqlite3.Connection) -> None:
    database.execute("CREATE TABLE t (n INTEGER)")
    database.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(IllegalTransition), transaction(database):
        raise AssertionError("never reached")
    assert database.in_transaction
    database.rollback()
