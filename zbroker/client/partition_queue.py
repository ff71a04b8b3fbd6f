"""The batches of one partition, from the open one to the unanswered ones, and their order.

ORDER. Batches are sent in the order in which they were closed, at most `max_in_flight` at a time; a lane and a worker
keep that order. When one fails in a way that may pass, nothing further is sent until every batch on its way is
answered; then the failed ones are sent again, in their old order, before anything newer. What was acknowledged
meanwhile is not sent again. A batch takes another way (another leader, a new lane, messages) only when none is
unanswered on the old one. What keeps a batch that is sent again from being stored twice: see `sequences`.

All of it happens under the producer's one lock. Callbacks of users are returned to the caller, or deferred, and made
without it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Protocol

from zbroker.client.batches import Batch, State
from zbroker.client.lanes import ClientLane
from zbroker.client.sequences import NO_STAMP, Sequences, Stamp, write_stamp
from zbroker.clock import NS_PER_MS
from zbroker.errors import (
    BrokerError,
    CorruptRecordError,
    InvalidProducerEpochError,
    InvalidRecordError,
    ProducerFencedError,
    RequestTimedOutError,
    error_for,
)
from zbroker.record.batch import crc_matches, read_header
from zbroker.record.columns import encode_columns
from zbroker.wire.layout import PRODUCED

# Close together while an election takes as long as it should; the last again and again, up to retry_backoff_ms.
_CLOSED, _SENT, _DONE = State.CLOSED, State.SENT, State.DONE  # looking a member up takes longer than comparing it
RETRY_AFTER_MS = (1, 1, 1, 1, 2, 2, 2, 5, 5, 10, 10, 10, 10, 20, 50, 100)
ROOM_FIRST_BYTES: Final = 64 << 10
FILLED_FAST_NS: Final = 3 * NS_PER_MS // 2
FILLED_SLOWLY_NS: Final = 2 * FILLED_FAST_NS
DAMAGED_ATTEMPTS_MAX: Final = 10


class Sent(Enum):
    """What became of an attempt to send a batch."""

    YES = "yes"
    NO_LEADER = "no leader"  # nobody knows to whom
    NOT_YET = "not yet"  # those on the way must be answered first


class Sending(Protocol):
    """What a queue needs of its producer."""

    lock: threading.RLock
    max_in_flight: int
    acks: int
    retries: int
    backoff_max_ms: int
    is_idempotent: bool
    compression: str
    compression_level: int | None

    def count_closed(self, batch: Batch) -> None:
        """The batch takes memory from now on."""

    def transmit(self, queue: PartitionQueue, batch: Batch) -> Sent:
        """Send a closed batch behind those in `queue.in_flight`."""

    def fence(self, error: BrokerError) -> list[Callable[[], None]]:
        """Fail everything of this producer, now and from now on. Returns the calls to make without the lock."""

    def defer(self, calls: list[Callable[[], None]]) -> None:
        """Make these calls soon, without the lock."""

    def wait_done(self, batch: Batch, timeout_ms: float) -> bool:
        """Send what the batch waits for, and pump until it is done."""

    def hurry(self) -> None:
        """Somebody wants to be told at once when a batch is done."""

    def count_done(self, batch: Batch) -> None:
        """The batch's memory is free."""

    def now_ns(self) -> int:
        """The monotonic clock."""

    def wall_ms(self) -> int:
        """The wall clock."""


class PartitionQueue:
    """See the module."""

    __slots__ = (
        "_retries", "closed_count", "closed_ns", "failed", "in_flight", "is_awaited", "lane", "lock", "needs_leader",
        "open", "partition", "place", "producer", "retry_ns", "room_bytes", "route", "sequences", "topic", "waiting",
    )  # fmt: skip

    def __init__(self, producer: Sending, topic: str, partition: int) -> None:
        self.producer = producer
        self.lock = producer.lock
        self.topic = topic
        self.partition = partition
        self.place = (topic, partition)
        self.open: Batch | None = None
        self.waiting: deque[Batch] = deque()
        self.in_flight: deque[Batch] = deque()
        self.failed: list[Batch] = []
        self.retry_ns = 0
        self.needs_leader = False
        self._retries = 0
        self.room_bytes = ROOM_FIRST_BYTES
        """Of the next batch of a producer that does not linger: the more, the faster the last ones were full. (What is
        old is closed by the background thread, to which a thread that sends without a pause leaves few turns.)"""
        self.closed_count = 0
        self.closed_ns = 0  # when the last one was
        self.is_awaited = False
        """Whether the last one was a record alone, for which somebody waited: the next one is like it, as a rule."""
        self.sequences = Sequences() if producer.is_idempotent else None
        self.route: object = None
        self.lane: ClientLane | None = None
        """To whom and over what the batches in flight were sent: for `transmit` alone."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is unacknowledged."""
        return not (self.open or self.waiting or self.in_flight or self.failed)

    def is_done_until(self, number: int) -> bool:
        """Whether every batch up to the one that was closed as `number` is done. The lock is held."""
        return all(batch.number > number for batch in (*self.in_flight, *self.failed, *self.waiting))

    def is_sent_until(self, number: int) -> bool:
        """Whether every batch up to that one was sent, or is done. The lock is held."""
        return all(batch.number > number for batch in (*self.failed, *self.waiting))

    def next_stamp(self) -> Stamp:
        """What the next batch of this queue should be encoded with. A wrong guess costs a second CRC, no more: it may
        be called without the lock."""
        if self.sequences is None:
            return NO_STAMP
        try:
            return self.sequences.expected(self.waiting[-1] if self.waiting else None)
        except IndexError:  # another thread has sent the last one meanwhile
            return NO_STAMP

    def close_full(self, room_max: int) -> None:
        """Close the open batch, which is full; the next one has room for at most `room_max` bytes. The lock is held."""
        batch = self.open
        assert batch is not None
        self.close_open()
        filled_ns = self.closed_ns - batch.created_ns
        if filled_ns < FILLED_FAST_NS:
            self.room_bytes = min(2 * self.room_bytes, max(room_max, ROOM_FIRST_BYTES))
        elif filled_ns > FILLED_SLOWLY_NS:
            self._shrink()

    def close_old(self) -> None:
        """Close the open batch, whose time is over. The lock is held."""
        self.is_awaited = False
        self._shrink()
        self.close_open()

    def _shrink(self) -> None:
        self.room_bytes = max(ROOM_FIRST_BYTES, self.room_bytes // 2)

    def close_open(self) -> None:
        """Close the open batch and send what may be sent. The lock is held."""
        batch = self.open
        if batch is None:
            return
        self.open = None
        values, keys = batch.seal()
        if not batch.count:
            return  # its owner had not come to append the first record
        batch.timestamp_ms = self.producer.wall_ms()
        batch.stamp = stamp = self.next_stamp()
        try:
            batch.encoded = encode_columns(
                values,
                keys,
                timestamp_ms=batch.timestamp_ms,
                headers=batch.headers if batch.has_headers else None,
                timestamps_ms=batch.timestamps_ms if batch.has_times else None,
                compression=self.producer.compression,
                compression_level=self.producer.compression_level,
                producer_id=stamp.producer_id,
                producer_epoch=stamp.producer_epoch,
                base_sequence=stamp.base_sequence,
            )
        except Exception as error:
            # Whatever the encoder says of them: these records have futures that somebody may wait for.
            found = error if isinstance(error, BrokerError) else InvalidRecordError(f"not encodable: {error}")
            self.producer.count_closed(batch)
            self.producer.defer(self._finish(batch, found))
            return
        batch.size_bytes = len(batch.encoded)
        self.add_closed(batch)

    def add_closed(self, batch: Batch) -> None:
        """Put an encoded batch behind the others and send what may be sent. The lock is held."""
        batch.state = _CLOSED
        self.closed_count += 1
        self.closed_ns = self.producer.now_ns()
        batch.number = self.closed_count
        self.producer.count_closed(batch)
        self.waiting.append(batch)
        self.drain()

    def drain(self) -> None:
        """Send waiting batches while there is room on the way. The lock is held."""
        producer = self.producer
        while self.waiting and not self.failed and not self.needs_leader:
            if self.in_flight and not self._has_room_on_the_way():
                return
            batch = self.waiting[0]
            if batch.name_id:
                write_stamp(batch, Stamp(batch.name_id, 0, 0))
            elif self.sequences is None:
                write_stamp(batch, NO_STAMP)  # one that was read may have another producer's
            elif not self.sequences.stamp(batch):
                self.needs_leader = True
                return
            sent = producer.transmit(self, batch)
            if sent is not Sent.YES:
                self.needs_leader = sent is Sent.NO_LEADER
                return
            self.waiting.popleft()
            batch.attempts += 1
            if producer.acks:
                batch.state = _SENT
                self.in_flight.append(batch)
            else:
                producer.defer(self._finish(batch, None))

    def _has_room_on_the_way(self) -> bool:
        """Whether the first waiting batch may be sent behind those in flight."""
        if self.sequences is not None and self.sequences.is_new:
            return False
        if self.waiting[0].name_id or self.in_flight[0].name_id:
            return False  # nothing but its answer tells its place in the order
        # From the oldest that may have to be sent again: a leader remembers so many, also of those it acknowledged.
        return self.waiting[0].number - self.in_flight[0].number < self.producer.max_in_flight

    def answered(self, batch: Batch, number: int, body: list[Any]) -> list[Callable[[], None]]:
        """The broker's answer to a batch. Returns the calls to make without the lock. The lock is held."""
        if batch.state is not _SENT:
            return []
        self.in_flight.remove(batch)
        if number == 0:
            self._retries = 0
            batch.base_offset, append_time_ms, _ = PRODUCED.unpack_from(body[0]) if body else (-1, -1, 0)
            if append_time_ms >= 0:
                batch.timestamp_ms = append_time_ms
                batch.has_times = False
            if self.sequences is not None:
                self.sequences.was_acknowledged(batch)
            calls = self._finish(batch, None)
        else:
            calls = self._refused(batch, number, bytes(body[0]).decode("utf-8", "replace") if body else "")
        if not self.in_flight:
            if self.failed:
                self._put_back()
            if self.sequences is not None:
                self.sequences.settle(self.waiting)
        if self.waiting:
            self.drain()
        return calls

    def _refused(self, batch: Batch, number: int, text: str) -> list[Callable[[], None]]:
        error = error_for(number, text)
        if self.sequences is not None:
            self.sequences.was_refused(batch, number)
            if isinstance(error, InvalidProducerEpochError):
                fenced = ProducerFencedError(f"a newer producer took over: {text}")
                return self._finish(batch, fenced) + self.producer.fence(fenced)
        may_repeat = error.retriable or (
            isinstance(error, CorruptRecordError) and batch.attempts <= DAMAGED_ATTEMPTS_MAX and _is_whole(batch)
        )
        if may_repeat and batch.attempts <= self.producer.retries and self.producer.now_ns() < batch.deadline_ns:
            batch.state = _CLOSED
            self.failed.append(batch)
            return []
        return self._give_up(batch, error)

    def _put_back(self) -> None:
        # In the order in which they were closed: time-outs may have come in another one.
        self.waiting.extendleft(sorted(self.failed, key=lambda batch: batch.number, reverse=True))
        self.failed = []
        self.needs_leader = True
        self._back_off()

    def _back_off(self) -> None:
        after_ms = RETRY_AFTER_MS[min(self._retries, len(RETRY_AFTER_MS) - 1)]
        self._retries += 1
        self.retry_ns = self.producer.now_ns() + min(after_ms, self.producer.backoff_max_ms) * NS_PER_MS

    def leader_found(self) -> None:
        """The leader is known again: go on. The lock is held."""
        self.needs_leader = False
        self.drain()

    def leader_unknown(self) -> None:
        """The leader was asked for and is not known: ask again later. The lock is held."""
        self._back_off()

    def expire(self, now_ns: int, reason: BrokerError | None) -> list[Callable[[], None]]:
        """Fail waiting batches whose time is over. Returns the calls to make without the lock. The lock is held."""
        calls: list[Callable[[], None]] = []
        while self.waiting and self.waiting[0].deadline_ns <= now_ns:
            late = reason or RequestTimedOutError("not delivered within delivery_timeout_ms")
            calls += self._give_up(self.waiting.popleft(), late)
        if self.sequences is not None and not self.in_flight:
            self.sequences.settle(self.waiting)
        return calls

    def _give_up(self, batch: Batch, error: BrokerError) -> list[Callable[[], None]]:
        if self.sequences is not None:
            self.sequences.was_given_up(batch)
        return self._finish(batch, error)

    def abandon(self, error: BrokerError) -> list[Callable[[], None]]:
        """Fail everything. Returns the calls to make without the lock. The lock is held."""
        calls: list[Callable[[], None]] = []
        if self.open is not None:
            self.open.seal()
            self.producer.count_closed(self.open)
            self.waiting.append(self.open)
            self.open = None
        for batch in [*self.in_flight, *self.failed, *self.waiting]:
            calls += self._finish(batch, error)
        self.in_flight.clear()
        self.failed.clear()
        self.waiting.clear()
        return calls

    def _finish(self, batch: Batch, error: BrokerError | None) -> list[Callable[[], None]]:
        batch.error = error
        batch.encoded = None
        batch.state = _DONE
        self.producer.count_done(batch)
        callbacks, batch.callbacks = batch.callbacks, None
        return [lambda call=call: call(batch) for call in callbacks] if callbacks else []  # type: ignore[misc]


def _is_whole(batch: Batch) -> bool:
    """Whether a batch that came as damage was damaged on its way there."""
    return batch.encoded is not None and crc_matches(batch.encoded, 0, read_header(batch.encoded))
