"""A partition that this process leads: its state machine, its log and its cell on the board, and the one place where
the state machine's effects become I/O.

What happens to a batch, and in which order, is in `producing`.

A full disk refuses this partition's producers until there is room. Other errors of its files are answered to who asked
and tried again, but for a failed fdatasync, a write that cannot be taken back, and damage: then this partition is
offline until it is granted again, and the coordinator is told, who has another copy lead. The process lives and other
partitions go on, whatever happens to one.

The fdatasync itself runs in a thread, on descriptors of its own, while the loop goes on appending.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from zbroker.config.schema import TopicConfig
from zbroker.core import partition_events as ev
from zbroker.core.partition import Partition, State
from zbroker.core.partition_events import Effect, Event
from zbroker.errors import (
    BrokerError,
    DiskFullError,
)
from zbroker.storage.copied_log import CopiedLog
from zbroker.wire.codec import encode
from zbroker.wire.inner_messages import PartitionGrant
from zbroker.wire.messages import LowWatermark
from zbroker.workers.host import Host
from zbroker.workers.open_copy import is_damage
from zbroker.workers.other_copies import OtherCopies, copies_of
from zbroker.workers.producer_state import ProducerState
from zbroker.workers.producing import Producing
from zbroker.workers.refusals import Refusals


class Leader(Producing):
    """See the module. The loop's thread alone calls it."""

    __slots__ = ("others",)

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
        """Lead from the log's end on. `high_watermark` is the highest that any reader may have seen: with one copy it
        is the log's end anyway. Raises PolicyViolationError when the board has no cell left."""
        super().__init__(host, grant, log, producers)
        copies = copies_of(grant)
        self._core = Partition(
            grant.leader_epoch,
            log.log_start,
            log.log_end,
            min(log.durable_end, log.log_end),
            config,
            own=grant.copy_id,
            copies=copies if copies is not None and len(copies.all) > 1 else None,
            high_watermark=max(high_watermark, log.saved_high_watermark),
            lag_max_ms=host.lag_max_ms,
            is_epoch_durable=grant.is_epoch_durable,
            sequences=producers.sequences,
            now_ns=host.clock.now_ns(),
        )
        self._active_base = -1
        self._refusals = Refusals()
        self.bytes_appended = 0
        self.others = OtherCopies(self, host, grant.copies)
        self._does: dict[type[Effect], Callable[[Any], None]] = {
            ev.Write: self._write,
            ev.Flush: self._flush,
            ev.Publish: self._publish,
            ev.PublishDurable: self._publish_durable,
            ev.Restate: self._restate,
            ev.Wake: self._wake,
            ev.Acknowledge: self._acknowledge,
            ev.Refuse: self._refuse,
            ev.Trim: self._trim,
            ev.AnswerLogStart: lambda effect: effect.request.reply(encode(LowWatermark(effect.log_start))),
            ev.Retire: lambda _: self._cell.retire(),
            ev.Tell: self.others.tell,
            ev.ProposeIsr: self.others.propose,
        }
        self._use(config)
        self._restate(ev.Restate())
        if self._core.progress is not None:
            self.others.begin()

    @property
    def high_watermark(self) -> int:
        """Readers see everything before it."""
        return self._core.high_watermark

    @property
    def leader_epoch(self) -> int:
        """The epoch that appended batches carry."""
        return self._core.leader_epoch

    @property
    def core(self) -> Partition:
        """The state machine, to be read."""
        return self._core

    @property
    def state(self) -> State:
        """What the partition takes."""
        return self._core.state

    @property
    def is_whole(self) -> bool:
        """Whether its files can be used."""
        return self.state is not State.OFFLINE and self.log.failure is None

    @property
    def is_flushing(self) -> bool:
        """Whether an fdatasync is under way."""
        return self._core.is_flushing

    def note_reader(self, offset: int) -> None:
        """A reader asks for what is at `offset`: the board says how far the readers are."""
        if offset <= self.high_watermark:
            self._cell.note_reader(offset)

    def handle(self, event: Event) -> None:
        """Give an event to the state machine, and do what it wants."""
        self._perform(self._core.handle(event, self._host.clock.now_ns()))

    def renew(self, grant: PartitionGrant) -> None:
        """A grant of this leadership, or of the next epoch of it: take over what is new in it."""
        if grant.leader_epoch > self.leader_epoch:
            self.handle(ev.EpochRaised(grant.leader_epoch, grant.is_epoch_durable))
        elif grant.is_epoch_durable:
            self.handle(ev.EpochDurable(grant.leader_epoch))
        self.others.renew(grant)

    def tick(self) -> None:
        """Time went on."""
        self.handle(ev.Tick())
        self.others.tick()

    # --- housekeeping ------------------------------------------------------------------------------------------------

    def retain(self, wall_ms: int) -> None:
        """Roll a segment that is too old, and let go of those that are too old or too many."""
        log = self.log
        if self.state is State.OFFLINE or (log.log_start == log.log_end and log.segment_count == 1):
            return
        count = log.segment_count
        try:
            log_start = log.retain(wall_ms, self.high_watermark)
        except BrokerError as error:
            self.fail(error)
            return
        if log.active_base != self._active_base:
            self.handle(ev.Rolled())
        if log_start != self._core.log_start:
            self._note_deleted(count, self._core.config.file_delete_delay_ms)
            self.handle(ev.Trimmed(log_start))

    def may_replace_below(self, offset: int) -> bool:
        """Whether no follower is still reading what lies before an offset in our files."""
        return self.others.are_beyond(offset)

    def show_files(self) -> None:
        """Show what the files are now, and sync what is sealed."""
        self.handle(ev.Rolled())

    def lose_room(self) -> None:
        """The disk has too little room: refuse produce until `find_room`."""
        if self.state is State.LEADING:
            self._say(logging.WARNING, "produce refused: too little room on the disk", None)
            self.handle(ev.RoomLost())
            self._host.attention.full.add(self)

    def find_room(self) -> None:
        """The disk has room: take produce again."""
        self._host.attention.full.discard(self)
        if self.state is State.FULL:
            self._say(logging.INFO, "room again", None)
            self.handle(ev.RoomFound())

    def reconfigure(self, config: TopicConfig) -> None:
        """Apply the topic's settings from now on."""
        super().reconfigure(config)
        self._use(config)
        self.handle(ev.Reconfigured(config))

    def stop(self) -> None:
        """Lead no more: everybody who waits is answered. The caller takes over, closes or deletes `log`."""
        self.handle(ev.Revoked())
        self._host.attention.timed.discard(self)
        self._host.attention.full.discard(self)
        self._leave()

    def _use(self, config: TopicConfig) -> None:
        timed = self._host.attention.timed
        timed.add(self) if config.flush_ms >= 0 else timed.discard(self)
        self._must_have_keys = config.compacts
        self._is_append_time = config.message_timestamp_type == "LogAppendTime"
        self._size_bytes_max = min(config.max_message_bytes, self._host.message_max_bytes)

    # --- effects -----------------------------------------------------------------------------------------------------

    def _restate(self, effect: ev.Restate) -> None:
        log, core = self.log, self._core
        self._active_base = log.active_base
        self._cell.restate(
            leader_epoch=core.leader_epoch,
            log_start=core.log_start,
            log_end=core.log_end,
            segment_base=log.active_base,
            position=log.active_position,
            high_watermark=core.high_watermark,
            durable=max(0, core.durable),
            size_bytes=log.size_bytes,
            segment_count=log.segment_count,
            last_append_ns=log.last_append_ns,
        )

    def _publish_durable(self, effect: ev.PublishDurable) -> None:
        self._cell.durable(max(effect.durable, self._core.durable))

    def _wake(self, effect: ev.Wake) -> None:
        self._host.wake(effect.waits)

    def _flush(self, effect: ev.Flush) -> None:
        self._flush_log(self._flushed, lambda e: self.handle(ev.FlushFailed(e)), is_shared=effect.is_shared)

    def _flushed(self, durable: int) -> None:
        if self.state is not State.OFFLINE:
            self._cell.durable(durable)
        self.handle(ev.Flushed(durable))

    def _trim(self, effect: ev.Trim) -> None:
        count = self.log.segment_count
        try:
            log_start = self.log.truncate_before(effect.offset)
        except BrokerError as error:
            self._refuse(ev.Refuse(effect.request, error))
            self.fail(error)
            return
        self._note_deleted(count, self._core.config.file_delete_delay_ms)
        self.handle(ev.Trimmed(log_start, effect.request))

    def fail(self, error: BaseException) -> None:
        """Files did not do what they were asked. Only a copy that is done for goes offline; the rest is tried again."""
        failure = self.log.failure
        if failure is not None:
            self._go_offline(failure)
        elif isinstance(error, DiskFullError):
            self._say(logging.WARNING, "no room", error)
            self.handle(ev.RoomLost())
            self._host.attention.full.add(self)
        elif isinstance(error, BrokerError):
            self._say(logging.WARNING, "its files cannot be used now", error)
        else:
            raise error

    def cannot_be_read(self, error: BrokerError) -> None:
        """A follower was to get bytes that could not be read, or were not as they should be."""
        if is_damage(error):
            self.found_damage(error)
        else:
            self._say(logging.WARNING, "cannot be read for a follower", error)

    def found_damage(self, error: BrokerError) -> None:
        """Bytes of the log are not what was written: nobody is served from it before it was fetched again. Only a copy
        that is alone goes on: readers see by the CRC which batch is damaged, and the others are sound."""
        if self.others.feed is None:
            self._say(logging.ERROR, "the only copy is damaged", error)
            self._report_suspect(error, lambda: None)
        elif self.state is not State.OFFLINE:
            self._mark_suspect()
            self._go_offline(error)

    def _go_offline(self, error: BrokerError) -> None:
        self._say(logging.ERROR, "offline", error)
        self.handle(ev.Damaged(error))
        self._report_suspect(error, lambda: None)
