"""Exactly once into a SQLite database: what records do there, and how far reading has come, is one transaction.

    with sqlite3.connect("totals.db") as database, Consumer("orders", group_id="totals") as consumer:
        SqliteSink(consumer, database).run(lambda record: database.execute("UPDATE ...", ...))

Guarantees: each record's writes are in the database exactly once, whatever is killed when: reading begins where the
database says, not where the group does. A member that was replaced without noticing writes nothing: its transaction
finds that the place has moved on, and is rolled back. The group's own offsets follow, for those who look at its lag.

A topic that is deleted and made again under its name is another one: remove its rows (table `zbroker_offsets`) first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from typing import Any, Final, Generic, TypeVar

from zbroker.client.consumer import Consumer
from zbroker.errors import OffsetOutOfRangeError
from zbroker.ids import TopicPartition
from zbroker.patterns.transactions import check_table_name, transaction
from zbroker.record.records import ConsumerRecord

K = TypeVar("K")
V = TypeVar("V")

POLL_MS: Final = 200


class _MovedOnError(Exception):
    """The place of a partition is not where this consumer has read from."""


class SqliteSink(Generic[K, V]):
    """See the module. The connection and the consumer are used by the thread that calls; `stop` may come from any."""

    def __init__(
        self, consumer: Consumer[K, V], connection: sqlite3.Connection, *, table: str = "zbroker_offsets"
    ) -> None:
        """Make the table unless it is there. Raises IllegalTransition inside a transaction."""
        self._consumer = consumer
        self._connection = connection
        name = check_table_name(table)
        self._read = f"SELECT next_offset FROM {name} WHERE topic = ? AND partition = ?"
        self._begin = f"INSERT OR IGNORE INTO {name} VALUES (?, ?, ?)"
        self._advance = f"UPDATE {name} SET next_offset = ? WHERE topic = ? AND partition = ? AND next_offset = ?"
        self._places: dict[TopicPartition, int] = {}
        self._is_stopping = False
        with transaction(connection):
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {name} (topic TEXT NOT NULL, partition INTEGER NOT NULL,"
                " next_offset INTEGER NOT NULL, PRIMARY KEY (topic, partition)) WITHOUT ROWID"
            )
        consumer.add_listener(self)
        self.on_partitions_assigned(consumer.assignment())

    def run(self, write: Callable[[ConsumerRecord[K, V]], Any]) -> None:
        """Call `write` for each record, inside a transaction, until `stop`. It must not commit.

        Raises what `write` and `poll` raise: nothing of that transaction is in the database then.
        """
        self._is_stopping = False
        while not self._is_stopping:
            self.write_some(write, timeout_ms=POLL_MS)

    def stop(self) -> None:
        """Have `run` return after the transaction that is under way. Any thread, or a signal handler."""
        self._is_stopping = True
        self._consumer.wakeup()

    def write_some(self, write: Callable[[ConsumerRecord[K, V]], Any], *, timeout_ms: float = 0) -> int:
        """Poll once, and write what came in one transaction. Returns how many records it has written."""
        found = self._consumer.poll(timeout_ms=timeout_ms)
        if not found:
            return 0
        try:
            with transaction(self._connection):
                for tp, records in found.items():
                    self._move(tp, records[-1].offset + 1)
                    for record in records:
                        write(record)
        except _MovedOnError:
            self._go_back(found)
            return 0
        except BaseException:
            self._go_back(found)
            raise
        for tp, records in found.items():
            self._places[tp] = records[-1].offset + 1
        if self._consumer.settings.group_id is not None:
            self._consumer.commit_async({tp: self._places[tp] for tp in found})
        return sum(map(len, found.values()))

    def _move(self, tp: TopicPartition, offset: int) -> None:
        if self._connection.execute(self._advance, (offset, *tp, self._places.get(tp, -1))).rowcount != 1:
            raise _MovedOnError(tp)

    def _go_back(self, partitions: Collection[TopicPartition]) -> None:
        """Read again from where the database says."""
        self.on_partitions_assigned([tp for tp in partitions if tp in self._consumer.assignment()])

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """See RebalanceListener. Reading begins where the database says; in a partition that it does not know, where
        `auto_offset_reset` says, and the database knows that from now on."""
        unknown = [tp for tp in assigned if self._connection.execute(self._read, tp).fetchone() is None]
        if unknown:
            policy = self._consumer.settings.auto_offset_reset
            if policy == "none":
                raise OffsetOutOfRangeError(f"{unknown[0]}: not in the database, and auto_offset_reset is 'none'")
            ends = self._consumer.end_offsets if policy == "latest" else self._consumer.beginning_offsets
            starts = ends(unknown)
            with transaction(self._connection):
                self._connection.executemany(self._begin, [(*tp, offset) for tp, offset in starts.items()])
        for tp in assigned:
            self._places[tp] = self._connection.execute(self._read, tp).fetchone()[0]
            self._consumer.seek(tp, self._places[tp])

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """See RebalanceListener."""
        for tp in revoked:
            self._places.pop(tp, None)

    def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        """See RebalanceListener."""
        self.on_partitions_revoked(lost)
