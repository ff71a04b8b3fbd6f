"""What the followers of a led partition get: the state machine of `core/replication.py`, its effects as messages.

Guarantees: a follower is told where the bytes are, not sent them, as long as it can open the leader's file; what is
sent inline was checked against its CRC here. Nothing waits for a follower: what cannot be handed over now is tried
again.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from zbroker.core import replication_events as rv
from zbroker.core.replication import Replication
from zbroker.errors import BrokerError
from zbroker.record.batch import batches_in
from zbroker.storage.copied_log import CopiedLog
from zbroker.wire import stream
from zbroker.workers.tail import Tail

if TYPE_CHECKING:
    from zbroker.workers.leader import Leader
    from zbroker.workers.streams import Peer, Streams

_Key = tuple[int, int, int, int, int]
_NO_FRAME: Final = 0


class Feed:
    """See the module. One for each led partition that has more than one copy."""

    __slots__ = ("_flush_to", "_inline", "_leader", "_log", "_streams", "_tail", "is_told", "machine")

    def __init__(self, leader: Leader, log: CopiedLog, streams: Streams, copy_ids: tuple[int, ...]) -> None:
        """`copy_ids` are the other copies."""
        self._leader = leader
        self._log = log
        self._streams = streams
        self._tail = Tail(log)
        self._inline: set[int] = set()
        self._flush_to = -1
        self.is_told = False
        self.machine = Replication(
            leader.leader_epoch,
            copy_ids,
            log.log_start,
            log.log_end,
            leader.high_watermark,
            log,
            credit_bytes=streams.credit_bytes,
        )

    def tell(self, flush_to: int) -> None:
        """The partition has something for its followers: sent at the end of the turn."""
        self._tail.note()
        self._flush_to = max(self._flush_to, flush_to)
        if not self.is_told:
            self.is_told = True
            self._streams.told.append(self)

    def send_what_was_told(self) -> None:
        """The end of the turn."""
        self.is_told = False
        core = self._leader.core
        told = rv.Told(core.log_start, core.log_end, core.high_watermark, self._flush_to)
        self._flush_to = -1
        self.handle(told)

    def handle(self, event: rv.Event) -> None:
        """Give an event to the state machine, and do what it wants. Nothing, when this process leads no more."""
        if not self._leader.is_open:
            return
        now_ns = self._streams.clock.now_ns()
        pending = deque(self.machine.handle(event, now_ns))
        while pending:
            effect = pending.popleft()
            report = self._perform(effect)
            if report is not None:
                pending.extendleft(reversed(self.machine.handle(report, now_ns)))

    def subscribe(self, peer: Peer, entry: stream.Subscribe, incarnation: int) -> None:
        """SUBSCRIBE came."""
        if entry.flags & stream.FLAG_INLINE:
            self._inline.add(entry.copy_id)
        else:
            self._inline.discard(entry.copy_id)
        self.handle(
            rv.Subscribed(
                session=peer,
                copy_id=entry.copy_id,
                subscription=entry.subscription,
                incarnation=incarnation,
                leader_epoch=entry.leader_epoch,
                last_epoch=entry.last_epoch,
                log_end=entry.log_end,
                durable=entry.durable,
            )
        )

    def _perform(self, effect: rv.Effect) -> rv.Event | None:
        """Do it, and give what is to be reported about it."""
        if isinstance(effect, rv.Send):
            return self._send(effect)
        if isinstance(effect, rv.Inform):
            self._leader.handle(effect.event)
            return None
        if isinstance(effect, rv.SendNews):
            return self._send_news(effect)
        assert isinstance(effect, rv.Accept | rv.Diverge | rv.BeginAnew | rv.Reject)
        key = self._key(effect)
        answer: stream.Entry
        if isinstance(effect, rv.Accept):
            answer = stream.Accepted(*key, effect.log_start, effect.high_watermark)
        elif isinstance(effect, rv.Diverge):
            answer = stream.Diverged(*key, effect.epoch, 0, effect.end_offset)
        elif isinstance(effect, rv.BeginAnew):
            answer = stream.BeginAnew(*key, effect.offset)
        else:
            answer = stream.Rejected(*key, effect.error.code, 0)
        # An answer that finds no room is lost, as zmq loses messages: the follower subscribes again.
        self._peer(effect).post(answer)
        return None

    def _send(self, effect: rv.Send) -> rv.Event:
        start = effect.start_offset
        inline: bytes | None = None
        try:
            found = self._tail.range_from(start, effect.size_bytes_max)
            if effect.copy_id in self._inline:
                inline = self._log.read(start, found.size_bytes, found.end_offset)
                end_offset = start
                for _, header in batches_in(inline):
                    end_offset = header.next_offset
                found = found._replace(size_bytes=len(inline), end_offset=end_offset)
        except BrokerError as error:
            self._leader.cannot_be_read(error)
            self._peer(effect).post(stream.Rejected(*self._key(effect), error.code, 0))
            return rv.SessionLost(effect.session, effect.copy_id)
        entry = stream.Appended(
            *self._key(effect),
            start_offset=start,
            end_offset=found.end_offset,
            segment_base=found.segment_base,
            position=found.position,
            size_bytes=found.size_bytes,
            high_watermark=effect.high_watermark,
            log_start=effect.log_start,
            flush_to=effect.flush_to,
            frame=_NO_FRAME,
            zero=0,
        )
        if self._peer(effect).post(entry, inline):
            where = (effect.session, effect.copy_id, effect.subscription)
            return rv.Sent(*where, found.end_offset, found.size_bytes)
        return rv.NotSent(effect.session, effect.copy_id, effect.subscription)

    def _send_news(self, effect: rv.SendNews) -> rv.Event | None:
        end = self._log.log_end
        entry = stream.Appended(
            *self._key(effect),
            start_offset=end,
            end_offset=end,
            segment_base=0,
            position=0,
            size_bytes=0,
            high_watermark=effect.high_watermark,
            log_start=effect.log_start,
            flush_to=effect.flush_to,
            frame=_NO_FRAME,
            zero=0,
        )
        peer = self._peer(effect)
        if not effect.is_urgent:
            peer.post_later(entry)
            return None
        if peer.post(entry):
            return None
        return rv.NotSent(effect.session, effect.copy_id, effect.subscription)

    def _key(self, effect: rv.Accept | rv.Diverge | rv.BeginAnew | rv.Reject | rv.Send | rv.SendNews) -> _Key:
        leader = self._leader
        return (leader.topic_id, leader.partition, effect.leader_epoch, effect.copy_id, effect.subscription)

    @staticmethod
    def _peer(effect: rv.Accept | rv.Diverge | rv.BeginAnew | rv.Reject | rv.Send | rv.SendNews) -> Peer:
        peer: Peer = effect.session  # type: ignore[assignment]  # sessions are what `subscribe` gave
        return peer
