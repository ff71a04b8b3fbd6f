"""The leader's side of the streams of one partition: what each follower gets next.

    unknown --Subscribed--> streaming       its log is a beginning of ours: from its log end on
    unknown --Subscribed--> unknown         it is not: Diverge (KIP-101, KIP-279) or BeginAnew, and it subscribes again
    streaming --SessionLost, CopiesKnown, EpochBegun, a newer Subscribed--> unknown

Guarantees:
  - A follower's log end counts only after `Accept`: what a log holds that is no beginning of ours says nothing.
  - While `credit_bytes` are on their way to a follower nothing more is sent: that much is exceeded by a batch at most.
  - What is not confirmed for `RESEND_AFTER_NS` is sent again from the last confirmed offset on; news and flush requests
    likewise. A follower takes nothing twice, because every entry names the offset at which it begins.
  - A session belongs to one incarnation and one subscription of the follower: what older ones say is dropped or
    refused, so that an old confirmation cannot stand for a log that was cut since.

Messages are many and small when little is written, few and large when much is: every `Told` sends all that there is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Final, Protocol

from zbroker.clock import NS_PER_MS
from zbroker.core import partition_events as ev
from zbroker.core import replication_events as rv
from zbroker.core.replication_events import Effect, Event
from zbroker.errors import (
    BrokerError,
    FencedLeaderEpochError,
    InvalidRequestError,
    StaleIncarnationError,
    UnknownLeaderEpochError,
)

CREDIT_BYTES: Final = 4 << 20
ENTRY_BYTES_MAX: Final = 1 << 20
RESEND_AFTER_NS: Final = 1_000 * NS_PER_MS
_NOTHING: Final = -1


class History(Protocol):
    """What the state machine asks of the leader's log."""

    def end_offset_for(self, epoch: int) -> tuple[int, int]:
        """The largest epoch at or below `epoch` and the offset where it ends; (-1, -1) when there is none."""

    def batch_base(self, offset: int) -> int:
        """The base offset of the batch that holds `offset`; `offset` itself at the log end."""


class Stream:
    """What is on its way to one follower."""

    __slots__ = (
        "acked",
        "copy_id",
        "durable",
        "flush_to",
        "in_flight",
        "in_flight_bytes",
        "incarnation",
        "is_stuck",
        "moved_ns",
        "next_offset",
        "session",
        "subscription",
        "told_flush_to",
        "told_high_watermark",
        "told_log_start",
    )

    def __init__(self, event: rv.Subscribed, flush_to: int, now_ns: int) -> None:
        self.session = event.session
        self.copy_id = event.copy_id
        self.subscription = event.subscription
        self.incarnation = event.incarnation
        self.acked = event.log_end
        self.durable = event.durable
        self.next_offset = event.log_end
        self.in_flight: deque[tuple[int, int]] = deque()  # (end offset, size in bytes)
        self.in_flight_bytes = 0
        self.is_stuck = False
        self.moved_ns = now_ns
        self.flush_to = flush_to
        self.told_flush_to = _NOTHING
        self.told_high_watermark = _NOTHING
        self.told_log_start = _NOTHING

    def rewind(self, now_ns: int) -> None:
        """Count everything that is not confirmed as lost."""
        self.next_offset = self.acked
        self.in_flight.clear()
        self.in_flight_bytes = 0
        self.moved_ns = now_ns
        self.told_flush_to = self.told_high_watermark = self.told_log_start = _NOTHING

    def confirm(self, log_end: int, durable: int, now_ns: int) -> bool:
        """Note what the follower has; False: that was known."""
        if log_end <= self.acked and durable <= self.durable:
            return False
        self.acked = max(self.acked, log_end)
        self.durable = max(self.durable, durable)
        self.next_offset = max(self.next_offset, self.acked)
        while self.in_flight and self.in_flight[0][0] <= self.acked:
            self.in_flight_bytes -= self.in_flight.popleft()[1]
        self.moved_ns = now_ns
        return True


class Replication:
    """See the module. Only `handle` changes it."""

    def __init__(
        self,
        leader_epoch: int,
        copy_ids: tuple[int, ...],
        log_start: int,
        log_end: int,
        high_watermark: int,
        history: History,
        *,
        credit_bytes: int = CREDIT_BYTES,
        entry_bytes_max: int = ENTRY_BYTES_MAX,
    ) -> None:
        """`copy_ids` are the copies that may follow. `history` is asked, never changed."""
        assert credit_bytes > 0
        assert entry_bytes_max > 0
        self.leader_epoch = leader_epoch
        self.log_start = log_start
        self.log_end = log_end
        self.high_watermark = high_watermark
        self._flush_to = _NOTHING  # the highest ever wanted: who comes later is asked for it too
        self._history = history
        self._credit_bytes = credit_bytes
        self._entry_bytes_max = entry_bytes_max
        self._copy_ids = frozenset(copy_ids)
        self._known: dict[int, tuple[int, int]] = {}  # copy -> its newest (incarnation, subscription)
        self.streams: dict[int, Stream] = {}

    def handle(self, event: Event, now_ns: int) -> list[Effect]:
        """Take an event; give what must be done, in this order."""
        return _HANDLERS[type(event)](self, event, now_ns)

    # --- subscriptions -----------------------------------------------------------------------------------------------

    def _subscribed(self, event: rv.Subscribed, now_ns: int) -> list[Effect]:
        error = self._objection(event)
        if error is not None:
            return [self._reject(event, error)]
        key = (event.incarnation, event.subscription)
        if key <= self._known.get(event.copy_id, (0, 0)):
            return []
        self._known[event.copy_id] = key
        effects: list[Effect] = []
        self._end(event.copy_id, effects)
        answer = self._difference(event)
        if answer is not None:
            effects.append(answer)
            return effects
        one = self.streams[event.copy_id] = Stream(event, self._flush_to, now_ns)
        one.told_high_watermark, one.told_log_start = self.high_watermark, self.log_start
        where = (event.session, event.copy_id, event.subscription, self.leader_epoch)
        effects.append(rv.Accept(*where, self.log_start, self.high_watermark))
        effects.append(self._inform(one))
        self._send(one, effects, now_ns)
        return effects

    def _objection(self, event: rv.Subscribed) -> BrokerError | None:
        if event.leader_epoch != self.leader_epoch:
            return self._wrong_epoch(event.leader_epoch)
        if event.copy_id not in self._copy_ids:
            return InvalidRequestError(f"copy {event.copy_id} is none of this partition")
        known = self._known.get(event.copy_id)
        if known is not None and event.incarnation < known[0]:
            return StaleIncarnationError(f"copy {event.copy_id} subscribed as {known[0]:x} since")
        return None

    def _wrong_epoch(self, leader_epoch: int) -> BrokerError:
        if leader_epoch < self.leader_epoch:
            return FencedLeaderEpochError(f"epoch {leader_epoch}; this leader has {self.leader_epoch}")
        return UnknownLeaderEpochError(f"epoch {leader_epoch}; this leader has {self.leader_epoch}")

    def _difference(self, event: rv.Subscribed) -> Effect | None:
        """What the follower must do before it can go on where its log ends; None: nothing."""
        where = (event.session, event.copy_id, event.subscription, self.leader_epoch)
        is_empty = event.last_epoch < 0
        if event.log_end < self.log_start or (is_empty and event.log_end > self.log_end):
            return rv.BeginAnew(*where, self._history.batch_base(self.log_start))
        if is_empty:
            return None
        epoch, end_offset = self._history.end_offset_for(event.last_epoch)
        if epoch < 0:
            return rv.BeginAnew(*where, self._history.batch_base(self.log_start))
        if epoch == event.last_epoch and event.log_end <= end_offset:
            return None
        return rv.Diverge(*where, epoch, end_offset)

    def _reject(self, event: rv.Subscribed | rv.Copied, error: BrokerError) -> Effect:
        return rv.Reject(event.session, event.copy_id, event.subscription, self.leader_epoch, error)

    def _session_lost(self, event: rv.SessionLost, now_ns: int) -> list[Effect]:
        effects: list[Effect] = []
        one = self.streams.get(event.copy_id)
        if one is not None and one.session == event.session:
            self._end(event.copy_id, effects)
        return effects

    def _copies_known(self, event: rv.CopiesKnown, now_ns: int) -> list[Effect]:
        effects: list[Effect] = []
        self._copy_ids = frozenset(event.copy_ids)
        for copy_id in sorted(set(self.streams) - self._copy_ids):
            self._end(copy_id, effects)
        for copy_id in event.doubted:
            one = self.streams.get(copy_id)
            if one is not None:
                self._end(copy_id, effects)
                error = InvalidRequestError(f"copy {copy_id} left the ISR by the coordinator's word")
                effects.append(rv.Reject(one.session, copy_id, one.subscription, self.leader_epoch, error))
        return effects

    def _epoch_begun(self, event: rv.EpochBegun, now_ns: int) -> list[Effect]:
        effects: list[Effect] = []
        if event.leader_epoch > self.leader_epoch:
            self.leader_epoch = event.leader_epoch
            for copy_id in sorted(self.streams):
                self._end(copy_id, effects)
        return effects

    def _end(self, copy_id: int, effects: list[Effect]) -> None:
        one = self.streams.pop(copy_id, None)
        if one is not None:
            effects.append(rv.Inform(ev.FollowerLost(copy_id, one.incarnation)))

    # --- sending -----------------------------------------------------------------------------------------------------

    def _told(self, event: rv.Told, now_ns: int) -> list[Effect]:
        assert event.log_end >= self.log_end
        self.log_start, self.log_end = event.log_start, event.log_end
        self.high_watermark = event.high_watermark
        self._flush_to = max(self._flush_to, event.flush_to)
        effects: list[Effect] = []
        for one in self.streams.values():
            one.flush_to = self._flush_to
            self._send(one, effects, now_ns)
        return effects

    def _sent(self, event: rv.Sent, now_ns: int) -> list[Effect]:
        effects: list[Effect] = []
        one = self._stream(event)
        if one is not None:
            assert event.end_offset > one.next_offset, f"sent up to {event.end_offset} from {one.next_offset}"
            if not one.in_flight:
                one.moved_ns = now_ns
            one.in_flight.append((event.end_offset, event.size_bytes))
            one.in_flight_bytes += event.size_bytes
            one.next_offset = event.end_offset
            self._send(one, effects, now_ns)
        return effects

    def _not_sent(self, event: rv.NotSent, now_ns: int) -> list[Effect]:
        one = self._stream(event)
        if one is not None:
            one.is_stuck = True
            one.told_flush_to = one.told_high_watermark = one.told_log_start = _NOTHING
        return []

    def _copied(self, event: rv.Copied, now_ns: int) -> list[Effect]:
        if event.leader_epoch != self.leader_epoch:
            return [self._reject(event, self._wrong_epoch(event.leader_epoch))]
        one = self._stream(event)
        if one is None:
            return [self._reject(event, InvalidRequestError("no such subscription"))]
        effects: list[Effect] = []
        if event.log_end > self.log_end:
            self._end(event.copy_id, effects)
            error = InvalidRequestError(f"log end {event.log_end}; the leader's is {self.log_end}")
            return [*effects, self._reject(event, error)]
        if not one.confirm(event.log_end, event.durable, now_ns) and not one.in_flight:
            # It repeats itself because it waits for something: news may have been lost.
            one.told_high_watermark = _NOTHING
        effects.append(self._inform(one))
        self._send(one, effects, now_ns)
        return effects

    def _tick(self, event: rv.Tick, now_ns: int) -> list[Effect]:
        effects: list[Effect] = []
        for one in self.streams.values():
            is_waiting = bool(one.in_flight) or one.told_flush_to > one.durable
            if is_waiting and now_ns - one.moved_ns >= RESEND_AFTER_NS:
                one.rewind(now_ns)
            one.is_stuck = False
            self._send(one, effects, now_ns)
        return effects

    def _stream(self, event: rv.Sent | rv.NotSent | rv.Copied) -> Stream | None:
        one = self.streams.get(event.copy_id)
        return one if one is not None and one.subscription == event.subscription else None

    def _inform(self, one: Stream) -> Effect:
        return rv.Inform(ev.FollowerAt(one.copy_id, one.incarnation, one.acked, one.durable))

    def _where(self, one: Stream) -> tuple[Hashable, int, int, int]:
        return one.session, one.copy_id, one.subscription, self.leader_epoch

    def _send(self, one: Stream, effects: list[Effect], now_ns: int) -> None:
        if one.is_stuck:
            return
        flush_to = one.flush_to if one.flush_to > one.durable else _NOTHING
        room_bytes = self._credit_bytes - one.in_flight_bytes
        if one.next_offset < self.log_end and room_bytes > 0:
            size_bytes_max = min(room_bytes, self._entry_bytes_max)
            news = (self.high_watermark, self.log_start, flush_to)
            effects.append(rv.Send(*self._where(one), one.next_offset, self.log_end, size_bytes_max, *news))
        else:
            has_news = self.high_watermark > one.told_high_watermark or self.log_start > one.told_log_start
            is_urgent = flush_to > one.told_flush_to
            if not has_news and not is_urgent:
                return
            effects.append(rv.SendNews(*self._where(one), self.high_watermark, self.log_start, flush_to, is_urgent))
        if flush_to > one.told_flush_to:
            one.moved_ns = now_ns
        one.told_high_watermark, one.told_log_start = self.high_watermark, self.log_start
        one.told_flush_to = max(one.told_flush_to, flush_to)


_HANDLERS: Final[dict[type[Event], Callable[[Replication, Any, int], list[Effect]]]] = {
    rv.Subscribed: Replication._subscribed,
    rv.Copied: Replication._copied,
    rv.Told: Replication._told,
    rv.Sent: Replication._sent,
    rv.NotSent: Replication._not_sent,
    rv.SessionLost: Replication._session_lost,
    rv.EpochBegun: Replication._epoch_begun,
    rv.CopiesKnown: Replication._copies_known,
    rv.Tick: Replication._tick,
}
