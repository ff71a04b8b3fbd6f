"""A process that has one copy: the real state machines of leader and follower over a log in memory.

It does the effects as the workers do: synchronously, in order, streams at the end of the turn. What it sends goes into
the world's network, what it flushes is on the disk when the world says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.replication_coordinator import AlterIsr, Grant, GrantAnswer, IsrAnswer
from tests.replication_log import MemoryLog, ViolationError
from zbroker.core import follower_events as fv
from zbroker.core import partition_events as ev
from zbroker.core import replication_events as rv
from zbroker.core.follower import Follower
from zbroker.core.partition import ACKS_NONE, Partition
from zbroker.core.replication import Replication
from zbroker.core.succession import may_complete
from zbroker.errors import RequestTimedOutError

if TYPE_CHECKING:
    from tests.replication_world import World

BYTES_PER_RECORD = 100
COORDINATOR = 99
ANSWER_WITHIN_NS = 300_000_000
Request = tuple[int, int]  # (value, acks)
_LEADER_TICK = ev.Tick()
_STREAM_TICK = rv.Tick()
_FOLLOWER_TICK = fv.Tick()


class Node:
    """See the module."""

    partition_class = Partition
    replication_class = Replication
    follower_class = Follower

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.log = MemoryLog(world.written)
        self.is_up = False
        self.is_paused = False
        self.is_suspect = False
        self.incarnation = 0
        self.board = 0  # the high watermark on the board, which outlives the process
        self.board_epoch = -1  # and the epoch of who showed it
        self.leader: Partition | None = None
        self.streams: Replication | None = None
        self.follower: Follower | None = None
        self.leader_number = -1
        self.epoch = -1
        self.partition_epoch = -1
        self.flushing_to: int | None = None
        self._asked: dict[int, int] = {}  # values that wait for an answer -> acks
        self._isr_asked: tuple[int, int] | None = None  # (partition epoch, deadline)
        self._flush_to: int | None = None  # of the `Tell`s of this turn
        self._stream_effects: dict[type, Callable[[Any], None]] = {
            rv.Send: self._send,
            rv.SendNews: self._send_news,
            rv.Inform: lambda effect: self.lead(effect.event),
            rv.Accept: lambda e: self._tell(
                e, fv.Accepted(e.leader_epoch, e.subscription, e.log_start, e.high_watermark)
            ),
            rv.Diverge: lambda e: self._tell(e, fv.Diverged(e.leader_epoch, e.subscription, e.epoch, e.end_offset)),
            rv.BeginAnew: lambda e: self._tell(e, fv.MustBeginAnew(e.leader_epoch, e.subscription, e.offset)),
            rv.Reject: lambda e: self._tell(e, fv.Rejected(e.leader_epoch, e.subscription, e.error)),
        }

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.is_up, self.is_paused = True, False
        self.incarnation += 1

    def resume(self) -> None:
        self.is_paused = False

    def die(self) -> list[int]:
        """Give the values that will never be answered."""
        lost = [value for value, acks in self._asked.items() if acks != ACKS_NONE]
        self._asked.clear()
        self.is_up = self.is_paused = False
        self.leader = self.streams = self.follower = None
        self.epoch = self.partition_epoch = -1
        self.flushing_to = self._flush_to = self._isr_asked = None
        return lost

    def trim(self) -> None:
        """Somebody deletes what readers have seen."""
        if self.leader is not None:
            self.lead(ev.DeleteBefore((0, ACKS_NONE), max(0, self.leader.high_watermark - 20)))
            self.end_turn()

    # --- what arrives ------------------------------------------------------------------------------------------------

    def deliver(self, message: Any) -> None:
        kind = type(message)
        if kind is Grant:
            self._granted(message)
        elif kind is IsrAnswer:
            self._isr_answered(message)
        elif isinstance(message, rv.Event):
            if self.streams is not None:
                self.stream(message)
        elif self.follower is not None:
            self.follow(message)
        self.end_turn()

    def tick(self) -> None:
        if self._isr_asked is not None and self.world.now_ns >= self._isr_asked[1]:
            partition_epoch, self._isr_asked = self._isr_asked[0], None
            self.lead(ev.IsrRefused(partition_epoch, RequestTimedOutError()))
        if self.leader is not None:
            self.lead(_LEADER_TICK)
            self.stream(_STREAM_TICK)
        elif self.follower is not None:
            self.follow(_FOLLOWER_TICK)
        self.end_turn()

    def produce(self, request: Request) -> None:
        if request[1] == ACKS_NONE:
            del self.world.promises.unanswered[request[0]]
        else:
            self._asked[request[0]] = request[1]
        self.lead(ev.Produce(request, request[1], -1))
        self.end_turn()

    def flushed(self) -> None:
        """What was being flushed is on the disk."""
        offset, self.flushing_to = self.flushing_to, None
        assert offset is not None
        self.log.synced = max(self.log.synced, min(offset, self.log.log_end))
        if self.leader is not None:
            self.lead(ev.Flushed(self.log.synced))
        elif self.follower is not None:
            self.follow(fv.Flushed(self.log.synced))
        self.end_turn()

    def end_turn(self) -> None:
        flush_to, one = self._flush_to, self.leader
        if flush_to is None:
            return
        self._flush_to = None
        if one is not None:
            self.stream(rv.Told(one.log_start, one.log_end, one.high_watermark, flush_to))

    # --- grants ------------------------------------------------------------------------------------------------------

    def _granted(self, grant: Grant) -> None:
        if grant.incarnation != self.incarnation or (grant.leader_epoch, grant.partition_epoch) < (
            self.epoch,
            self.partition_epoch,
        ):
            return
        if grant.leader_epoch < self.epoch:
            raise ViolationError(f"epoch {grant.leader_epoch} after {self.epoch}")
        if grant.has_noted_suspect:
            self.is_suspect = False
        # A copy that lost something does nothing, and confirms nothing, before that is known.
        if grant.leader == self.number and not self.is_suspect:
            self._lead_as(grant)
        elif grant.leader >= 0 and not self.is_suspect:
            self._follow_as(grant)
        self.epoch, self.partition_epoch = grant.leader_epoch, grant.partition_epoch
        where = (self.number, self.incarnation, grant.leader_epoch, grant.partition_epoch)
        answer = GrantAnswer(*where, self.log.last_epoch, self.log.log_end, self.is_suspect)
        self.world.send(self.number, COORDINATOR, answer)

    def _lead_as(self, grant: Grant) -> None:
        copies = ev.Copies(grant.copies, grant.isr, grant.elr, grant.partition_epoch)
        others = tuple(one for one in grant.copies if one != self.number)
        if self.leader is not None:
            assert self.streams is not None
            if grant.leader_epoch > self.leader.leader_epoch:
                self.world.promises.begins_to_lead(self, grant.leader_epoch)
                self.lead(ev.EpochRaised(grant.leader_epoch))
                self.stream(rv.EpochBegun(grant.leader_epoch))
            self.lead(ev.CopiesChanged(copies))
            return
        high_watermark = self.board
        if self.follower is not None:
            high_watermark = max(high_watermark, self.follower.high_watermark)
            self.follow(fv.Stopped())
            self.follower = None
        high_watermark = max(high_watermark, self.world.complete_tail(self, grant))
        self.world.promises.begins_to_lead(self, grant.leader_epoch)
        log = self.log
        self.leader = self.partition_class(
            grant.leader_epoch,
            log.log_start,
            log.log_end,
            log.synced,
            self.world.config,
            own=self.number,
            copies=copies,
            high_watermark=high_watermark,
            lag_max_ms=self.world.lag_max_ms,
            now_ns=self.world.now_ns,
        )
        one = self.leader
        self.streams = self.replication_class(
            grant.leader_epoch, others, log.log_start, log.log_end, one.high_watermark, log, credit_bytes=500
        )
        self._put_on_board(one)
        self.world.promises.published(self)

    def _put_on_board(self, role: Partition | Follower) -> None:
        self.board, self.board_epoch = role.high_watermark, role.leader_epoch

    def _follow_as(self, grant: Grant) -> None:
        self.leader_number = grant.leader
        if self.leader is not None:
            self.lead(ev.Revoked())
            self.leader = self.streams = self._isr_asked = None
        if self.follower is None:
            log = self.log
            self.follower = self.follower_class(
                grant.leader_epoch,
                log.log_start,
                log.log_end,
                log.synced,
                self.board,
                self.world.config,
                log,
                subscription=self.world.now_ns,
            )
            self.follow(fv.Connected())
        else:
            self.follow(fv.LeaderChanged(grant.leader_epoch))

    def _isr_answered(self, answer: IsrAnswer) -> None:
        one, asked = self.leader, self._isr_asked
        if one is None or one.leader_epoch != answer.leader_epoch or asked is None:
            return
        if asked[0] != answer.asked_partition_epoch:
            return
        self._isr_asked = None
        if answer.error is not None:
            self.lead(ev.IsrRefused(answer.asked_partition_epoch, answer.error))
        else:
            self.lead(ev.IsrAnswered(answer.partition_epoch, answer.isr, answer.elr))

    # --- leading -----------------------------------------------------------------------------------------------------

    def lead(self, event: ev.Event) -> None:
        if self.leader is not None:
            for effect in self.leader.handle(event, self.world.now_ns):
                do = _OF_A_LEADER.get(type(effect))
                if do is not None:
                    do(self, effect)

    def _note_tell(self, effect: ev.Tell) -> None:
        if self._flush_to is None or effect.flush_to > self._flush_to:
            self._flush_to = effect.flush_to

    def _publish(self, effect: ev.Publish) -> None:
        assert self.leader is not None
        self._put_on_board(self.leader)
        self.world.promises.published(self)

    def _write(self, effect: ev.Write) -> None:
        offset = self.log.log_end
        if effect.base_offset != offset:
            raise ViolationError(f"offset {effect.base_offset} given out, the log ends at {offset}")
        self.log.append((effect.leader_epoch, effect.request[0]))
        self.lead(ev.Appended(effect.request, effect.acks, offset, offset + 1))

    def _acknowledge(self, effect: ev.Acknowledge) -> None:
        del self._asked[effect.request[0]]
        self.world.promises.acknowledged(effect.request, effect.base_offset)

    def _refuse(self, effect: ev.Refuse) -> None:
        self._asked.pop(effect.request[0], None)
        self.world.promises.unanswered.pop(effect.request[0], None)
        self.world.promises.count("refused")

    def _trim(self, effect: ev.Trim) -> None:
        self.log.trim(effect.offset)
        self.lead(ev.Trimmed(self.log.log_start))

    def _flush(self, effect: ev.Flush | fv.Flush) -> None:
        self.flushing_to = self.log.log_end

    def _propose(self, effect: ev.ProposeIsr) -> None:
        where = (effect.leader_epoch, effect.partition_epoch, effect.isr, effect.incarnations)
        self._isr_asked = (effect.partition_epoch, self.world.now_ns + ANSWER_WITHIN_NS)
        self.world.send(self.number, COORDINATOR, AlterIsr(self.number, *where))

    # --- streaming ---------------------------------------------------------------------------------------------------

    def stream(self, event: rv.Event) -> None:
        if self.streams is not None:
            for effect in self.streams.handle(event, self.world.now_ns):
                self._stream_effects[type(effect)](effect)

    def _tell(self, effect: Any, message: fv.Event) -> None:
        self.world.send(self.number, effect.copy_id, message)

    def _send(self, effect: rv.Send) -> None:
        count = max(1, min(effect.size_bytes_max // BYTES_PER_RECORD, effect.log_end - effect.start_offset))
        end = effect.start_offset + count
        where = (effect.leader_epoch, effect.subscription, effect.start_offset, end)
        news = (effect.high_watermark, effect.log_start, effect.flush_to)
        items = self.log.slice(effect.start_offset, end)
        self._tell(effect, fv.Entry(*where, *news, items))
        self.stream(rv.Sent(effect.session, effect.copy_id, effect.subscription, end, count * BYTES_PER_RECORD))

    def _send_news(self, effect: rv.SendNews) -> None:
        news = (effect.high_watermark, effect.log_start, effect.flush_to)
        self._tell(effect, fv.Entry(effect.leader_epoch, effect.subscription, 0, 0, *news, None))

    # --- following ---------------------------------------------------------------------------------------------------

    def follow(self, event: fv.Event) -> None:
        if self.follower is not None:
            for effect in self.follower.handle(event, self.world.now_ns):
                do = _OF_A_FOLLOWER.get(type(effect))
                if do is not None:
                    do(self, effect)

    def _confirm(self, effect: fv.Confirm) -> None:
        where = (self.number, self.number, effect.subscription, effect.leader_epoch)
        self.world.send(self.number, self.leader_number, rv.Copied(*where, effect.log_end, effect.durable))

    def _show(self, effect: fv.Publish) -> None:
        assert self.follower is not None
        self._put_on_board(self.follower)

    def _subscribe(self, effect: fv.Subscribe) -> None:
        who = (self.number, self.number, effect.subscription, self.incarnation)
        position = (effect.last_epoch, effect.log_end, effect.durable)
        self.world.send(self.number, self.leader_number, rv.Subscribed(*who, effect.leader_epoch, *position))

    def _cut(self, effect: fv.Truncate) -> None:
        self.world.promises.cuts(self, effect.offset)
        self.log.cut(effect.offset)
        self.follow(fv.Cut(self.log.log_end))

    def _begin_anew(self, effect: fv.StartAnew) -> None:
        self.log.reset(effect.offset)
        self.follow(fv.Cut(self.log.log_end))

    def _trim_copy(self, effect: fv.Trim) -> None:
        self.log.trim(effect.offset)
        self.follow(fv.Trimmed(self.log.log_start))

    def _copy(self, effect: fv.Copy) -> None:
        log = self.log
        if effect.start_offset != log.log_end:
            raise ViolationError(f"{self.number} copies at {effect.start_offset} behind {log.log_end}")
        for item in effect.body:
            log.append(item)
        self.follow(fv.Written(log.log_end))

    def complete_from(self, predecessor: MemoryLog, epoch_end: int) -> None:
        """Take over what the dead leader's files have beyond our log, of epochs below ours that begins."""
        log = self.log
        if log.log_end < predecessor.base or not may_complete(log.last_epoch, log.log_end, predecessor):
            return
        for item in predecessor.slice(log.log_end, predecessor.log_end):
            if item[0] >= epoch_end:
                break
            log.append(item)


# What is missing here has no consequences in the simulated world.
_OF_A_LEADER: dict[type[ev.Effect], Callable[[Node, Any], None]] = {
    ev.Tell: Node._note_tell,
    ev.Publish: Node._publish,
    ev.Write: Node._write,
    ev.Acknowledge: Node._acknowledge,
    ev.Refuse: Node._refuse,
    ev.Trim: Node._trim,
    ev.Flush: Node._flush,
    ev.ProposeIsr: Node._propose,
}
_OF_A_FOLLOWER: dict[type[fv.Effect], Callable[[Node, Any], None]] = {
    fv.Copy: Node._copy,
    fv.Confirm: Node._confirm,
    fv.Publish: Node._show,
    fv.Subscribe: Node._subscribe,
    fv.Truncate: Node._cut,
    fv.StartAnew: Node._begin_anew,
    fv.Trim: Node._trim_copy,
    fv.Flush: Node._flush,
}
