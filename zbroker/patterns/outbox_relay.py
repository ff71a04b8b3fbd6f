"""Publishes the messages of an outbox: each one once in effect, in the order of their transactions.

Guarantees: a message leaves the table when the broker has acknowledged it, with the producer's `acks`. Before messages
are sent it is written down which of them go together and to which partition; sent again after a death, the same batch
has the same name, and the broker stores a name once within the topic's `dedup.window.ms`. Of a relay that was away for
longer in the very moment between the two, `Inbox` at the other end drops what came twice. One relay works on an outbox
at a time; a second one raises DirectoryLockedError. What the broker refuses is tried again, with growing pauses, for as
long as it takes.

A message that can never be published, one that is too large, ends `run` with its error: those behind it must not
overtake it. One for a topic that does not exist waits until it does.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import msgspec

from zbroker.client.partitioner import mmh3_of
from zbroker.client.producer import Producer
from zbroker.errors import BrokerError, DirectoryLockedError
from zbroker.patterns.inbox import ID_HEADER
from zbroker.patterns.outbox import prepare
from zbroker.patterns.transactions import check_table_name, transaction
from zbroker.record.records import Header

CLAIMED_MAX: Final = 5_000
BATCH_RECORDS_MAX: Final = 500
BATCH_BYTES_MAX: Final = 256 << 10
LOOK_S: Final = 0.02
RETRY_MAX_S: Final = 1.0
BUSY_TIMEOUT_S: Final = 30.0

_log = logging.getLogger(__name__)


class _Row(NamedTuple):
    number: int
    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: bytes | None


class OutboxRelay:
    """See the module. `run` belongs to one thread; `stop` may be called from any."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        producer: Producer[Any, Any],
        *,
        table: str = "zbroker_outbox",
        partition_of: Callable[[bytes, int], int] | None = None,
    ) -> None:
        """`partition_of(key, number of partitions)` chooses where a message goes that names no partition; None: as a
        producer's default, mmh3. Raises DirectoryLockedError when another relay has this outbox."""
        self._producer = producer
        self._table = check_table_name(table)
        self._partition_of = partition_of or (lambda key, count: mmh3_of(key) % count)
        self._stopping = threading.Event()
        self._lock_fd = _take_lock(Path(f"{os.fspath(path)}-{table}.lock"))
        try:
            self._connection = sqlite3.connect(
                path, isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False
            )
        except BaseException:
            os.close(self._lock_fd)
            raise
        self._name = prepare(self._connection, self._table)

    def run(self) -> None:
        """Publish what is committed, until `stop`. Raises what can never be published."""
        pause_s = LOOK_S
        seen = -1
        while not self._stopping.is_set():
            # It changes with every commit of another connection, and costs no look at the table.
            version = self._connection.execute("PRAGMA data_version").fetchone()[0]
            if version == seen:
                self._stopping.wait(LOOK_S)
                continue
            try:
                while self.publish() and not self._stopping.is_set():
                    pass
            except BrokerError as error:
                if not error.retriable:
                    raise
                _log.warning("the outbox waits: %s", error)
                self._stopping.wait(pause_s)
                pause_s = min(pause_s * 2, RETRY_MAX_S)
            else:
                seen, pause_s = version, LOOK_S

    def stop(self) -> None:
        """Have `run` return after what it is sending."""
        self._stopping.set()

    def publish(self) -> int:
        """Publish what is committed, at most some thousand messages. Returns how many; raises BrokerError, and then
        publishes the rest the next time."""
        if not self._has_claimed():
            self._claim()
        batches: dict[int, list[_Row]] = {}
        columns = "batch, id, topic, partition, key, value, headers"
        for batch, *row in self._connection.execute(
            f"SELECT {columns} FROM {self._table} WHERE batch IS NOT NULL ORDER BY batch, id"
        ):
            batches.setdefault(batch, []).append(_Row(*row))
        return sum(len(batches[batch]) for batch in self._send_in_order(batches))

    def _send_in_order(self, batches: dict[int, list[_Row]]) -> list[int]:
        """Send all; of each partition one batch at a time, so that none overtakes one that fails."""
        queues: dict[tuple[str, int], list[int]] = {}
        for batch, rows in batches.items():
            queues.setdefault((rows[0].topic, rows[0].partition), []).append(batch)
        published: list[int] = []
        failure: BrokerError | None = None
        while queues:
            futures = [(place, queue[0], self._send(queue[0], batches[queue[0]])) for place, queue in queues.items()]
            done = []
            for place, batch, future in futures:
                try:
                    future.result()
                except BrokerError as error:
                    failure = failure or error
                    del queues[place]
                    continue
                done.append(batch)
                del queues[place][0]
                if not queues[place]:
                    del queues[place]
            with transaction(self._connection):
                self._connection.executemany(f"DELETE FROM {self._table} WHERE batch = ?", [(one,) for one in done])
            published += done
        if failure is not None:
            raise failure
        return published

    def _has_claimed(self) -> bool:
        found = self._connection.execute(f"SELECT 1 FROM {self._table} WHERE batch IS NOT NULL LIMIT 1").fetchone()
        return found is not None

    def _claim(self) -> None:
        """Write down which messages go together, and where to."""
        rows = self._connection.execute(
            f"SELECT id, topic, partition, key, length(value) FROM {self._table} ORDER BY id LIMIT ?", (CLAIMED_MAX,)
        ).fetchall()
        if not rows:
            return
        counts = {topic: len(self._producer.partitions_for(topic)) for topic in {row[1] for row in rows}}
        open_batches: dict[tuple[str, int], tuple[int, int, int]] = {}
        claimed: list[tuple[int, int, int]] = []
        for number, topic, named, key, size in rows:
            partition = named
            if partition is None:
                partition = number % counts[topic] if key is None else self._partition_of(key, counts[topic])
            batch, records, size_bytes = open_batches.get((topic, partition), (number, 0, 0))
            if records == BATCH_RECORDS_MAX or (records and size_bytes + (size or 0) > BATCH_BYTES_MAX):
                batch, records, size_bytes = number, 0, 0
            open_batches[topic, partition] = (batch, records + 1, size_bytes + (size or 0))
            claimed.append((batch, partition, number))
        with transaction(self._connection):
            self._connection.executemany(f"UPDATE {self._table} SET batch = ?, partition = ? WHERE id = ?", claimed)

    def _send(self, batch: int, rows: list[_Row]) -> Any:
        return self._producer.send_many(
            rows[0].topic,
            [row.value for row in rows],
            [row.key for row in rows],
            headers=[self._headers(row) for row in rows],
            partition=rows[0].partition,
            dedup_id=f"{self._name}:{batch}",
        )

    def _headers(self, row: _Row) -> list[Header]:
        given = msgspec.msgpack.decode(row.headers, type=list[Header]) if row.headers else []
        return [*given, (ID_HEADER, f"{self._name}:{row.number}".encode())]

    def close(self) -> None:
        """Give the database and the outbox back. The producer stays open."""
        self._connection.close()
        os.close(self._lock_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _take_lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise DirectoryLockedError(f"another relay publishes from {path}") from error
    return fd
