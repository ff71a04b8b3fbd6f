"""A batch on its way: open, closed, sent, done; and the futures that look at it.

A future is only a (batch, index) pair, made in 0.2 us; there is no lock, event or callback list for each record. What
becomes of a batch becomes of all its records.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from zbroker.clock import NS_PER_MS
from zbroker.errors import BrokerError, TimeoutError_
from zbroker.record.records import Header, RecordMetadata

if TYPE_CHECKING:
    from zbroker.client.partition_queue import PartitionQueue

WaitFor = Callable[[Callable[[], bool], float], bool]
ACKNOWLEDGE_FOREVER_MS = 10**9


class State(Enum):
    """Where a batch stands."""

    OPEN = "open"  # takes records
    CLOSED = "closed"  # encoded, waits for its turn
    SENT = "sent"  # on its way, not answered
    DONE = "done"  # acknowledged, or failed for good


_DONE: Final = State.DONE  # looking a member up takes longer than comparing it


class Batch:
    """Records of one partition that go together."""

    __slots__ = (
        "attempts", "base_offset", "callbacks", "count", "created_ns", "deadline_ns", "encoded", "error", "has_extras",
        "has_headers", "has_keys", "has_times", "headers", "is_doubtful", "is_keyed", "is_open", "is_plain", "keys",
        "name_id", "number", "options", "owner", "queue", "refused_with", "room", "sequence", "size_bytes", "stamp",
        "state", "timestamp_ms", "timestamps_ms", "values",
    )  # fmt: skip

    def __init__(self, queue: PartitionQueue, now_ns: int, deadline_ns: int = 0) -> None:
        self.queue = queue
        self.values: list[bytes | None] = []
        self.keys: list[bytes | None] = []
        self.headers: list[tuple[Header, ...]] = []
        self.timestamps_ms: list[int] = []
        self.has_keys = self.has_headers = self.has_times = self.has_extras = False
        self.is_open = True
        self.owner = 0  # the thread that appends to it without the lock, if there is one: see producer.py
        self.is_plain = True  # values alone
        self.is_keyed = False  # values and keys alone
        self.room = 0  # bytes until it is full, while it is open
        self.size_bytes = 0  # from when it is closed
        self.count = 0
        self.number = 0  # in the order of closing
        self.attempts = 0
        self.state = State.OPEN
        self.created_ns = now_ns
        self.deadline_ns = deadline_ns
        self.timestamp_ms = 0
        self.encoded: bytearray | None = None
        self.stamp = (-1, -1, -1)  # producer id, epoch and base sequence, as `encoded` has them
        self.sequence = -1  # from when it is sent: see sequences.py
        self.is_doubtful = False  # sent, and perhaps in the log, for all that was answered
        self.refused_with = 0
        self.name_id = 0  # the application's name of it, which then takes the place of a number: see terms.py
        self.options: bytes | None = None  # the second frame of its request
        self.base_offset = -1
        self.error: BrokerError | None = None
        self.callbacks: list[Callable[[Batch], None]] | None = None

    def seal(self) -> tuple[list[bytes | None], list[bytes | None] | None]:
        """Take no more records, and count those that are in it. Gives their values and keys. The lock is held."""
        self.is_open = False
        values, keys = self.values, self.keys if self.has_keys else None
        self.count = len(values) if keys is None else min(len(values), len(keys))
        if not self.owner:
            return values, keys
        # The owner may still append one more, and then finds that it was not taken.
        return values[: self.count], None if keys is None else keys[: self.count]

    @property
    def is_done(self) -> bool:
        """Whether it is acknowledged or failed for good."""
        return self.state is _DONE

    def metadata(self, index: int) -> RecordMetadata:
        """Where a record lies. Raises what the batch failed with."""
        if self.error is not None:
            raise self.error
        key = self.keys[index] if self.has_keys else None
        value = self.values[index]
        return RecordMetadata(
            self.queue.topic,
            self.queue.partition,
            self.base_offset + index if self.base_offset >= 0 else -1,
            self.timestamps_ms[index] if self.has_times else self.timestamp_ms,
            -1 if key is None else len(key),
            -1 if value is None else len(value),
        )

    def on_done(self, call: Callable[[Batch], None]) -> None:
        """Call when it is done; at once when it is."""
        with self.queue.lock:
            if not self.is_done:
                if self.callbacks is None:
                    self.callbacks = []
                self.callbacks.append(call)
                self.queue.producer.hurry()
                return
        call(self)

    def wait(self, timeout: float | None) -> None:
        """Return when it is done; `timeout` in seconds. Raises TimeoutError_."""
        if self.state is not _DONE:
            timeout_ms = ACKNOWLEDGE_FOREVER_MS if timeout is None else timeout * 1000
            if not self.queue.producer.wait_done(self, timeout_ms):
                raise TimeoutError_(f"not acknowledged within {timeout} s", hint="delivery_timeout_ms bounds it")


class SendFuture(msgspec.Struct, frozen=True, gc=False, eq=False):
    """The outcome of one `send`. It has no thread or lock of its own; a struct, because one is made for each record."""

    _batch: Batch
    _index: int

    def result(self, timeout: float | None = None) -> RecordMetadata:
        """Wait for the acknowledgement; `timeout` in seconds. Raises the delivery's error or TimeoutError_."""
        self._batch.wait(timeout)
        return self._batch.metadata(self._index)

    get = result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, and give the delivery's error or None. Raises TimeoutError_."""
        self._batch.wait(timeout)
        return self._batch.error

    def done(self) -> bool:
        """Whether the outcome is known."""
        return self._batch.is_done

    def add_done_callback(self, fn: Callable[[SendFuture], None]) -> None:
        """Call `fn(self)` when the outcome is known; at once when it is."""
        self._batch.on_done(lambda _: fn(self))

    def as_concurrent(self) -> concurrent.futures.Future[RecordMetadata]:
        """A `concurrent.futures.Future` of the same outcome."""
        future: concurrent.futures.Future[RecordMetadata] = concurrent.futures.Future()

        def settle(batch: Batch) -> None:
            if batch.error is not None:
                future.set_exception(batch.error)
            else:
                future.set_result(batch.metadata(self._index))

        self._batch.on_done(settle)
        return future


class AppendedRange(NamedTuple):
    """Consecutive records of one batch: the first one's offset, and how many."""

    topic: str
    partition: int
    base_offset: int
    record_count: int


class BatchFuture:
    """The outcome of one `send_many` or `send_batch`: of all its records together."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    def result(self, timeout: float | None = None) -> list[AppendedRange]:
        """Wait for every acknowledgement; `timeout` in seconds. Raises the first error, or TimeoutError_."""
        deadline_ns = None if timeout is None else time.monotonic_ns() + int(timeout * 1e9)
        found = []
        for batch in self._batches:
            left = None if deadline_ns is None else max(0.0, (deadline_ns - time.monotonic_ns()) / NS_PER_MS / 1000)
            batch.wait(left)
            if batch.error is not None:
                raise batch.error
            found.append(AppendedRange(batch.queue.topic, batch.queue.partition, batch.base_offset, batch.count))
        return found

    get = result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, and give the first error or None. Raises TimeoutError_."""
        try:
            self.result(timeout)
        except TimeoutError_:
            if not self.done():
                raise
            return next((batch.error for batch in self._batches if batch.error is not None), None)
        except BrokerError as error:
            return error
        return None

    def done(self) -> bool:
        """Whether every outcome is known."""
        return all(batch.is_done for batch in self._batches)

    def add_done_callback(self, fn: Callable[[BatchFuture], Any]) -> None:
        """Call `fn(self)` once, when every outcome is known."""
        left = [len(self._batches)]

        def one_done(_: Batch) -> None:
            left[0] -= 1
            if left[0] == 0:
                fn(self)

        if not self._batches:
            fn(self)
        for batch in self._batches:
            batch.on_done(one_done)
