"""The leader's side of one partition: a state machine that decides and does nothing.

    LEADING --AppendFailed(DiskFull), RoomLost--> FULL        FULL --RoomFound--> LEADING
    LEADING, FULL --Damaged--> OFFLINE                        any --Revoked--> REVOKED (the end)

LEADING takes everything. FULL refuses produce with DiskFullError and serves reads. OFFLINE refuses produce and deletion
with the error that made it so; what is published stays readable. REVOKED takes no event: IllegalTransition.

Invariants, asserted where they could break:
  - log_start <= high_watermark <= log_end, durable <= log_end; none of the four ever decreases.
  - With one copy the high watermark is the log end after each append. With several it is the lowest log end of those
    that are in sync or may be (progress.py), and nothing at or behind it is acknowledged with acks=all or fsync.
  - An offset is given out once: `Write` names log_end, and the next `Write` follows the report of the last.
  - A request is answered once, except acks=0, which is never answered.
  - A batch is published before a waiting reader is woken, and the reader before the producer is answered: an
    acknowledged record can be read, and the reader does not wait for the producer's thread to be scheduled.

acks=fsync changes when the producer is answered, not when readers see the batch: holding the high watermark back would
hold back every other producer's records behind it. All batches appended while a flush is under way share the next one.
It is answered when the batch is below the high watermark and on the disks of `min_insync_replicas` copies in sync, and
the election of the leader is on the coordinator's.

A batch that a producer sent before is not written again: it gets the old one's offset, when the old one would have.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any, Final

from zbroker.clock import NS_PER_MS
from zbroker.core import partition_events as ev
from zbroker.core.partition_events import Effect, Event
from zbroker.core.partition_state import OFFLINE, REVOKED, PartitionState, Sequences, State, refuse_all
from zbroker.errors import (
    BrokerError,
    DiskFullError,
    IllegalTransition,
    InvalidRequiredAcksError,
    NotEnoughReplicasError,
    NotLeaderForPartitionError,
    OffsetOutOfRangeError,
    ThrottlingQuotaExceededError,
    UnknownLeaderEpochError,
)
from zbroker.record.layout import BatchHeader

__all__ = ["Partition", "Sequences", "State"]

ACKS_NONE: Final = 0
ACKS_LEADER: Final = 1
ACKS_ALL: Final = -1
ACKS_FSYNC: Final = 2
ACKS_KNOWN: Final = frozenset({ACKS_NONE, ACKS_LEADER, ACKS_ALL, ACKS_FSYNC})
_ACKS_OF_THE_LEADER: Final = (ACKS_LEADER, ACKS_NONE)
_ACKS_AT_ONCE: Final = (ACKS_LEADER, ACKS_ALL)
_LEADING: Final = State.LEADING
UP_TO_HIGH_WATERMARK: Final = -1
FLUSH_WAITERS_MAX: Final = 10_000
FLUSH_SHARED_FROM: Final = 5
COPY_WAITERS_MAX: Final = 10_000


class Partition(PartitionState):
    """See the module. Only `handle` changes it."""

    __slots__ = ()

    def handle(self, event: Event, now_ns: int) -> list[Effect]:
        """Take an event; give what must be done, in this order. Raises IllegalTransition, with nothing changed."""
        if self.state is REVOKED:
            raise IllegalTransition(f"{type(event).__name__} after the partition was revoked")
        return _HANDLERS[type(event)](self, event, now_ns)

    def takes_at_once(self, acks: int, leader_epoch: int, batch: BatchHeader | None) -> bool:
        """Whether `Produce` with these would be `Write`, and `Appended` then no more than `Publish`, `Wake` for waits
        that are over, and `Acknowledge` unless acks=0. Who writes the batch before anything else happens may call
        `appended_at_once` in the place of `Appended`: the short way of nearly every batch of a partition of one copy.
        """
        return (
            self.state is _LEADING
            and self._progress is None
            and acks != ACKS_FSYNC
            and self.config.flush_messages <= 0
            and self._objection(acks, leader_epoch) is None
            and (batch is None or self._sequences is None or self._sequences.judge(batch) is None)
        )

    def appended_at_once(self, next_offset: int, now_ns: int) -> list[int]:
        """The log ends at `next_offset` now. Gives the waits that are over, which are forgotten here: publish, wake
        them, acknowledge."""
        self.log_end = self.high_watermark = next_offset
        if self._dirty_since_ns is None:
            self._dirty_since_ns = now_ns
        return self._take_passed() if self._waits else []

    def _produce(self, event: ev.Produce, now_ns: int) -> list[Effect]:
        if event.batch is not None and self._sequences is not None and self.state is not OFFLINE:
            earlier = self._sequences.judge(event.batch)
            if earlier is not None:
                return self._answer_earlier(event, earlier)
        error = self._refusal or self._objection(event.acks, event.leader_epoch)
        if error is not None:
            return [ev.Refuse(event.request, error)]
        return [ev.Write(event.request, event.acks, self.log_end, self.leader_epoch)]

    def _objection(self, acks: int, leader_epoch: int) -> BrokerError | None:
        if leader_epoch > self.leader_epoch:
            return UnknownLeaderEpochError(f"epoch {leader_epoch}; this leader has {self.leader_epoch}")
        if acks in _ACKS_OF_THE_LEADER:
            return None
        if acks not in ACKS_KNOWN:
            return InvalidRequiredAcksError(f"acks {acks}")
        needed = self.config.min_insync_replicas
        if needed > self.isr_size:
            return NotEnoughReplicasError(f"copies in sync: {self.isr_size}; min_insync_replicas is {needed}")
        if acks == ACKS_FSYNC and len(self._unflushed) >= FLUSH_WAITERS_MAX:
            return ThrottlingQuotaExceededError(f"{FLUSH_WAITERS_MAX} batches wait for the disk")
        if self._progress is not None and len(self._uncopied) >= COPY_WAITERS_MAX:
            return ThrottlingQuotaExceededError(f"{COPY_WAITERS_MAX} batches wait for other copies")
        return None

    def _answer_earlier(self, event: ev.Produce, earlier: tuple[int, int] | BrokerError) -> list[Effect]:
        if isinstance(earlier, BrokerError):
            return [ev.Refuse(event.request, earlier)]
        base_offset, next_offset = earlier
        assert next_offset <= self.log_end
        if next_offset > self.high_watermark:
            error = self._refusal or self._objection(event.acks, event.leader_epoch)
            if error is not None:
                return [ev.Refuse(event.request, error)]
        if event.acks in _ACKS_OF_THE_LEADER:
            return [ev.Acknowledge(event.request, base_offset)] if event.acks == ACKS_LEADER else []
        waiting = self._unflushed if event.acks == ACKS_FSYNC else self._uncopied
        # Behind the first copy of the batch, if that one still waits, and before what was appended later.
        waiting.insert(bisect_right(waiting, next_offset, key=_next_offset), (next_offset, base_offset, event.request))
        effects: list[Effect] = []
        if event.acks == ACKS_FSYNC:
            if self.durable < next_offset:
                self._begin_flush(effects)
            if self._progress is not None and self.config.min_insync_replicas > 1:
                # An earlier leader may have appended it, or for other acks: the other copies were not asked by us.
                effects.append(ev.Tell(next_offset))
        self._answer_waiting(effects)
        return effects

    def _appended(self, event: ev.Appended, now_ns: int) -> list[Effect]:
        assert event.base_offset == self.log_end, f"appended at {event.base_offset}, the log ended at {self.log_end}"
        assert event.next_offset > event.base_offset
        if self._progress is not None:
            return self._appended_before_others(event, now_ns)
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

    def _appended_before_others(self, event: ev.Appended, now_ns: int) -> list[Effect]:
        self.log_end = event.next_offset
        effects: list[Effect] = []
        flush_to = -1
        if event.acks == ACKS_FSYNC:
            self._unflushed.append((event.next_offset, event.base_offset, event.request))
            self._begin_flush(effects)
            if self.config.min_insync_replicas > 1:
                flush_to = event.next_offset
        elif event.acks == ACKS_ALL:
            self._uncopied.append((event.next_offset, event.base_offset, event.request))
        if self._dirty_since_ns is None:
            self._dirty_since_ns = now_ns
        has_moved = self._raise_high_watermark(now_ns)
        effects.append(ev.Publish(self.high_watermark))
        if event.acks == ACKS_LEADER:
            effects.append(ev.Acknowledge(event.request, event.base_offset))
        if has_moved:
            self._follow_high_watermark(effects)
        if 0 < self.config.flush_messages <= self.log_end - self.durable:
            self._begin_flush(effects)
        effects.append(ev.Tell(flush_to))
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
        if self.state is OFFLINE:
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
        if self._progress is not None:
            effects.append(ev.Tell())
        return effects

    def _flushed(self, event: ev.Flushed, now_ns: int) -> list[Effect]:
        assert event.durable <= self.log_end
        self._flush_target = None
        if self.state is OFFLINE:
            return []
        effects: list[Effect] = []
        if event.durable > self.durable:
            self.durable = event.durable
            effects.append(ev.PublishDurable(event.durable))
        self._dirty_since_ns = None if self.durable == self.log_end else now_ns
        waiting_count = len(self._unflushed)
        self._answer_waiting(effects)
        self._is_flush_shared = waiting_count - len(self._unflushed) >= FLUSH_SHARED_FROM
        if self._unflushed and self.durable < self._unflushed[-1][0]:
            self._begin_flush(effects)
        return effects

    def _flush_failed(self, event: ev.FlushFailed, now_ns: int) -> list[Effect]:
        self._flush_target = None
        return refuse_all(self._unflushed, event.error)

    def _rolled(self, event: ev.Rolled, now_ns: int) -> list[Effect]:
        effects: list[Effect] = [ev.Restate()]
        if self.durable < self.log_end and self.state is not OFFLINE:
            self._begin_flush(effects)
        return effects

    def _tick(self, event: ev.Tick, now_ns: int) -> list[Effect]:
        effects: list[Effect] = []
        flush_ms = self.config.flush_ms
        since_ns = self._dirty_since_ns
        is_due = flush_ms >= 0 and since_ns is not None and now_ns - since_ns >= flush_ms * NS_PER_MS
        if is_due and self.state is not OFFLINE:
            self._begin_flush(effects)
        if self._progress is not None:
            self._progress.pass_time(self.log_end, now_ns)
            self._look_at_copies(effects, now_ns)
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
        self._is_epoch_durable = event.is_epoch_durable
        if self._progress is not None:
            self._progress.begin_epoch(self.log_end, now_ns)
        return [ev.Restate()]

    def _epoch_durable(self, event: ev.EpochDurable, now_ns: int) -> list[Effect]:
        effects: list[Effect] = []
        if event.leader_epoch == self.leader_epoch and self.state is not OFFLINE:
            self._is_epoch_durable = True
            self._answer_waiting(effects)
        return effects

    def _copies_changed(self, event: ev.CopiesChanged, now_ns: int) -> list[Effect]:
        known = self._progress
        if known is not None and event.copies.partition_epoch <= known.copies.partition_epoch:
            return []
        self._use(event.copies, now_ns)
        return self._copies_moved(now_ns)

    def _follower_at(self, event: ev.FollowerAt, now_ns: int) -> list[Effect]:
        if self._progress is None or not self._progress.report(event, self.log_end, now_ns):
            return []
        return self._copies_moved(now_ns)

    def _follower_lost(self, event: ev.FollowerLost, now_ns: int) -> list[Effect]:
        if self._progress is None:
            return []
        self._progress.lose(event)
        return self._copies_moved(now_ns)

    def _isr_answered(self, event: ev.IsrAnswered, now_ns: int) -> list[Effect]:
        if self._progress is None:
            return []
        self._progress.answered(event, now_ns)
        self.isr_size = self._progress.isr_size
        return self._copies_moved(now_ns)

    def _isr_refused(self, event: ev.IsrRefused, now_ns: int) -> list[Effect]:
        if self._progress is None:
            return []
        self._progress.refused(event, now_ns)
        return self._copies_moved(now_ns)

    def _revoked(self, event: ev.Revoked, now_ns: int) -> list[Effect]:
        effects: list[Effect] = [ev.Retire()]
        if self._waits:
            effects.append(ev.Wake(list(self._waits)))
            self._waits.clear()
        effects += self._refuse_waiting(NotLeaderForPartitionError("the partition was moved or deleted"))
        self.state = State.REVOKED
        return effects


def _next_offset(waiting: tuple[int, int, object]) -> int:
    return waiting[0]


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
    ev.EpochDurable: Partition._epoch_durable,
    ev.CopiesChanged: Partition._copies_changed,
    ev.FollowerAt: Partition._follower_at,
    ev.FollowerLost: Partition._follower_lost,
    ev.IsrAnswered: Partition._isr_answered,
    ev.IsrRefused: Partition._isr_refused,
    ev.Revoked: Partition._revoked,
}
