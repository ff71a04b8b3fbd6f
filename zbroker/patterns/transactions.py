"""What the SQLite patterns share: a write that must be part of a transaction, and names of tables."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from zbroker.errors import IllegalTransition

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


def check_table_name(name: str) -> str:
    """The name, if it is one that needs no quotes. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a table: letters, digits and _, at most 63")
    return name


def check_in_transaction(connection: sqlite3.Connection) -> None:
    """Raise IllegalTransition where a write would be committed by itself, apart from what belongs to it."""
    if not connection.in_transaction and connection.isolation_level is None:
        raise IllegalTransition("no transaction is open: BEGIN one, or connect without isolation_level=None")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that can write from its beginning on: committed at the end, rolled back by an exception.

    Raises IllegalTransition inside another one, sqlite3.OperationalError when the database stays locked.
    """
    if connection.in_transaction:
        raise IllegalTransition("a transaction is open already: commit it first")
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    connection.commit()
