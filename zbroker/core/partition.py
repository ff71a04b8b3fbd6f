"""The leader's side of one partition: a state machine that decides and does nothing.

    LEADING --AppendFailed(DiskFull), RoomLost--> FULL        FULL --RoomFound--> LEADING
    LEADING, FULL --Damaged--> OFFLINE                        any --Revoked--> REVOKED (the end)

LEADING takes everything. FULL refuses produce with DiskFullError and serves reads. OFFLINE refuses produce and deletion
with the error that made it so; what is published stays readable. REVOKED takes no event: IllegalTransition.

Invariants, asserted where they could break:
  - log_start <= high_watermark <= log_end, durable <= log_end; the first three and durable never decrease.
  - With one copy the high watermark is the log end after each append.
  - An offset is given out once: `Write` names log_end, and the next `Write` follows the report of the last.
  - A request is answered once, except acks=0, which is never answered.
  - A batch is published before a waiting reader is woken, and the reader before the producer is answered: an
    acknowledged record can be read, and the reader does not wait for the producer's thread to be scheduled.

acks=fsync changes when the producer is answered, not when readers see the batch: holding the high watermark back would
hold back every other producer's records behind it. All batches appended while a flush is under way share the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from zbroker.clock import NS_PER_MS
from zbroker.config.schema import TopicConfig
from zbroker.core import partition_events as ev
from zbroker.core.partition_events import Effect, Event
from zbroker.errors import (
    BrokerError,
    DiskFullError,
    IllegalTransition,
    InvalidRequiredAcksError,
    NotEnoughReplicasError,
    NotLeaderForPartitionError,
    OffsetOutOfRangeError,
    StorageError,
    ThrottlingQuotaExceededError,
    UnknownLeaderEpochError,
)

ACKS_NONE: Final = 0
ACKS_LEADER: Final = 1
ACKS_ALL: Final = -1
ACKS_FSYNC: Final = 2
ACKS_KNOWN: Final = frozenset({ACKS_NONE, ACKS_LEADER, ACKS_ALL, ACKS_FSYNC})
_ACKS_OF_THE_LEADER: Final = (ACKS_LEADER, ACKS_NONE)
_ACKS_AT_ONCE: Final = (ACKS_LEADER, ACKS_ALL)
UP_TO_HIGH_WATERMARK: Final = -1
FLUSH_WAITERS_MAX: Final = 10_000
_COPIES_IN_SYNC: Final = 1


class State(Enum):
    """What the partition takes. See the module."""

    LEADING = "leading"
    FULL = "full"
    OFFLINE = "offline"
    REVOKED = "revoked"


class Partition:
    """See the module. Only `handle` changes it."""

    __slots__ = (
        "_dirty_since_ns",
        "_flush_target",
        "_refusal",
        "_unflushed",
        "_waits",
        "config",
        "durable",
        "high_watermark",
        "leader_epoch",
        "log_end",
        "log_start",
        "state",
    )

    def __init__(self, leader_epoch: int, log_start: int, log_end: int, durable: int, config: TopicConfig) -> None:
        assert 0 <= log_start <= log_end, f"{log_start}..{log_end}"
        assert durable <= log_end
        self.leader_epoch = leader_epoch
        self.log_start = log_start
        self.log_end = log_end
        self.high_watermark = log_end
        self.durable = durable
        self.config = config
        self.state = State.LEADING
        self._refusal: BrokerError | None = None
        self._waits: dict[int, int] = {}
        self._unflushed: deque[tuple[int, int, object]] = deque()  # (next offset, base offset, request)
        self._flush_target: int | None = None
        self._dirty_since_ns: int | None = None

    @property
    def wait_count(self) -> int:
        """How many waits are open."""
        return len(self._waits)

    @property
    def is_flushing(self) -> bool:
        """Whether a flush is under way."""
        return self._flush_target is not None

    def handle(self, event: Event, now_ns: int) -> list[Effect]:
        """Take an event; give what must be done, in this order. Raises IllegalTransition, with nothing changed."""
        if self.state is State.REVOKED:
            raise IllegalTransition(f"{type(event).__name__} after the partition was revoked")
        return _HANDLERS[type(event)](self, event, now_ns)

    def _produce(self, event: ev.Produce, now_ns: int) -> list[Effect]:
        error = self._refusal or self._objection(event)
        if error is not None:
            return [ev.Refuse(event.request, error)]
        return [ev.Write(event.request, event.acks, self.log_end, self.leader_epoch)]

    def _objection(self, event: ev.Produce) -> BrokerError | None:
        if event.leader_epoch > self.leader_epoch:
            return UnknownLeaderEpochError(f"epoch {event.leader_epoch}; this leader has {self.leader_epoch}")
        acks = event.acks
        if acks in _ACKS_OF_THE_LEADER:
            return None
        if acks not in ACKS_KNOWN:
            return InvalidRequiredAcksError(f"acks {acks}")
        needed = self.config.min_insync_replicas
        if needed > _COPIES_IN_SYNC:
            return NotEnoughReplicasError(f"{_COPIES_IN_SYNC} copy is in sync, min_insync_replicas is {needed}")
        if acks == ACKS_FSYNC and len(self._unflushed) >= FLUSH_WAITERS_MAX:
            return ThrottlingQuotaExceededError(f"{FLUSH_WAITERS_MAX} batches wait for the disk")
        return None

    def _appended(self, event: ev.Appended, now_ns: int) -> list[Effect]:
        assert event.base_offset == self.log_end, f"appended at {event.base_offset}, the log ended at {self.log_end}"
        assert event.next_offset > event.base_offset
        self.log_end = self.high_watermark = event.next_offset
        effects: list[Effect] = []
        if event.acks == ACKS_FSYNC:
            self._unflushed.append((event.next_offset, event.base_offset, event.request))
            self._begin_flush(effects)
        elif self._dirty_since_ns is None:
            self._dirty_since_ns = now_ns
        effects.append(ev.Publish(event.next_offset))
        if self._waits:
            self._wake_passed(effects)
        if event.acks in _ACKS_AT_ONCE:
            effects.append(ev.Acknowledge(event.request, event.base_offset))
        if 0 < self.config.flush_messages <= self.log_end - self.durable:
            self._begin_flush(effects)
        return effects

    def _append_failed(self, event: ev.AppendFailed, now_ns: int) -> list[Effect]:
        # Other errors may pass by themselves (permissions, a disk remounted read-only): the next producer tries again.
        if isinstance(event.error, DiskFullError):
            self._set_full(event.error)
        return [ev.Refuse(event.request, event.error)]

    def _wait_for(self, event: ev.WaitFor, now_ns: int) -> list[Effect]:
        if event.offset < self.high_watermark:
            return [ev.Wake([event.wait])]
        self._waits[event.wait] = event.offset
        return []

    def _stop_waiting(self, event: ev.StopWaiting, now_ns: int) -> list[Effect]:
        self._waits.pop(event.wait, None)
        return []

    def _delete_before(self, event: ev.DeleteBefore, now_ns: int) -> list[Effect]:
        if self.state is State.OFFLINE:
            assert self._refusal is not None
            return [ev.Refuse(event.request, self._refusal)]
        offset = self.high_watermark if event.offset == UP_TO_HIGH_WATERMARK else event.offset
        if not 0 <= offset <= self.high_watermark:
            error = OffsetOutOfRangeError(f"offset {offset}; the high watermark is {self.high_watermark}")
            return [ev.Refuse(event.request, error)]
        if offset <= self.log_start:
            return [ev.AnswerLogStart(event.request, self.log_start)]
        return [ev.Trim(event.request, offset)]

    def _trimmed(self, event: ev.Trimmed, now_ns: int) -> list[Effect]:
        assert self.log_start <= event.log_start <= self.high_watermark, f"{self.log_start} to {event.log_start}"
        self.log_start = event.log_start
        effects: list[Effect] = [ev.Restate()]
        if event.request is not None:
            effects.append(ev.AnswerLogStart(event.request, self.log_start))
        return effects

    def _flushed(self, event: ev.Flushed, now_ns: int) -> list[Effect]:
        assert event.durable <= self.log_end
        self._flush_target = None
        if self.state is State.OFFLINE:
            return []
        effects: list[Effect] = []
        if event.durable > self.durable:
            self.durable = event.durable
            effects.append(ev.PublishDurable(event.durable))
        self._dirty_since_ns = None if self.durable == self.log_end else now_ns
        while self._unflushed and self._unflushed[0][0] <= self.durable:
            _, base_offset, request = self._unflushed.popleft()
            effects.append(ev.Acknowledge(request, base_offset))
        if self._unflushed:
            self._begin_flush(effects)
        return effects

    def _flush_failed(self, event: ev.FlushFailed, now_ns: int) -> list[Effect]:
        self._flush_target = None
        return self._refuse_unflushed(event.error)

    def _rolled(self, event: ev.Rolled, now_ns: int) -> list[Effect]:
        effects: list[Effect] = [ev.Restate()]
        if self.durable < self.log_end and self.state is not State.OFFLINE:
            self._begin_flush(effects)
        return effects

    def _tick(self, event: ev.Tick, now_ns: int) -> list[Effect]:
        effects: list[Effect] = []
        flush_ms = self.config.flush_ms
        since_ns = self._dirty_since_ns
        is_due = flush_ms >= 0 and since_ns is not None and now_ns - since_ns >= flush_ms * NS_PER_MS
        if is_due and self.state is not State.OFFLINE:
            self._begin_flush(effects)
        return effects

    def _damaged(self, event: ev.Damaged, now_ns: int) -> list[Effect]:
        return self._go_offline(event.error)

    def _room_lost(self, event: ev.RoomLost, now_ns: int) -> list[Effect]:
        self._set_full(DiskFullError("the disk has less room than disk_free_min_bytes"))
        return []

    def _room_found(self, event: ev.RoomFound, now_ns: int) -> list[Effect]:
        if self.state is State.FULL:
            self.state = State.LEADING
            self._refusal = None
        return []

    def _reconfigured(self, event: ev.Reconfigured, now_ns: int) -> list[Effect]:
        self.config = event.config
        return []

    def _epoch_raised(self, event: ev.EpochRaised, now_ns: int) -> list[Effect]:
        if event.leader_epoch <= self.leader_epoch:
            return []
        self.leader_epoch = event.leader_epoch
        return [ev.Restate()]

    def _revoked(self, event: ev.Revoked, now_ns: int) -> list[Effect]:
        effects: list[Effect] = [ev.Retire()]
        if self._waits:
            effects.append(ev.Wake(list(self._waits)))
            self._waits.clear()
        effects += self._refuse_unflushed(NotLeaderForPartitionError("the partition was moved or deleted"))
        self.state = State.REVOKED
        return effects

    def _begin_flush(self, effects: list[Effect]) -> None:
        if self._flush_target is None:
            self._flush_target = self.log_end
            effects.append(ev.Flush())

    def _wake_passed(self, effects: list[Effect]) -> None:
        high_watermark = self.high_watermark
        passed = [wait for wait, offset in self._waits.items() if offset < high_watermark]
        if passed:
            for wait in passed:
                del self._waits[wait]
            effects.append(ev.Wake(passed))

    def _set_full(self, error: DiskFullError) -> None:
        if self.state is State.LEADING:
            self.state = State.FULL
            self._refusal = error

    def _go_offline(self, error: BrokerError) -> list[Effect]:
        if self.state is State.OFFLINE:
            return []
        self.state = State.OFFLINE
        self._refusal = error if isinstance(error, StorageError) else StorageError(error.message)
        self._flush_target = None
        return self._refuse_unflushed(self._refusal)

    def _refuse_unflushed(self, error: BrokerError) -> list[Effect]:
        refusals: list[Effect] = [ev.Refuse(request, error) for _, _, request in self._unflushed]
        self._unflushed.clear()
        return refusals


_HANDLERS: Final[dict[type[Event], Callable[[Partition, Any, int], list[Effect]]]] = {
    ev.Produce: Partition._produce,
    ev.Appended: Partition._appended,
    ev.AppendFailed: Partition._append_failed,
    ev.WaitFor: Partition._wait_for,
    ev.StopWaiting: Partition._stop_waiting,
    ev.DeleteBefore: Partition._delete_before,
    ev.Trimmed: Partition._trimmed,
    ev.Flushed: Partition._flushed,
    ev.FlushFailed: Partition._flush_failed,
    ev.Rolled: Partition._rolled,
    ev.Tick: Partition._tick,
    ev.Damaged: Partition._damaged,
    ev.RoomLost: Partition._room_lost,
    ev.RoomFound: Partition._room_found,
    ev.Reconfigured: Partition._reconfigured,
    ev.EpochRaised: Partition._epoch_raised,
    ev.Revoked: Partition._revoked,
}
