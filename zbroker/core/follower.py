"""The follower's side of one partition: a state machine that copies the leader's log, batch by batch.

    SUBSCRIBING --Accepted--> COPYING           what we have is a beginning of the leader's log
    SUBSCRIBING --Diverged, MustBeginAnew--> TRUNCATING --Cut--> SUBSCRIBING
    COPYING --a gap, CopyFailed, Rejected, Connected--> SUBSCRIBING
    SUBSCRIBING, COPYING --LeaderChanged--> SUBSCRIBING
    any but FAILED --FoundDamaged--> SUSPECT --SuspectNoted--> TRUNCATING (everything) --Cut--> SUBSCRIBING
    any --Failed--> FAILED      any --Stopped--> STOPPED (the end: IllegalTransition)

Guarantees:
  - The log is at any time a beginning of the log of the leader it was accepted by, or what is left of earlier ones.
  - It is cut by leader epochs alone (KIP-101, KIP-279), never to the high watermark: acknowledged records may lie above
    the high watermark that we know of.
  - A message of another epoch or subscription than the newest changes nothing: a leader that was replaced cannot write
    here (KIP-320), and an old answer cannot have us cut a log that is another by now.
  - The high watermark is what leaders said, never above the own log end; it falls only when the log is cut below it.
  - A copy with damage below the high watermark says so, and is fetched again as a whole. It confirms nothing before.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Protocol

from zbroker.clock import NS_PER_MS
from zbroker.config.schema import TopicConfig
from zbroker.core import follower_events as fv
from zbroker.core.follower_events import Effect, Event
from zbroker.errors import IllegalTransition

SUBSCRIBE_AGAIN_AFTER_NS: Final = 200 * NS_PER_MS
SUBSCRIBE_PAUSE_NS: Final = 20 * NS_PER_MS
CONFIRM_AGAIN_AFTER_NS: Final = 500 * NS_PER_MS
SIGN_OF_LIFE_AFTER_NS: Final = 10_000 * NS_PER_MS
_NOTHING: Final = -1


class State(Enum):
    """What the follower is at. See the module."""

    SUBSCRIBING = "subscribing"
    TRUNCATING = "truncating"
    COPYING = "copying"
    SUSPECT = "suspect"
    FAILED = "failed"
    STOPPED = "stopped"


# Looking a member up by its class costs more than the rest of such a question does.
_SUBSCRIBING: Final = State.SUBSCRIBING
_COPYING: Final = State.COPYING
_FAILED: Final = State.FAILED
_STOPPED: Final = State.STOPPED
_WITH_LEADER: Final = (_SUBSCRIBING, _COPYING)


class History(Protocol):
    """What the state machine asks of its log."""

    @property
    def last_epoch(self) -> int:
        """The leader epoch of the last batch; -1 when there is none."""

    def end_offset_for(self, epoch: int) -> tuple[int, int]:
        """The largest epoch at or below `epoch` and the offset where it ends; (-1, -1) when there is none."""


class Follower:
    """See the module. Only `handle` changes it."""

    __slots__ = (
        "_config",
        "_confirmed_ns",
        "_dirty_since_ns",
        "_flush_to",
        "_history",
        "_is_flushing",
        "_subscribe_at_ns",
        "_subscription",
        "_told_high_watermark",
        "_told_log_start",
        "_trimmed_to",
        "durable",
        "high_watermark",
        "leader_epoch",
        "log_end",
        "log_start",
        "state",
    )

    def __init__(
        self,
        leader_epoch: int,
        log_start: int,
        log_end: int,
        durable: int,
        high_watermark: int,
        config: TopicConfig,
        history: History,
        *,
        subscription: int,
    ) -> None:
        """Follow the leader of `leader_epoch`, from `Connected` on. `history` is asked, never changed.

        `subscription` is above the number of every subscription that this process sent before: the clock's nanoseconds.
        """
        assert 0 <= log_start <= log_end, f"{log_start}..{log_end}"
        self.leader_epoch = leader_epoch
        self.log_start = log_start
        self.log_end = log_end
        self.durable = min(durable, log_end)
        self.high_watermark = max(log_start, min(high_watermark, log_end))
        self.state = State.SUBSCRIBING
        self._history = history
        self._subscription = subscription
        self._subscribe_at_ns = 0
        self._confirmed_ns = 0
        self._flush_to = _NOTHING
        self._is_flushing = False
        self._config = config
        self._dirty_since_ns: int | None = None
        self._told_high_watermark = 0
        self._told_log_start = 0
        self._trimmed_to = log_start

    def handle(self, event: Event, now_ns: int) -> list[Effect]:
        """Take an event; give what must be done, in this order. Raises IllegalTransition, with nothing changed."""
        if self.state is _STOPPED:
            raise IllegalTransition(f"{type(event).__name__} after the follower was stopped")
        if self.state is _FAILED and not isinstance(event, fv.Stopped):
            return []
        return _HANDLERS[type(event)](self, event, now_ns)

    # --- subscribing -------------------------------------------------------------------------------------------------

    def _connected(self, event: fv.Connected, now_ns: int) -> list[Effect]:
        return self._subscribe(now_ns) if self.state in _WITH_LEADER else []

    def _leader_changed(self, event: fv.LeaderChanged, now_ns: int) -> list[Effect]:
        if event.leader_epoch <= self.leader_epoch:
            return []
        self.leader_epoch = event.leader_epoch
        self._flush_to = _NOTHING
        return self._subscribe(now_ns) if self.state in _WITH_LEADER else []

    def _subscribe(self, now_ns: int) -> list[Effect]:
        self.state = State.SUBSCRIBING
        self._subscription = max(self._subscription + 1, now_ns)
        self._subscribe_at_ns = now_ns + SUBSCRIBE_AGAIN_AFTER_NS
        last_epoch = self._history.last_epoch
        return [fv.Subscribe(self.leader_epoch, self._subscription, last_epoch, self.log_end, self.durable)]

    def _subscribe_later(self, now_ns: int) -> None:
        self.state = State.SUBSCRIBING
        # Nothing that is still on its way belongs to the next subscription.
        self._subscription += 1
        self._subscribe_at_ns = now_ns + SUBSCRIBE_PAUSE_NS

    def _is_old(self, event: fv.Accepted | fv.Diverged | fv.MustBeginAnew | fv.Rejected | fv.Entry) -> bool:
        return event.leader_epoch != self.leader_epoch or event.subscription != self._subscription

    def _accepted(self, event: fv.Accepted, now_ns: int) -> list[Effect]:
        if self._is_old(event) or self.state is not _SUBSCRIBING:
            return []
        self.state = State.COPYING
        effects: list[Effect] = []
        self._told_high_watermark, self._told_log_start = event.high_watermark, event.log_start
        self._confirmed_ns = now_ns
        self._take_news(effects)
        effects.insert(0, self._shown())
        return effects

    def _diverged(self, event: fv.Diverged, now_ns: int) -> list[Effect]:
        if self._is_old(event) or self.state is not _SUBSCRIBING:
            return []
        epoch, end_offset = self._history.end_offset_for(event.epoch)
        if epoch < 0:
            return self._cut(fv.StartAnew(0))
        cut = min(event.end_offset, end_offset) if epoch == event.epoch else end_offset
        assert cut < self.log_end, f"{event} gives nothing to cut below {self.log_end}"
        return self._cut(fv.Truncate(cut) if cut >= self.log_start else fv.StartAnew(0))

    def _must_begin_anew(self, event: fv.MustBeginAnew, now_ns: int) -> list[Effect]:
        if self._is_old(event) or self.state is not _SUBSCRIBING:
            return []
        return self._cut(fv.StartAnew(event.offset))

    def _cut(self, effect: fv.Truncate | fv.StartAnew) -> list[Effect]:
        self.state = State.TRUNCATING
        if isinstance(effect, fv.StartAnew):
            self.log_start = self._trimmed_to = effect.offset
        # What is not there any more must be shown first as gone, or a reader could stand behind the end.
        self._fall_to(effect.offset)
        return [self._shown(), effect]

    def _fall_to(self, log_end: int) -> None:
        self.log_end = log_end
        self.durable = min(self.durable, log_end)
        self.high_watermark = min(self.high_watermark, log_end)
        self._flush_to = min(self._flush_to, log_end)

    def _was_cut(self, event: fv.Cut, now_ns: int) -> list[Effect]:
        assert self.state is State.TRUNCATING
        assert event.log_end <= self.log_end, f"cut at {event.log_end}, not at {self.log_end}"
        self.log_start = min(self.log_start, event.log_end)
        self._fall_to(event.log_end)
        if self.log_start == self.log_end:
            self.durable = self.high_watermark = self.log_end
        return [self._shown(), *self._subscribe(now_ns)]

    def _rejected(self, event: fv.Rejected, now_ns: int) -> list[Effect]:
        if event.subscription == self._subscription and self.state in _WITH_LEADER:
            # The other side may be the one that is behind: the same again soon, until the coordinator has news for one.
            self._subscribe_later(now_ns)
        return []

    # --- copying -----------------------------------------------------------------------------------------------------

    def _entry(self, event: fv.Entry, now_ns: int) -> list[Effect]:
        if self._is_old(event) or self.state is not _COPYING:
            return []
        has_batches = event.start_offset < event.end_offset
        if has_batches and event.start_offset != self.log_end and event.end_offset > self.log_end:
            return self._subscribe(now_ns)
        self._told_high_watermark = event.high_watermark
        self._told_log_start = event.log_start
        self._flush_to = max(self._flush_to, event.flush_to)
        if has_batches and event.start_offset == self.log_end:
            return [fv.Copy(event.body, event.start_offset, event.end_offset, self.leader_epoch)]
        effects: list[Effect] = []
        if self._take_news(effects):
            effects.insert(0, self._shown())
        self._flush_if_wanted(effects)
        if has_batches:
            effects.append(self._confirmation(now_ns))
        return effects

    def _written(self, event: fv.Written, now_ns: int) -> list[Effect]:
        assert self.state is _COPYING
        assert event.log_end > self.log_end, f"copied up to {event.log_end} from {self.log_end}"
        self.log_end = event.log_end
        if self._dirty_since_ns is None:
            self._dirty_since_ns = now_ns
        effects: list[Effect] = []
        self._take_news(effects)
        effects.insert(0, self._shown())
        self._flush_if_wanted(effects)
        effects.append(self._confirmation(now_ns))
        return effects

    def _copy_failed(self, event: fv.CopyFailed, now_ns: int) -> list[Effect]:
        assert event.log_end >= self.log_end
        self.log_end = event.log_end
        self._subscribe_later(now_ns)
        return [self._shown()]

    def _take_news(self, effects: list[Effect]) -> bool:
        """Apply what the leader said last; True: something is to be shown."""
        high_watermark = min(self._told_high_watermark, self.log_end)
        has_moved = high_watermark > self.high_watermark
        if has_moved:
            self.high_watermark = high_watermark
        log_start = min(self._told_log_start, self.log_end)
        if log_start > self._trimmed_to:
            self._trimmed_to = log_start
            effects.append(fv.Trim(log_start))
        return has_moved

    def _trimmed(self, event: fv.Trimmed, now_ns: int) -> list[Effect]:
        self.log_start = min(max(self.log_start, event.log_start), self.log_end)
        self.high_watermark = max(self.high_watermark, self.log_start)
        return [self._shown()]

    def _shown(self) -> Effect:
        return fv.Publish(self.log_start, self.log_end, self.high_watermark, self.durable)

    def _confirmation(self, now_ns: int) -> Effect:
        self._confirmed_ns = now_ns
        return fv.Confirm(self.leader_epoch, self._subscription, self.log_end, self.durable)

    # --- the disk ----------------------------------------------------------------------------------------------------

    def _flush_if_wanted(self, effects: list[Effect]) -> None:
        unflushed = self.log_end - self.durable
        is_wanted = min(self._flush_to, self.log_end) > self.durable or 0 < self._config.flush_messages <= unflushed
        if is_wanted and not self._is_flushing:
            self._is_flushing = True
            effects.append(fv.Flush())

    def _flushed(self, event: fv.Flushed, now_ns: int) -> list[Effect]:
        self._is_flushing = False
        durable = min(event.durable, self.log_end)
        self._dirty_since_ns = None if durable == self.log_end else now_ns
        effects: list[Effect] = []
        if durable > self.durable:
            self.durable = durable
            effects.append(self._shown())
            if self.state is _COPYING:
                effects.append(self._confirmation(now_ns))
        self._flush_if_wanted(effects)
        return effects

    def _flush_failed(self, event: fv.FlushFailed, now_ns: int) -> list[Effect]:
        self._is_flushing = False
        return []

    def _rolled(self, event: fv.Rolled, now_ns: int) -> list[Effect]:
        if self.durable == self.log_end or self._is_flushing:
            return []
        self._is_flushing = True
        return [fv.Flush()]

    def _reconfigured(self, event: fv.Reconfigured, now_ns: int) -> list[Effect]:
        self._config = event.config
        return []

    def _found_damaged(self, event: fv.FoundDamaged, now_ns: int) -> list[Effect]:
        self.state = State.SUSPECT
        return [fv.ReportSuspect(event.error)]

    def _suspect_noted(self, event: fv.SuspectNoted, now_ns: int) -> list[Effect]:
        return self._cut(fv.StartAnew(0)) if self.state is State.SUSPECT else []

    def _failed(self, event: fv.Failed, now_ns: int) -> list[Effect]:
        self.state = State.FAILED
        return [fv.ReportSuspect(event.error)]

    def _stopped(self, event: fv.Stopped, now_ns: int) -> list[Effect]:
        self.state = State.STOPPED
        return []

    def _tick(self, event: fv.Tick, now_ns: int) -> list[Effect]:
        effects: list[Effect] = []
        if self.state is _SUBSCRIBING and now_ns >= self._subscribe_at_ns:
            return self._subscribe(now_ns)
        if self.state is _COPYING:
            # The same again until it is known to have arrived: the leader sends what it has to say once more.
            is_settled = self.high_watermark == self.log_end and self._flush_to <= self.durable
            pause_ns = SIGN_OF_LIFE_AFTER_NS if is_settled else CONFIRM_AGAIN_AFTER_NS
            if now_ns - self._confirmed_ns >= pause_ns:
                effects.append(self._confirmation(now_ns))
        since_ns, flush_ms = self._dirty_since_ns, self._config.flush_ms
        if since_ns is not None and 0 <= flush_ms * NS_PER_MS <= now_ns - since_ns:
            self._flush_to = self.log_end
        self._flush_if_wanted(effects)
        return effects


_HANDLERS: Final[dict[type[Event], Callable[[Follower, Any, int], list[Effect]]]] = {
    fv.Connected: Follower._connected,
    fv.LeaderChanged: Follower._leader_changed,
    fv.Accepted: Follower._accepted,
    fv.Diverged: Follower._diverged,
    fv.MustBeginAnew: Follower._must_begin_anew,
    fv.Rejected: Follower._rejected,
    fv.Entry: Follower._entry,
    fv.Written: Follower._written,
    fv.CopyFailed: Follower._copy_failed,
    fv.Cut: Follower._was_cut,
    fv.Trimmed: Follower._trimmed,
    fv.Flushed: Follower._flushed,
    fv.FlushFailed: Follower._flush_failed,
    fv.Rolled: Follower._rolled,
    fv.Reconfigured: Follower._reconfigured,
    fv.FoundDamaged: Follower._found_damaged,
    fv.SuspectNoted: Follower._suspect_noted,
    fv.Failed: Follower._failed,
    fv.Stopped: Follower._stopped,
    fv.Tick: Follower._tick,
}
