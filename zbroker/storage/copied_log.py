"""A log that takes over another copy's batches, and lets go of those that the leader does not have.

Guarantees:

- `append_copied` stores the bytes as they came: offsets, epochs and CRCs are the leader's. It never rolls: its caller
  does, where the leader did, so that the files of all copies are alike.
- `truncate_to` leaves whole batches below the offset and nothing else. A file that a reader may have mapped keeps its
  bytes: what is cut is written anew beside it and renamed into its place. A death in the middle leaves a log that ends
  between the two ends, and positions that do not take this for damage.
- Whatever was being flushed when the log was cut counts for nothing: bytes of another history lie there by now.

Whether the batches are sound, and whether they may be cut, is decided by the caller.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from zbroker.config.schema import TopicConfig
from zbroker.errors import BrokerError, OffsetOutOfRangeError, StorageError
from zbroker.record.layout import BatchHeader
from zbroker.storage.checkpoint import remove_marker
from zbroker.storage.files import Buffer
from zbroker.storage.flush import FlushJob
from zbroker.storage.layout import COMPACTION, PRODUCERS, TEMPORARY, swap_name
from zbroker.storage.log import Log
from zbroker.storage.segment import Segment
from zbroker.storage.swap import drop_swaps

if TYPE_CHECKING:
    from zbroker.storage.compaction import Rewritten

_CHUNK_BYTES: Final = 1 << 20
_OFFSET_MAX: Final = (1 << 63) - 1
_epoch_of = attrgetter("leader_epoch")


class Range(NamedTuple):
    """Whole batches of one segment: where their bytes are, and the offset behind the last."""

    segment_base: int
    position: int
    size_bytes: int
    end_offset: int


class Sealed(NamedTuple):
    """A segment that nothing is appended to any more: its offsets, its file, and the bytes of batches in it."""

    base_offset: int
    next_offset: int
    size_bytes: int
    path: Path


class CopiedLog(Log):
    """See the module. Opened by `CopiedLog.open`, as any log."""

    _cut_count = 0
    _swap_count = 0

    @property
    def last_epoch(self) -> int:
        """The leader epoch of the last batch, or -1 when there is none."""
        return self.epochs.latest

    def tail(self) -> tuple[int, int, int]:
        """(`active_base`, `active_position`, `size_bytes`) by one call: it is made for every batch."""
        segments = self._segments
        active = segments.active
        return active.base_offset, active.store.end, segments.size_bytes

    def headers_from(self, offset: int) -> Iterator[BatchHeader]:
        """The headers of the batches that end behind an offset, by a walk over their segments."""
        for segment in self._segments:
            if segment.next_offset > offset:
                for header in segment.headers():
                    if header.next_offset > offset:
                        yield header

    def append_copied(self, data: Buffer, headers: Sequence[BatchHeader]) -> None:
        """Append whole batches as they stand in another copy; `headers` are theirs, in order, checked by the caller.

        All of an epoch goes with one write. Raises like `append`, with whole batches of it appended or none.
        """
        self._check_usable()
        assert headers
        position = 0
        with memoryview(data) as view:
            for epoch, run in groupby(headers, key=_epoch_of):
                found = list(run)
                end = position + sum(header.size_bytes for header in found)
                with view[position:end] as part:
                    self._append_run(part, epoch, found)
                position = end
            assert position == len(view), f"{len(view)} bytes for batches of {position}"

    def _append_run(self, data: memoryview, epoch: int, headers: list[BatchHeader]) -> None:
        following = self.log_end
        for header in headers:
            assert header.base_offset == following, f"a batch at {header.base_offset} where {following} comes next"
            following = header.next_offset
        if self._must_sync_names or epoch != self._epoch:
            self._begin_writing(epoch)
        segment = self._segments.active
        try:
            segment.append_run(data, headers)
        except BrokerError as error:
            if segment.store.is_spoilt:
                self.failure = error
            raise
        self.log_end = following
        self._segments.size_bytes += len(data)
        self.last_append_ns = self._clock.now_ns()

    # --- for those who copy it ---------------------------------------------------------------------------------------

    def range_from(self, offset: int, size_bytes_max: int) -> Range:
        """Where the batches from the one that contains `offset` on are: at least one, and as many as fit, of one
        segment. The log must not end there. Raises OffsetOutOfRangeError, CorruptRecordError."""
        segment = self._segment_of(offset)
        assert offset < segment.next_offset, f"nothing at {offset}, the log ends at {self.log_end}"
        begin = segment.find(offset)
        position, end_offset = begin.position + begin.header.size_bytes, begin.header.next_offset
        limit = min(begin.position + size_bytes_max, segment.store.end)
        if limit == segment.store.end:
            return Range(segment.base_offset, begin.position, limit - begin.position, segment.next_offset)
        for at, header in segment.batches(position, end_offset):
            if at + header.size_bytes > limit:
                break
            position, end_offset = at + header.size_bytes, header.next_offset
        return Range(segment.base_offset, begin.position, position - begin.position, end_offset)

    def sealed(self) -> list[Sealed]:
        """The segments before the active one."""
        return [
            Sealed(one.base_offset, one.next_offset, one.size_bytes, one.store.path)
            for one in self._segments
            if one.base_offset < self.active_base
        ]

    @property
    def cut_count(self) -> int:
        """How often the log was cut since it was opened."""
        return self._cut_count

    @property
    def config(self) -> TopicConfig:
        """The topic's settings."""
        return self._segments.config

    @property
    def files_version(self) -> tuple[int, int]:
        """Changes whenever a file of a sealed segment is replaced by another one of its name."""
        return self._cut_count, self._swap_count

    def batch_base(self, offset: int) -> int:
        """The base offset of the batch that contains `offset`; `offset` itself at the log end."""
        segment = self._segment_of(offset)
        return offset if offset == segment.next_offset else segment.find(offset).header.base_offset

    def end_offset_for(self, epoch: int) -> tuple[int, int]:
        """(largest known epoch at or below `epoch`, the offset where it ends). (-1, -1) when none is known."""
        return self.epochs.end_offset_for(epoch, self.log_end)

    # --- compaction --------------------------------------------------------------------------------------------------

    def compactable(self, high_watermark: int, time_max_ms: int | None) -> list[Sealed]:
        """The oldest sealed segments that may be compacted: below the high watermark, synced, and with no record later
        than `time_max_ms`."""
        upper = min(high_watermark, self.durable_end)
        found: list[Sealed] = []
        for one, sealed in zip(self._segments, self.sealed(), strict=False):
            if sealed.next_offset > upper or (time_max_ms is not None and one.timestamp_max > time_max_ms):
                break
            found.append(sealed)
        return found

    def begin_swap(self, new: Rewritten) -> bool:
        """Let a rewritten segment take the place of its sources after a death. False: these are not there any more.

        The caller syncs the directory before `finish_swap`."""
        self._check_usable()
        if not self._has(new.sources):
            return False
        self._files.rename(new.log, self._swap_path(new))
        return True

    def finish_swap(self, new: Rewritten) -> bool:
        """Put it in the place of its sources now; their files go after the delay, and whoever has them mapped keeps
        them. False: the sources are not there any more, and nothing was done. An error puts the log out of use."""
        self._check_usable()
        path = self._swap_path(new)
        if not self._has(new.sources):
            self._files.unlink(path)
            return False
        try:
            retired = [one for one in self._segments if new.base_offset <= one.base_offset < new.next_offset]
            self._segments.retire(retired)
            fresh = self._segments.make(new.base_offset)
            for source, target in zip((path, *new.indexes), fresh.paths, strict=True):
                self._files.rename(source, target)
            fresh.take_over(new.next_offset, new.size_bytes, new.timestamp_max)
            self._segments.replace(retired, fresh)
        except (BrokerError, FileNotFoundError) as error:
            self.failure = error if isinstance(error, BrokerError) else StorageError(f"{path} is gone")
            self._check_usable()
        self._swap_count += 1
        return True

    def abandon_swap(self, new: Rewritten) -> None:
        """Give it up, wherever it is by now. Nothing is touched of a log that is closed: others may have it open."""
        if self._lock_fd >= 0:
            self._files.unlink(self._swap_path(new))
            new.discard(self._files)

    def _has(self, sources: Sequence[Sealed]) -> bool:
        here = {one.base_offset: one for one in self.sealed()}
        return all(here.get(one.base_offset) == one for one in sources)

    def _swap_path(self, new: Rewritten) -> Path:
        return self.directory / swap_name(new.base_offset, new.next_offset)

    # --- cutting -----------------------------------------------------------------------------------------------------

    def truncate_to(self, offset: int) -> int:
        """Cut everything from `offset` on, and the batch that it lies in; give the log end, which then survives a power
        cut. Raises OffsetOutOfRangeError below the log start; any other error puts the log out of use."""
        self._check_usable()
        if offset >= self.log_end:
            return self.log_end
        if offset < self.log_start:
            raise OffsetOutOfRangeError(f"offset {offset} lies below the log start {self.log_start}")
        segment = self._segments.of(offset)
        cut, position = segment.base_offset, 0
        if offset > cut:
            found = segment.find(offset)
            cut, position = found.header.base_offset, found.position
        try:
            promised = (self.saved_high_watermark, self._recovery_point, self.log_start)
            self._begin_cut(*(min(cut, offset) for offset in promised))
            kept = [one for one in self._segments if one.base_offset < segment.base_offset]
            later = [one for one in self._segments if one.base_offset > segment.base_offset]
            for one in reversed(later):
                self._segments.retire([one])
            self._end_cut([*kept, self._shortened(segment, position)], cut)
        except BrokerError as error:
            self.failure = error
            raise
        return self.log_end

    def reset_to(self, offset: int) -> None:
        """Let go of everything and begin anew at `offset`, which is the first of a batch. An error puts the log out of
        use."""
        self._check_usable()
        try:
            self._begin_cut(0, 0, offset)
            for one in reversed(list(self._segments)):
                self._segments.retire([one])
            first = self._segments.make(offset)
            first.create()
            self.epochs.replace([])
            self._end_cut([first], offset)
        except BrokerError as error:
            self.failure = error
            raise

    def _begin_cut(self, high_watermark: int, recovery_point: int, log_start: int) -> None:
        # First what was promised is taken back, or a death between here and the end would look like damage.
        self._cut_count += 1
        remove_marker(self.directory, self._files)
        for name in (PRODUCERS, COMPACTION):
            self._files.unlink(self.directory / name)
        drop_swaps(self.directory, self._files)
        self._is_marked = False
        self._positions.save(
            high_watermark=high_watermark, recovery_point=recovery_point, log_start=log_start, durable=True
        )
        self._files.fsync_directory(self.directory)

    def _end_cut(self, segments: list[Segment], log_end: int) -> None:
        self._files.fsync_directory(self.directory)
        self._segments.take(segments)
        self.log_end = log_end
        self.log_start = self._positions.saved.log_start
        self.durable_end = min(self.durable_end, log_end) if log_end > self.log_start else log_end
        self.epochs.cut_end(log_end)
        self.epochs.save()
        self._epoch = None
        self._must_sync_names = True

    def _shortened(self, segment: Segment, end: int) -> Segment:
        """A segment of the same name with the first `end` bytes; the old file keeps its bytes for those who map it."""
        path = segment.store.path
        aside = path.with_name(path.name + TEMPORARY)
        fd = self._files.open(aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            for position in range(0, end, _CHUNK_BYTES):
                chunk = segment.store.read(min(_CHUNK_BYTES, end - position), position)
                self._files.pwrite(fd, chunk, position)
            self._files.fdatasync(fd)
        finally:
            self._files.close(fd)
        segment.release()
        for index in segment.paths[1:]:
            self._files.unlink(index)
        self._files.rename(aside, path)
        fresh = self._segments.make(segment.base_offset)
        fresh.indexes.create()
        scan = fresh.resume(_OFFSET_MAX, check_crc=False)
        assert scan.position == end, f"{path} ends at {scan.position}, not at {end}: {scan.damage}"
        fresh.store.settle(end)
        return fresh

    # --- flushing ----------------------------------------------------------------------------------------------------

    def begin_flush(self) -> FlushJob:
        """As `Log.begin_flush`; a cut of the log makes the job void."""
        job = super().begin_flush()
        job.cut_count = self._cut_count
        return job

    def finish_flush(self, job: FlushJob) -> int:
        """As `Log.finish_flush`; of a job from before a cut only the error counts."""
        if job.error is None and job.cut_count != self._cut_count:
            return self.durable_end
        return super().finish_flush(job)
