"""The other copies of a partition that is led here: which there are, what they get, what is asked about them.

Guarantees: nothing here costs anything while there is one copy. An answer of the coordinator, or that there was none,
is always reported to the partition's state machine, which decides what to ask next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zbroker.core import partition_events as ev
from zbroker.core import replication_events as rv
from zbroker.core.partition_events import Copies
from zbroker.errors import BrokerError
from zbroker.wire.codec import decode
from zbroker.wire.copy_messages import CopyState, PartitionState
from zbroker.wire.inner_messages import AlterIsr, CopyPlace, IsrAltered, PartitionGrant
from zbroker.workers.feed import Feed
from zbroker.workers.host import Host

if TYPE_CHECKING:
    from zbroker.workers.leader import Leader


def copies_of(grant: PartitionGrant) -> Copies | None:
    """The copies that a grant names; None when it names none."""
    if not grant.copies:
        return None
    every = tuple(place.copy_id for place in grant.copies)
    return Copies(every, tuple(grant.isr), tuple(grant.elr), grant.partition_epoch)


class OtherCopies:
    """See the module. `feed` is what they get; None while there are none."""

    __slots__ = ("_host", "_leader", "_places", "feed")

    def __init__(self, leader: Leader, host: Host, places: tuple[CopyPlace, ...]) -> None:
        self._leader = leader
        self._host = host
        self._places = places
        self.feed: Feed | None = None

    def begin(self) -> None:
        """There are others: let them subscribe."""
        leader = self._leader
        self.feed = Feed(leader, leader.log, self._host.streams, self._others())
        self._host.attention.copied.add(leader)

    def renew(self, grant: PartitionGrant) -> None:
        """The coordinator's news of the copies."""
        copies = copies_of(grant)
        feed = self.feed
        if feed is not None and grant.leader_epoch > feed.machine.leader_epoch:
            feed.handle(rv.EpochBegun(grant.leader_epoch))
        if copies is None or (len(copies.all) == 1 and feed is None):
            return
        self._places = grant.copies
        progress = self._leader.core.progress
        if feed is not None:
            is_newer = progress is not None and copies.partition_epoch > progress.copies.partition_epoch
            doubted = [copy_id for copy_id in self._others() if copy_id not in copies.isr] if is_newer else []
            # First: or we would propose at once whom the coordinator has just taken out, on their old word.
            feed.handle(rv.CopiesKnown(self._others(), tuple(doubted)))
        self._leader.handle(ev.CopiesChanged(copies))
        if feed is None:
            self.begin()

    def _others(self) -> tuple[int, ...]:
        return tuple(place.copy_id for place in self._places if place.copy_id != self._leader.copy_id)

    def tell(self, effect: ev.Tell) -> None:
        """The partition has something for them."""
        if self.feed is not None:
            self.feed.tell(effect.flush_to)

    def tick(self) -> None:
        """Time went on."""
        if self.feed is not None:
            self.feed.handle(rv.Tick())

    def are_beyond(self, offset: int) -> bool:
        """Whether every follower that is being sent something has all before an offset."""
        return self.feed is None or all(one.acked >= offset for one in self.feed.machine.streams.values())

    def propose(self, effect: ev.ProposeIsr) -> None:
        """Ask the coordinator for another ISR."""
        leader = self._leader
        own = self._host.incarnation
        wanted = AlterIsr(
            leader.topic_id,
            leader.partition,
            effect.leader_epoch,
            effect.partition_epoch,
            list(effect.isr),
            [one or own for one in effect.incarnations],
        )

        def answered(error: BrokerError | None, body: bytes) -> None:
            if not leader.is_open:
                return
            if error is None:
                found = decode(IsrAltered, body)
                leader.handle(ev.IsrAnswered(found.partition_epoch, tuple(found.isr), tuple(found.elr)))
            else:
                leader.handle(ev.IsrRefused(effect.partition_epoch, error))

        self._host.ask_coordinator(wanted, answered)

    def describe(self) -> PartitionState:
        """How the leader's copy and the others stand."""
        leader = self._leader
        core = leader.core
        progress = core.progress
        isr = (leader.copy_id,) if progress is None else progress.copies.isr
        copies = []
        for copy_id, number in self._numbers().items():
            found = None if progress is None else progress.follower(copy_id)
            log_end, durable = (core.log_end, core.durable) if found is None else (found.log_end, found.durable)
            lag_records = max(0, core.log_end - max(log_end, core.log_start))
            copies.append(CopyState(copy_id, number, log_end, durable, lag_records, copy_id in isr))
        return PartitionState(
            topic_id=leader.topic_id,
            partition=leader.partition,
            error=0,
            leader_epoch=core.leader_epoch,
            log_start=core.log_start,
            high_watermark=core.high_watermark,
            log_end=core.log_end,
            durable=core.durable,
            copies=copies,
        )

    def _numbers(self) -> dict[int, int]:
        return {place.copy_id: place.number for place in self._places} or {self._leader.copy_id: self._host.number}
