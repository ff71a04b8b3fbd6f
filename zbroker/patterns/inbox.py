"""Each message has its effect once: its id is kept in the transaction of the effect.

    inbox = Inbox(connection)
    for record in consumer:
        with connection:                      # one transaction: the id and the effect
            if inbox.accept(record):
                connection.execute("UPDATE accounts ...")
        consumer.commit(record)

Guarantees: `accept` says yes at most once for an id, as far as the transaction around it is committed, whoever dies in
between and however many processes use the table (SQLite lets one transaction write at a time). With `keep_ms` ids older
than that are forgotten, and a message that comes later than that has its effect again.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Final

from zbroker.clock import Clock, HostClock
from zbroker.patterns.transactions import check_in_transaction, check_table_name
from zbroker.record.records import ConsumerRecord

ID_HEADER: Final = "zbroker-id"
"""The header that names a message, if it has one: records of an `Outbox` do."""
ACCEPTED_BETWEEN_CLEANINGS: Final = 1_000


def message_id(record: ConsumerRecord[Any, Any]) -> str:
    """What names a record wherever it is sent from: its header "zbroker-id", else the place where it lies."""
    for name, value in record.headers:
        if name == ID_HEADER and value is not None:
            return value.decode("utf-8", "surrogateescape")
    return f"{record.topic}:{record.partition}:{record.offset}"


class Inbox:
    """See the module. Belongs to one connection, and so to its thread."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        table: str = "zbroker_inbox",
        keep_ms: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Make the table unless it is there. `keep_ms` None: every id is kept for ever."""
        self._connection = connection
        self._keep_ms = keep_ms
        self._clock = clock or HostClock()
        name = check_table_name(table)
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS {name} (id TEXT PRIMARY KEY, accepted_ms INTEGER NOT NULL) WITHOUT ROWID"
        )
        connection.execute(f"CREATE INDEX IF NOT EXISTS {name}_by_time ON {name} (accepted_ms)")
        self._insert = f"INSERT OR IGNORE INTO {name} VALUES (?, ?)"
        self._delete = f"DELETE FROM {name} WHERE accepted_ms < ?"
        self._accepted = 0

    def accept(self, message: ConsumerRecord[Any, Any] | str) -> bool:
        """Whether this message, or this id, has not been accepted before; from now on, within this transaction, it is.

        Raises IllegalTransition when no transaction would hold it.
        """
        check_in_transaction(self._connection)
        now_ms = self._clock.wall_ms()
        identity = message if isinstance(message, str) else message_id(message)
        is_new = self._connection.execute(self._insert, (identity, now_ms)).rowcount == 1
        if is_new and self._keep_ms is not None:
            if self._accepted % ACCEPTED_BETWEEN_CLEANINGS == 0:
                self._connection.execute(self._delete, (now_ms - self._keep_ms,))
            self._accepted += 1
        return is_new
