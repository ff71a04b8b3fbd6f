"""What a leader does with a batch that a producer sends: check it, append it, show it, answer.

THE ORDER, for a batch: check its bytes, stamp offset and epoch, append (pwrite), begin an fdatasync if asked for,
publish on the board, wake waiting readers, answer the producer. So an answered record can be read by everybody and
survives the death of any process, and with acks=fsync the answer comes after an fdatasync that covers the batch. With
other copies the high watermark follows the slowest of those in sync, and the answer of acks=all follows it.

THE SHORT WAY. Where the state machine says that a batch needs nothing else (`Partition.takes_at_once`), the same is
done in the same order without an event and an effect for each step, and what nobody waits for is noted after the
answer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Final

from zbroker.core import partition_events as ev
from zbroker.core.partition import ACKS_NONE, Partition
from zbroker.core.partition_events import Effect, Event
from zbroker.errors import BrokerError, InvalidRecordError, WrongExpectedOffsetError
from zbroker.record.batch import check_batch, check_keys, read_header, stamp, stamp_append_time
from zbroker.record.layout import CONTROL, TRANSACTIONAL, BatchHeader
from zbroker.shm.layout import Counter
from zbroker.wire.layout import FLAG_AWAITED, PRODUCED, Api
from zbroker.workers.open_copy import OpenCopy
from zbroker.workers.refusals import Refusals
from zbroker.workers.request import ANY_OFFSET, NO_APPEND_TIME, Batch, Request

_SOON_BYTES: Final = 4_096  # appended before a sleeper has woken up
_NOT_FROM_CLIENTS: Final = CONTROL | TRANSACTIONAL


class Producing(OpenCopy):
    """See the module. `Leader` is this with everything else that happens to a led partition."""

    __slots__ = (
        "_active_base",
        "_core",
        "_does",
        "_is_append_time",
        "_must_have_keys",
        "_refusals",
        "_size_bytes_max",
        "bytes_appended",
    )

    _core: Partition
    _active_base: int
    _does: dict[type[Effect], Callable[[Any], None]]
    _is_append_time: bool
    _must_have_keys: bool
    _refusals: Refusals
    _size_bytes_max: int
    bytes_appended: int

    @abstractmethod
    def handle(self, event: Event) -> None:
        """Give an event to the state machine, and do what it wants."""

    def produce(self, request: Request) -> None:
        """Take a PRODUCE request: answer it, or see to it that it will be. The batch is checked on our own copy."""
        header, body, core = request.header, request.body, self._core
        if core.progress is None and body and len(body[0]) <= _SOON_BYTES:
            self._host.rouse(core.waits, request.route if header.flags & FLAG_AWAITED else None)
        try:
            if len(body) != 1:
                request.take_options()
            batch = body[0]
            if isinstance(batch, bytes):
                batch = bytearray(batch)
            found = check_batch(batch, size_bytes_max=self._size_bytes_max, records_max=self._host.records_max)
            if found.attributes & _NOT_FROM_CLIENTS:
                raise InvalidRecordError("control and transactional batches are not accepted")
            if self._must_have_keys:
                check_keys(batch, found)
            if self._refusals and found.producer_id < 0:
                self._refusals.check(request)
        except BrokerError as error:
            self._host.board.count(Counter.ERRORS)
            request.refuse(error)
            return
        request.body = ()
        request.is_numbered = found.producer_id >= 0
        known_by = found if request.is_numbered else None
        is_usual = not self._is_append_time and request.expected_offset == ANY_OFFSET
        if is_usual and core.takes_at_once(header.acks, header.leader_epoch, known_by):
            self._append_at_once(request, batch, found)
            return
        request.batch = (batch, found)
        event = ev.Produce(request, header.acks, header.leader_epoch, known_by)
        self._perform(core.handle(event, self._host.clock.now_ns()))

    def _append_at_once(self, request: Request, batch: Batch, header: BatchHeader) -> None:
        """See "the short way"."""
        core, log = self._core, self.log
        base_offset = core.log_end
        stamp(batch, base_offset, core.leader_epoch)
        try:
            log.append(batch, header)
        except BrokerError as error:
            self._append_failed(request, error)
            return
        self.bytes_appended += len(batch)
        passed = core.appended_at_once(log.log_end, log.last_append_ns)
        self._show(core.high_watermark)
        if passed:
            self._host.wake(passed)
        if request.header.acks != ACKS_NONE:
            request.reply(PRODUCED.pack(base_offset, NO_APPEND_TIME, core.log_start))
        self._note(header, len(batch), base_offset)

    def _note(self, header: BatchHeader, size_bytes: int, base_offset: int) -> None:
        """What must be known of a batch before the next one is looked at."""
        self.producers.note(header, base_offset)
        counts = self._host.counts
        counts.records_in += header.record_count
        counts.bytes_in += size_bytes
        counts.batches_in += 1

    # --- effects -----------------------------------------------------------------------------------------------------

    def _perform(self, effects: list[Effect]) -> None:
        does = self._does
        for effect in effects:
            does[type(effect)](effect)

    def _write(self, effect: ev.Write) -> None:
        request: Request = effect.request
        assert request.batch is not None
        batch, header = request.batch
        request.batch = None
        if self._is_append_time:
            request.append_time_ms = self._host.clock.wall_ms()
            batch = bytearray(batch)
            stamp_append_time(batch, request.append_time_ms)
            header = read_header(batch)
        base_offset = effect.base_offset
        stamp(batch, base_offset, effect.leader_epoch)
        try:
            if request.expected_offset not in (ANY_OFFSET, base_offset):
                raise WrongExpectedOffsetError(f"expected {request.expected_offset}; the next is {base_offset}")
            self.log.append(batch, header)
        except BrokerError as error:
            self._append_failed(request, error)
            return
        self._note(header, len(batch), base_offset)
        self.bytes_appended += len(batch)
        appended = ev.Appended(request, effect.acks, base_offset, base_offset + header.record_count)
        self._perform(self._core.handle(appended, self.log.last_append_ns))

    def _append_failed(self, request: Request, error: BrokerError) -> None:
        self.handle(ev.AppendFailed(request, error))
        if not isinstance(error, WrongExpectedOffsetError):
            self.fail(error)

    def _publish(self, effect: ev.Publish) -> None:
        self._show(effect.high_watermark)

    def _show(self, high_watermark: int) -> None:
        log = self.log
        active_base, position, size_bytes = log.tail()
        if active_base != self._active_base:
            self._host.board.count(Counter.SEGMENTS_ROLLED)
            self.handle(ev.Rolled())
            return
        self._cell.publish(log.log_end, position, high_watermark, size_bytes, log.last_append_ns)

    def _acknowledge(self, effect: ev.Acknowledge) -> None:
        request: Request = effect.request
        request.reply(PRODUCED.pack(effect.base_offset, request.append_time_ms, self._core.log_start))

    def _refuse(self, effect: ev.Refuse) -> None:
        self._host.board.count(Counter.ERRORS)
        request: Request = effect.request
        if request.header.api == Api.PRODUCE and not request.is_numbered:
            self._refusals.note(request, effect.error)
        request.refuse(effect.error)
