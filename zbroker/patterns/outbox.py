"""Messages that are sent if, and only if, the transaction that they belong to is committed.

    outbox = Outbox(connection)
    with connection:                          # one transaction: the order and its message
        connection.execute("INSERT INTO orders ...")
        outbox.send("orders", value, key)

and, in a process or thread of its own, `OutboxRelay(path, producer).run()` (see `outbox_relay`).

Guarantees: a message is a row of the user's own transaction, so that neither can be without the other. Messages of one
partition are published in the order of their transactions. Each record has a header "zbroker-id", which no other
message has: an `Inbox` at the other end drops what may come twice.
"""

from __future__ import annotations

import sqlite3
import uuid

import msgspec

from zbroker.patterns.transactions import check_in_transaction, check_table_name, transaction
from zbroker.record.records import Headers, header_tuple


class Outbox:
    """See the module. Belongs to one connection, and so to its thread."""

    def __init__(self, connection: sqlite3.Connection, *, table: str = "zbroker_outbox") -> None:
        """Make the tables unless they are there. Raises IllegalTransition inside a transaction."""
        self._connection = connection
        self.table = check_table_name(table)
        self.name = prepare(connection, self.table)
        """Names this outbox among all that publish to the broker."""
        self._insert = f"INSERT INTO {table} (topic, partition, key, value, headers) VALUES (?, ?, ?, ?, ?)"

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        *,
        headers: Headers = (),
        partition: int | None = None,
    ) -> int:
        """Have a message published when this transaction is committed. Returns its number.

        Without `partition` the relay chooses one by the key. Raises IllegalTransition where no transaction holds it.
        """
        check_in_transaction(self._connection)
        packed = msgspec.msgpack.encode(header_tuple(headers)) if headers else None
        number = self._connection.execute(self._insert, (topic, partition, key, value, packed)).lastrowid
        assert number is not None
        return number

    def waiting(self) -> int:
        """How many messages are committed, or sent in this transaction, and not published yet."""
        found: int = self._connection.execute(f"SELECT count(*) FROM {self.table}").fetchone()[0]
        return found


def prepare(connection: sqlite3.Connection, table: str) -> str:
    """Make the tables of an outbox unless they are there; its name."""
    with transaction(connection):
        # batch: rows that are published together, from before they are sent: what is sent again is sent the same way.
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS {table} (id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL,"
            " partition INTEGER, key BLOB, value BLOB, headers BLOB, batch INTEGER)"
        )
        connection.execute(f"CREATE INDEX IF NOT EXISTS {table}_by_batch ON {table} (batch, id)")
        connection.execute(f"CREATE TABLE IF NOT EXISTS {table}_name (name TEXT NOT NULL)")
        found = connection.execute(f"SELECT name FROM {table}_name").fetchone()
        if found is None:
            found = (uuid.uuid4().hex,)
            connection.execute(f"INSERT INTO {table}_name VALUES (?)", found)
    name: str = found[0]
    return name
