"""How far every copy of a led partition is, which are in sync, and what follows from it for readers and producers.

    isr              what the coordinator has written down
    maximal isr      isr and whatever is proposed and not answered: the coordinator may have taken it over already, and
                     may elect any of these (KIP-497). The high watermark is the lowest log end among them.

Rules (KIP-966), each asserted or tested by name:
  - The high watermark moves only while the ISR has `min_insync` copies, and the number of copies if that is smaller.
  - A copy joins when it has everything up to the high watermark, and everything before this leader's epoch: with less
    it may lack what an earlier leader acknowledged. It joins as the incarnation that said so.
  - The high watermark waits for a copy outside that is caught up, or none could join under load (Kafka's rule).
  - A copy leaves when it has not been caught up for `lag_max_ns`. Caught up: it had, at some moment, all that the
    leader had then. The leader never leaves. Time in which the leader itself did nothing makes nobody late.
  - One proposal at a time; one that may have been taken over counts until news show whether it was.
"""

from __future__ import annotations

from typing import Final

from zbroker.clock import NS_PER_MS
from zbroker.core import partition_events as ev
from zbroker.core.partition_events import Copies
from zbroker.errors import FencedLeaderEpochError, InvalidUpdateVersionError, StaleIncarnationError

PROPOSE_AGAIN_AFTER_NS: Final = 500 * NS_PER_MS
REFUSED_FOR_NS: Final = 2_000 * NS_PER_MS
PAUSE_MIN_NS: Final = 450 * NS_PER_MS  # more than twice the time between two ticks, which is no pause
_UNKNOWN: Final = -1


class Follower:
    """What the leader knows of one other copy."""

    __slots__ = (
        "caught_up_ns",
        "copy_id",
        "durable",
        "has_caught_up",
        "incarnation",
        "is_here",
        "log_end",
        "reported_ns",
        "seen_end",
    )

    def __init__(self, copy_id: int, now_ns: int) -> None:
        self.copy_id = copy_id
        self.incarnation = 0
        self.log_end = _UNKNOWN
        self.durable = _UNKNOWN
        self.is_here = False
        self.has_caught_up = False
        # A new leader gives everybody the whole time to come: that nothing was heard yet says nothing.
        self.caught_up_ns = now_ns
        self.reported_ns = now_ns
        self.seen_end = _UNKNOWN


class Progress:
    """See the module. Only its `Partition` calls it."""

    __slots__ = (
        "_epoch_start",
        "_followers",
        "_incarnations",
        "_lag_max_ns",
        "_looked_ns",
        "_own",
        "_propose_at_ns",
        "_refused",
        "copies",
        "proposed",
    )

    def __init__(self, own: int, copies: Copies, epoch_start: int, lag_max_ns: int, now_ns: int) -> None:
        self._own = own
        self._lag_max_ns = lag_max_ns
        self._epoch_start = epoch_start
        self._followers: dict[int, Follower] = {}
        self._propose_at_ns = 0
        self._looked_ns = now_ns
        self._refused: dict[int, tuple[int, int]] = {}  # copy -> the incarnation that was refused, and until when
        self._incarnations: tuple[int, ...] = ()  # those that the proposal was made for
        self.proposed: tuple[int, ...] | None = None
        self.copies = copies
        self.adopt(copies, now_ns)

    def adopt(self, copies: Copies, now_ns: int) -> None:
        """The coordinator's newer word: an open proposal was taken over before it, or never will be."""
        assert self._own in copies.isr, f"leader {self._own} is not in the ISR {copies.isr}"
        self.copies = copies
        self.proposed = None
        wanted = [copy_id for copy_id in copies.all if copy_id != self._own]
        self._followers = {one: self._followers.get(one) or Follower(one, now_ns) for one in wanted}

    def begin_epoch(self, log_end: int, now_ns: int) -> None:
        """The same leader begins a new epoch at its log end. An open proposal is made again under it: that of the old
        epoch is refused from now on, and a grant that changes no set says nothing else of it."""
        self._epoch_start = log_end
        if self.proposed is not None:
            self._propose_at_ns = max(1, now_ns)

    @property
    def is_alone(self) -> bool:
        """Whether no other copy exists."""
        return not self._followers and self.copies.isr == (self._own,)

    @property
    def isr_size(self) -> int:
        """How many copies are in sync, by the coordinator's word."""
        return len(self.copies.isr)

    def follower(self, copy_id: int) -> Follower | None:
        """What is known of a copy, for those who describe the partition."""
        return self._followers.get(copy_id)

    def report(self, event: ev.FollowerAt, log_end: int, now_ns: int) -> bool:
        """Note what a follower says; False: it is no copy of this partition, or an incarnation that was replaced."""
        one = self._followers.get(event.copy_id)
        if one is None or event.incarnation < one.incarnation:
            return False
        self._look(now_ns)
        if event.incarnation != one.incarnation:
            one.incarnation = event.incarnation
            one.seen_end = _UNKNOWN
            one.has_caught_up = False
        one.is_here = True
        one.log_end, one.durable = event.log_end, event.durable
        if event.log_end >= log_end:
            one.caught_up_ns = now_ns
            one.has_caught_up = True
        elif 0 <= one.seen_end <= event.log_end:
            one.caught_up_ns = max(one.caught_up_ns, one.reported_ns)
            one.has_caught_up = True
        one.reported_ns, one.seen_end = now_ns, log_end
        return True

    def pass_time(self, log_end: int, now_ns: int) -> None:
        """Who has all that there is has it still: a silent partition makes nobody late."""
        self._look(now_ns)
        for one in self._followers.values():
            if one.log_end >= log_end:
                one.caught_up_ns = now_ns

    def lose(self, event: ev.FollowerLost) -> None:
        """The session of this incarnation ended."""
        one = self._followers.get(event.copy_id)
        if one is not None and one.incarnation == event.incarnation:
            one.is_here = False
            one.has_caught_up = False
            one.seen_end = _UNKNOWN

    def high_watermark(self, log_end: int, min_insync: int, now_ns: int) -> int:
        """Where the high watermark may be, now that our own log ends here; -1 when it may not move."""
        copies = self.copies
        if len(copies.isr) < min_insync and len(copies.isr) < len(copies.all):
            return _UNKNOWN
        lowest = log_end
        for copy_id, one in self._followers.items():
            if one.log_end < lowest and (self._is_maximal(copy_id) or self._may_join_soon(one, now_ns)):
                lowest = one.log_end
        return lowest

    def durable_on(self, count: int, own_durable: int) -> int:
        """Everything before this offset is on the disks of at least `count` copies of the ISR; -1: of fewer."""
        found = [own_durable]
        found += [one.durable for copy_id, one in self._followers.items() if copy_id in self.copies.isr]
        if len(found) < count:
            return _UNKNOWN
        found.sort(reverse=True)
        return found[count - 1]

    def proposal(self, leader_epoch: int, high_watermark: int, now_ns: int) -> ev.ProposeIsr | None:
        """What to ask the coordinator for now, if anything."""
        self._look(now_ns)
        if now_ns < self._propose_at_ns:
            return None
        isr = self.proposed
        if isr is None:
            isr = self._wanted(high_watermark, now_ns)
            if isr == self.copies.isr:
                return None
            self.proposed = isr
            self._incarnations = tuple(map(self._incarnation_of, isr))
        elif self._propose_at_ns == 0:
            return None
        self._propose_at_ns = 0
        return ev.ProposeIsr(leader_epoch, self.copies.partition_epoch, isr, self._incarnations)

    def answered(self, event: ev.IsrAnswered, now_ns: int) -> None:
        """The proposal holds, or what the coordinator made of it."""
        if event.partition_epoch > self.copies.partition_epoch:
            self.adopt(Copies(self.copies.all, event.isr, event.elr, event.partition_epoch), now_ns)
        elif event.partition_epoch == self.copies.partition_epoch and event.isr == self.copies.isr:
            self.proposed = None

    def refused(self, event: ev.IsrRefused, now_ns: int) -> None:
        """The proposal does not hold, or that is not known."""
        if self.proposed is None or event.partition_epoch != self.copies.partition_epoch:
            return
        if isinstance(event.error, StaleIncarnationError):
            # Certainly not taken over. Who wanted in was replaced; or is it the coordinator that was, and does not know
            # it yet? So not for ever, but for long enough that the others' changes are not held up.
            until_ns = now_ns + REFUSED_FOR_NS
            asked = zip(self.proposed, self._incarnations, strict=True)
            self._refused.update((copy_id, (one, until_ns)) for copy_id, one in asked if copy_id not in self.copies.isr)
            self.proposed = None
            self._propose_at_ns = now_ns + PROPOSE_AGAIN_AFTER_NS
        elif not isinstance(event.error, InvalidUpdateVersionError | FencedLeaderEpochError):
            self._propose_at_ns = now_ns + PROPOSE_AGAIN_AFTER_NS

    def _wanted(self, high_watermark: int, now_ns: int) -> tuple[int, ...]:
        isr, followers = self.copies.isr, self._followers
        late = [copy_id for copy_id, one in followers.items() if copy_id in isr and self._is_late(one, now_ns)]
        outside = [one for copy_id, one in followers.items() if copy_id not in isr]
        joining = [one.copy_id for one in outside if self._may_join(one, high_watermark, now_ns)]
        if not late and not joining:
            return isr
        return (*(copy_id for copy_id in isr if copy_id not in late), *joining)

    def _may_join(self, one: Follower, high_watermark: int, now_ns: int) -> bool:
        needed = max(high_watermark, self._epoch_start)
        return self._may_join_soon(one, now_ns) and one.log_end >= needed

    def _may_join_soon(self, one: Follower, now_ns: int) -> bool:
        incarnation, until_ns = self._refused.get(one.copy_id, (_UNKNOWN, 0))
        is_refused = incarnation == one.incarnation and now_ns < until_ns
        return one.is_here and one.has_caught_up and not is_refused and not self._is_late(one, now_ns)

    def _look(self, now_ns: int) -> None:
        pause_ns = now_ns - self._looked_ns
        self._looked_ns = now_ns
        if pause_ns > max(self._lag_max_ns // 2, PAUSE_MIN_NS):
            # What the followers said meanwhile is still to be read.
            for one in self._followers.values():
                one.caught_up_ns += pause_ns

    def _is_late(self, one: Follower, now_ns: int) -> bool:
        return now_ns - one.caught_up_ns > self._lag_max_ns

    def _is_maximal(self, copy_id: int) -> bool:
        return copy_id in self.copies.isr or (self.proposed is not None and copy_id in self.proposed)

    def _incarnation_of(self, copy_id: int) -> int:
        one = self._followers.get(copy_id)
        return 0 if one is None else one.incarnation
