"""A partition that this process follows: the state machine of `core/follower.py`, its log and its cell on the board,
and the one place where the state machine's effects become I/O.

THE ORDER, for what the leader has appended: read its bytes from its file (or take those that came inline), check on our
own copy of them every CRC, that offsets follow on each other and that no epoch falls, append them with one pwrite, show
the log end on the board, confirm at the end of the turn. A segment begins where the leader's does, so that the files of
all copies are alike. So what is confirmed survives the death of any process but this one and the leader together.

Bytes that are wrong in the leader's file are asked for inline: the leader then reads them itself, and finds that its
own copy is damaged. A leader's file that cannot be opened twice is asked for inline too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from zbroker.config.schema import TopicConfig
from zbroker.core import follower_events as fv
from zbroker.core.follower import Follower as Machine
from zbroker.core.follower import State
from zbroker.core.follower_events import Effect, Event
from zbroker.errors import BrokerError, error_for
from zbroker.shm.layout import CellState, Counter
from zbroker.storage.copied_log import CopiedLog
from zbroker.wire import stream
from zbroker.wire.inner_messages import PartitionGrant
from zbroker.wire.stream import Kind
from zbroker.workers.host import Host
from zbroker.workers.leaders_files import LeadersFiles, checked, from_offset
from zbroker.workers.open_copy import SUSPECT_MARK, OpenCopy, is_damage
from zbroker.workers.producer_state import ProducerState
from zbroker.workers.subscriptions import Connection

REJECTED_PAUSE_MS: Final = 21

Body = tuple[stream.Appended, bytes | None]


class Follower(OpenCopy):
    """See the module. The loop's thread alone calls it."""

    __slots__ = (
        "_active_base",
        "_connection",
        "_does",
        "_failed_at",
        "_is_inline",
        "_leaders_files",
        "_machine",
        "_shown",
        "config",
    )

    def __init__(
        self,
        host: Host,
        grant: PartitionGrant,
        log: CopiedLog,
        producers: ProducerState,
        config: TopicConfig,
        *,
        high_watermark: int = 0,
    ) -> None:
        """Take over an open log; `follow` begins. Raises PolicyViolationError when the board has no cell left."""
        super().__init__(host, grant, log, producers)
        self.config = config
        self._machine = Machine(
            grant.leader_epoch,
            log.log_start,
            log.log_end,
            min(log.durable_end, log.log_end),
            max(high_watermark, log.saved_high_watermark),
            config,
            log,
            subscription=host.clock.now_ns(),
        )
        self._connection: Connection | None = None
        self._leaders_files = LeadersFiles(host.files, host.handles, host.read_buffer)
        self._is_inline = False
        self._failed_at = -1
        self._active_base = -1
        self._shown = (0, 0)
        self._does: dict[type[Effect], Callable[[Any], None]] = {
            fv.Subscribe: self._subscribe,
            fv.Copy: self._copy,
            fv.Truncate: self._truncate,
            fv.StartAnew: self._start_anew,
            fv.Flush: self._flush,
            fv.Trim: self._trim,
            fv.Confirm: self._confirm,
            fv.Publish: self._publish,
            fv.ReportSuspect: self._suspect,
        }
        machine = self._machine
        self._publish(fv.Publish(machine.log_start, machine.log_end, machine.high_watermark, machine.durable))
        host.attention.copied.add(self)

    @property
    def high_watermark(self) -> int:
        """What the leader said, as far as it is here."""
        return self._machine.high_watermark

    @property
    def leader_epoch(self) -> int:
        """The epoch of the leader that is followed."""
        return self._machine.leader_epoch

    @property
    def state(self) -> State:
        """What the follower is at."""
        return self._machine.state

    @property
    def is_whole(self) -> bool:
        """Whether its files can be used, and what they hold can be relied on."""
        return self.log.failure is None and self.state not in (State.FAILED, State.SUSPECT)

    def handle(self, event: Event) -> None:
        """Give an event to the state machine, and do what it wants."""
        self._perform(self._machine.handle(event, self._host.clock.now_ns()))

    def follow(self, grant: PartitionGrant) -> None:
        """Follow the leader that a grant names, from now on; none for leader -1."""
        leaders = [place for place in grant.copies if place.number == grant.leader]
        self.handle(fv.LeaderChanged(grant.leader_epoch))
        if leaders:
            self._leaders_files.directory = Path(leaders[0].directory)
        self._leaders_files.drop()
        self._is_inline = False
        wanted = (grant.leader, grant.leader_incarnation)
        if self._connection is not None:
            if self._connection.leader == wanted and not self._connection.is_closed:
                return
            self._host.subscriptions.unfollow(self, self._connection)
            self._connection = None
        if leaders:
            self._connection = self._host.subscriptions.follow(self, *wanted)
            if self._connection is not None and self._connection.is_connected:
                self.connected()

    def connected(self) -> None:
        """The leader can be spoken to (again)."""
        self.handle(fv.Connected())

    def take(self, kind: int, entry: Any, inline: list[bytes]) -> None:
        """An entry of the leader came."""
        where = (entry.leader_epoch, entry.subscription)
        if kind == Kind.APPENDED:
            if entry.frame > len(inline):
                return
            self.handle(
                fv.Entry(
                    *where,
                    start_offset=entry.start_offset,
                    end_offset=entry.end_offset,
                    high_watermark=entry.high_watermark,
                    log_start=entry.log_start,
                    flush_to=entry.flush_to,
                    body=(entry, inline[entry.frame - 1] if entry.frame else None),
                )
            )
        elif kind == Kind.ACCEPTED:
            self._leaders_files.drop()
            self.handle(fv.Accepted(*where, entry.log_start, entry.high_watermark))
        elif kind == Kind.DIVERGED:
            self.handle(fv.Diverged(*where, entry.epoch, entry.end_offset))
        elif kind == Kind.BEGIN_ANEW:
            self.handle(fv.MustBeginAnew(*where, entry.offset))
        elif kind == Kind.REJECTED:
            self.handle(fv.Rejected(*where, error_for(entry.error, "refused by the leader")))
            self._host.loop.call_after(REJECTED_PAUSE_MS, self.tick)

    # --- housekeeping ------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Time went on."""
        if self.is_open:
            self.handle(fv.Tick())

    def retain(self, wall_ms: int) -> None:
        """Nothing: the leader says where the log begins."""

    def show_files(self) -> None:
        """Show what the files are now, and sync what is sealed."""
        machine = self._machine
        self._active_base = -1
        self._publish(fv.Publish(machine.log_start, machine.log_end, machine.high_watermark, machine.durable))
        self.handle(fv.Rolled())

    def reconfigure(self, config: TopicConfig) -> None:
        """Apply the topic's settings from now on."""
        super().reconfigure(config)
        self.config = config
        self.handle(fv.Reconfigured(config))

    def stop(self) -> None:
        """Follow no more. The caller takes over, closes or deletes `log`."""
        self.handle(fv.Stopped())
        self._leaders_files.drop()
        if self._connection is not None:
            self._connection.unsubscribe(self)
            self._host.subscriptions.unfollow(self, self._connection)
            self._connection = None
        self._leave()

    def fail(self, error: BaseException) -> None:
        """Files did not do what they were asked."""
        if not isinstance(error, BrokerError):
            raise error
        failure = self.log.failure
        if failure is None:
            self._say(logging.WARNING, "its files cannot be used now", error)
        elif self.state is not State.FAILED:
            self._say(logging.ERROR, "a copy is out of use", failure)
            self.handle(fv.Failed(failure))

    def found_damage(self, error: BrokerError) -> None:
        """Bytes below the high watermark are not what was written: the whole copy is fetched again."""
        if self.state in (State.FAILED, State.SUSPECT, State.STOPPED):
            return
        self._say(logging.ERROR, "a copy is damaged, and is fetched again", error)
        self._mark_suspect()
        self.handle(fv.FoundDamaged(error))

    # --- effects -----------------------------------------------------------------------------------------------------

    def _perform(self, effects: list[Effect]) -> None:
        does = self._does
        for effect in effects:
            does[type(effect)](effect)

    def _subscribe(self, effect: fv.Subscribe) -> None:
        if self._connection is not None:
            self._connection.post(
                stream.Subscribe(
                    *self._key_of(effect),
                    last_epoch=effect.last_epoch,
                    flags=stream.FLAG_INLINE if self._is_inline else 0,
                    log_end=effect.log_end,
                    durable=effect.durable,
                )
            )

    def _confirm(self, effect: fv.Confirm) -> None:
        if self._connection is not None:
            self._connection.confirm(stream.Copied(*self._key_of(effect), effect.log_end, effect.durable))

    def _key_of(self, effect: fv.Subscribe | fv.Confirm) -> tuple[int, int, int, int, int]:
        return (self.topic_id, self.partition, effect.leader_epoch, self.copy_id, effect.subscription)

    def _copy(self, effect: fv.Copy) -> None:
        body: Body = effect.body
        entry, inline = body
        log = self.log
        try:
            if inline is not None:
                view = memoryview(inline)
            else:
                view = self._leaders_files.read(entry.segment_base, entry.position, entry.size_bytes)
            with view, from_offset(view, effect.start_offset) as data:
                headers = checked(data, effect.start_offset, effect.end_offset, log.last_epoch, effect.leader_epoch)
                has_rolled = entry.segment_base == effect.start_offset != log.active_base
                if has_rolled:
                    log.roll()
                log.append_copied(data, headers)
        except BrokerError as error:
            self._copy_failed(effect, error)
            return
        self.producers.note_all(headers)
        self._host.counts.bytes_in += entry.size_bytes
        self.handle(fv.Written(log.log_end))
        if has_rolled:
            self._host.board.count(Counter.SEGMENTS_ROLLED)
            self.handle(fv.Rolled())

    def _copy_failed(self, effect: fv.Copy, error: BrokerError) -> None:
        if self.log.failure is not None:
            self.fail(error)
            return
        self._say(logging.WARNING, "batches of the leader could not be copied", error)
        self._leaders_files.drop()
        # A file that is gone was let go of by the leader a moment ago, or cannot be reached from here at all.
        self._is_inline = self._is_inline or is_damage(error) or self._failed_at == effect.start_offset
        self._failed_at = effect.start_offset
        self.handle(fv.CopyFailed(self.log.log_end, error))
        self._host.loop.call_after(REJECTED_PAUSE_MS, self.tick)

    def _truncate(self, effect: fv.Truncate) -> None:
        self._cut(lambda: self.log.truncate_to(effect.offset))

    def _start_anew(self, effect: fv.StartAnew) -> None:
        def reset() -> None:
            self.log.reset_to(effect.offset)
            self._host.files.unlink(Path(self.directory) / SUSPECT_MARK)

        self._cut(reset)

    def _cut(self, cut: Callable[[], object]) -> None:
        log = self.log
        before = log.log_end
        self._host.io_clock.enter(id(self))
        try:
            cut()
            self.producers.reload(self.config)
        except BrokerError as error:
            self._say(logging.ERROR, "a copy could not be cut", error)
            self.handle(fv.Failed(log.failure or error))
            return
        finally:
            self._host.io_clock.leave(id(self))
        where = {"topic": self.topic, "partition": self.partition, "from": before, "to": log.log_end}
        logging.getLogger(__name__).warning("cut to what the leader has", extra=where)
        self._saved_high_watermark = log.saved_high_watermark
        self._note_deleted(log.segment_count, self.config.file_delete_delay_ms)
        self.handle(fv.Cut(log.log_end))

    def _flush(self, effect: fv.Flush) -> None:
        self._flush_log(
            lambda durable: self.handle(fv.Flushed(durable)), lambda error: self.handle(fv.FlushFailed(error))
        )

    def _trim(self, effect: fv.Trim) -> None:
        count = self.log.segment_count
        try:
            log_start = self.log.truncate_before(effect.offset)
        except BrokerError as error:
            self.fail(error)
            return
        self._note_deleted(count, self.config.file_delete_delay_ms)
        self.handle(fv.Trimmed(log_start))

    def _publish(self, effect: fv.Publish) -> None:
        log = self.log
        if effect.high_watermark < self._shown[1]:
            # A cell's high watermark never falls: readers of this one are sent to the metadata.
            self._host.board.free(self._cell)
            self._cell = self._host.board.claim(self.topic_id, self.partition)
        elif (self._active_base, effect.log_start) == (log.active_base, self._shown[0]):
            where = (effect.log_end, log.active_position, effect.high_watermark)
            self._cell.publish(*where, log.size_bytes, log.last_append_ns)
            self._cell.durable(effect.durable)
            self._shown = (effect.log_start, effect.high_watermark)
            return
        self._active_base = log.active_base
        self._shown = (effect.log_start, effect.high_watermark)
        self._cell.restate(
            leader_epoch=max(0, self._machine.leader_epoch),
            log_start=effect.log_start,
            log_end=effect.log_end,
            segment_base=log.active_base,
            position=log.active_position,
            high_watermark=effect.high_watermark,
            durable=max(0, effect.durable),
            size_bytes=log.size_bytes,
            segment_count=log.segment_count,
            state=CellState.FOLLOWING,
            last_append_ns=log.last_append_ns,
        )

    def _suspect(self, effect: fv.ReportSuspect) -> None:
        self._report_suspect(effect.error, self._noted)

    def _noted(self) -> None:
        self._is_reported = False
        if self.state is State.SUSPECT:
            self.handle(fv.SuspectNoted())
