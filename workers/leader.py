"""A partition that this process leads: its state machine, its log and its cell on the board, and the one place where
the state machine's effects become I/O.

THE ORDER, for a batch: check its bytes, stamp offset and epoch, append (pwrite), begin an fdatasync if asked for,
publish on the board, wake waiting readers, answer the producer. So an answered record can be read by everybody and
survives the death of any process, and with acks=fsync the answer comes after an fdatasync that covers the batch.

A full disk refuses this partition's producers until there is room. Other errors of its files are answered to who asked
and tried again, but for a failed fdatasync and a write that cannot be taken back: then this partition is offline until
it is granted again. The process lives and other partitions go on, whatever happens to one.

The fdatasync itself runs in a thread, on descriptors of its own, while the loop goes on appending.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, Final

from zbroker.clock import NS_PER_MS
from zbroker.config.schema import TopicConfig
from zbroker.core import partition_events as ev
from zbroker.core.partition import Partition, State
from zbroker.core.partition_events import Effect, Event
from zbroker.errors import (
    BrokerError,
    DiskFullError,
    InvalidRecordError,
    InvalidRequestError,
)
from zbroker.record.batch import check_batch, read_header, stamp, stamp_append_time
from zbroker.record.layout import CONTROL, TRANSACTIONAL
from zbroker.shm.layout import Counter
from zbroker.storage.flush import FlushJob
from zbroker.storage.log import Log
from zbroker.wire.codec import encode
from zbroker.wire.inner_messages import PartitionGrant
from zbroker.wire.layout import PRODUCED
from zbroker.wire.messages import LowWatermark
from zbroker.workers.host import Host
from zbroker.workers.request import Request

_NOT_FROM_CLIENTS: Final = CONTROL | TRANSACTIONAL


class Leader:
    """See the module. The loop's thread alone calls it."""

    __slots__ = (
        "_active_base",
        "_cell",
        "_core",
        "_does",
        "_host",
        "_is_append_time",
        "_saved_high_watermark",
        "_size_bytes_max",
        "_unlink_at_ns",
        "bytes_appended",
        "copy_id",
        "device",
        "directory",
        "is_open",
        "log",
        "partition",
        "topic",
        "topic_id",
    )

    def __init__(self, host: Host, grant: PartitionGrant, log: Log, config: TopicConfig) -> None:
        """Take over an open log. Raises PolicyViolationError when the board has no cell left."""
        epoch = grant.leader_epoch
        self._host = host
        self.topic, self.topic_id = grant.topic, grant.topic_id
        self.partition, self.copy_id = grant.partition, grant.copy_id
        self.directory = grant.directory
        self.device = os.stat(grant.directory).st_dev
        self.log = log
        self._core = Partition(epoch, log.log_start, log.log_end, min(log.durable_end, log.log_end), config)
        self._cell = host.board.claim(self.topic_id, self.partition)
        self._saved_high_watermark = log.saved_high_watermark
        self._active_base = -1
        self.is_open = True
        self._unlink_at_ns = 0
        self.bytes_appended = 0
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
            ev.AnswerLogStart: self._answer_log_start,
            ev.Retire: self._retire,
        }
        self._use(config)
        self._restate(ev.Restate())

    @property
    def high_watermark(self) -> int:
        """Readers see everything before it."""
        return self._core.high_watermark

    def note_reader(self, offset: int) -> None:
        """A reader asks for what is at `offset`: the board says how far the readers are."""
        if offset <= self.high_watermark:
            self._cell.note_reader(offset)

    @property
    def leader_epoch(self) -> int:
        """The epoch that appended batches carry."""
        return self._core.leader_epoch

    @property
    def state(self) -> State:
        """What the partition takes."""
        return self._core.state

    @property
    def is_flushing(self) -> bool:
        """Whether an fdatasync is under way."""
        return self._core.is_flushing

    @property
    def config(self) -> TopicConfig:
        """The topic's settings in force."""
        return self._core.config

    def handle(self, event: Event) -> None:
        """Give an event to the state machine, and do what it wants."""
        self._perform(self._core.handle(event, self._host.clock.now_ns()))

    def produce(self, request: Request) -> None:
        """Take a PRODUCE request: answer it, or see to it that it will be. The batch is checked on our own copy."""
        header = request.header
        if len(request.body) != 1:
            request.refuse(InvalidRequestError(f"a produce request has one body frame, not {len(request.body)}"))
            return
        batch = request.body[0]
        if isinstance(batch, bytes):
            batch = bytearray(batch)
        try:
            found = check_batch(batch, size_bytes_max=self._size_bytes_max, records_max=self._host.records_max)
            if found.attributes & _NOT_FROM_CLIENTS:
                raise InvalidRecordError("control and transactional batches are not accepted")
        except BrokerError as error:
            self._host.board.count(Counter.ERRORS)
            request.refuse(error)
            return
        request.batch = (batch, found)
        request.body = ()
        event = ev.Produce(request, header.acks, header.leader_epoch)
        self._perform(self._core.handle(event, self._host.clock.now_ns()))

    def save_high_watermark(self) -> None:
        """Write the high watermark to the copy's checkpoint, if it has moved since the last time."""
        high_watermark = self.high_watermark
        if high_watermark == self._saved_high_watermark or self.state is State.OFFLINE:
            return
        try:
            self.log.save_high_watermark(high_watermark)
        except BrokerError as error:
            self.fail(error)
            return
        self._saved_high_watermark = high_watermark

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
            self._note_deleted(count)
            self.handle(ev.Trimmed(log_start))

    def free_bytes(self) -> int:
        """Room on the file system that holds the copy; plenty when it cannot be asked."""
        try:
            found = os.statvfs(self.directory)
        except OSError:
            return 1 << 62
        return found.f_bavail * found.f_frsize

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

    def has_files_to_unlink(self, now_ns: int) -> bool:
        """Whether deleted segments have waited long enough; then it says so once, and the caller unlinks them."""
        is_due = 0 < self._unlink_at_ns <= now_ns
        if is_due:
            self._unlink_at_ns = 0
        return is_due

    def reconfigure(self, config: TopicConfig) -> None:
        """Apply the topic's settings from now on."""
        self.log.configure(config)
        self._use(config)
        self.handle(ev.Reconfigured(config))

    def revoke(self) -> None:
        """Lead no more: wake everybody, retire the cell. The caller closes or deletes `log`."""
        self.handle(ev.Revoked())
        self.is_open = False
        self._host.attention.timed.discard(self)
        self._host.attention.full.discard(self)
        self._host.board.free(self._cell)

    def close(self, *, clean: bool) -> None:
        """Close the copy at the end of the process; `clean` syncs it first, so that the next start need not read it."""
        high_watermark = self.high_watermark
        is_whole = self.state is not State.OFFLINE
        self.handle(ev.Revoked())
        self.is_open = False
        if is_whole:
            self.log.save_high_watermark(high_watermark)
        self.log.close(clean=is_whole and clean)

    def _use(self, config: TopicConfig) -> None:
        timed = self._host.attention.timed
        timed.add(self) if config.flush_ms >= 0 else timed.discard(self)
        self._is_append_time = config.message_timestamp_type == "LogAppendTime"
        self._size_bytes_max = min(config.max_message_bytes, self._host.message_max_bytes)

    def _perform(self, effects: list[Effect]) -> None:
        does = self._does
        for effect in effects:
            does[type(effect)](effect)

    def _write(self, effect: ev.Write) -> None:
        request: Request = effect.request
        assert request.batch is not None
        batch, header = request.batch
        request.batch = None
        host = self._host
        if self._is_append_time:
            request.append_time_ms = host.clock.wall_ms()
            batch = bytearray(batch)
            stamp_append_time(batch, request.append_time_ms)
            header = read_header(batch)
        stamp(batch, effect.base_offset, effect.leader_epoch)
        try:
            self.log.append(batch, header)
        except BrokerError as error:
            self._append_failed(request, error)
            return
        size_bytes = len(batch)
        self.bytes_appended += size_bytes
        count = header.record_count
        counts = host.counts
        counts.records_in += count
        counts.bytes_in += size_bytes
        counts.batches_in += 1
        base_offset = effect.base_offset
        appended = ev.Appended(request, effect.acks, base_offset, base_offset + count)
        self._perform(self._core.handle(appended, self.log.last_append_ns))

    def _append_failed(self, request: Request, error: BrokerError) -> None:
        self.handle(ev.AppendFailed(request, error))
        self.fail(error)

    def _publish(self, effect: ev.Publish) -> None:
        log = self.log
        if log.active_base != self._active_base:
            self._host.board.count(Counter.SEGMENTS_ROLLED)
            self.handle(ev.Rolled())
            return
        self._cell.publish(log.log_end, log.active_position, effect.high_watermark, log.size_bytes, log.last_append_ns)

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
        self._cell.durable(effect.durable)

    def _wake(self, effect: ev.Wake) -> None:
        self._host.wake(effect.waits)

    def _acknowledge(self, effect: ev.Acknowledge) -> None:
        request: Request = effect.request
        request.reply(PRODUCED.pack(effect.base_offset, request.append_time_ms, self._core.log_start))

    def _refuse(self, effect: ev.Refuse) -> None:
        self._host.board.count(Counter.ERRORS)
        request: Request = effect.request
        request.refuse(effect.error)

    def _flush(self, effect: ev.Flush) -> None:
        try:
            job = self.log.begin_flush()
        except BrokerError as error:
            self.handle(ev.FlushFailed(error))
            self.fail(error)
            return
        self._host.disk.submit(job.run, lambda _, error: self._flushed(job, error))
        self._host.board.count(Counter.FSYNCS)

    def _flushed(self, job: FlushJob, error: BaseException | None) -> None:
        if not self.is_open:
            return
        if error is not None:
            self.fail(error)
            return
        try:
            durable = self.log.finish_flush(job)
        except BrokerError as caught:
            self.fail(caught)
            return
        self.handle(ev.Flushed(durable))

    def _trim(self, effect: ev.Trim) -> None:
        count = self.log.segment_count
        try:
            log_start = self.log.truncate_before(effect.offset)
        except BrokerError as error:
            self._refuse(ev.Refuse(effect.request, error))
            self.fail(error)
            return
        self._note_deleted(count)
        self.handle(ev.Trimmed(log_start, effect.request))

    def _note_deleted(self, count_before: int) -> None:
        self._host.board.count(Counter.SEGMENTS_DELETED, max(0, count_before - self.log.segment_count))
        self._unlink_at_ns = self._host.clock.now_ns() + self.config.file_delete_delay_ms * NS_PER_MS

    def _answer_log_start(self, effect: ev.AnswerLogStart) -> None:
        request: Request = effect.request
        request.reply(encode(LowWatermark(effect.log_start)))

    def _retire(self, effect: ev.Retire) -> None:
        self._cell.retire()

    def fail(self, error: BaseException) -> None:
        """Files did not do what they were asked. Only a copy that is done for goes offline; the rest is tried again."""
        failure = self.log.failure
        if failure is not None:
            self._say(logging.ERROR, "offline", failure)
            self.handle(ev.Damaged(failure))
        elif isinstance(error, DiskFullError):
            self._say(logging.WARNING, "no room", error)
            self.handle(ev.RoomLost())
            self._host.attention.full.add(self)
        elif isinstance(error, BrokerError):
            self._say(logging.WARNING, "its files cannot be used now", error)
        else:
            raise error

    def _say(self, level: int, what: str, error: BaseException | None) -> None:
        if not self._host.once.allows(f"{what} {self.topic_id} {self.partition}", self._host.clock.now_ns()):
            return
        where: dict[str, object] = {"topic": self.topic, "partition": self.partition}
        if error is not None:
            where["error"] = error
        logging.getLogger(__name__).log(level, "%s", what, extra=where)
