"""One copy of one partition: an append-only sequence of record batches in segments.

Guarantees:

- One process at a time: `open` holds the directory's flock until `close`.
- `append` either made the whole batch part of the log, in the page cache, or raised and changed nothing that a reader
  can see. The first batch of a new segment returns only after the segment's name is on the device.
- `durable_end` moves only by a successful fdatasync. After a failed one the log refuses everything, for good.
- A file that a reader may have mapped is never shortened; deleted files keep their bytes for those who have them open.

It does not decide when to flush or to retain, and knows no high watermark but the saved one: the partition's leader
does. Not thread-safe, but for `FlushJob.run` and `unlink_deleted`.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Self

from zbroker.clock import Clock
from zbroker.config.schema import TopicConfig
from zbroker.errors import BrokerError, DiskFullError, OffsetOutOfRangeError, StorageError, TooManyOpenFilesError
from zbroker.record.layout import LOG_OVERHEAD, BatchHeader
from zbroker.storage.checkpoint import Positions, remove_marker, write_marker
from zbroker.storage.epochs import Epochs
from zbroker.storage.files import Buffer, Files
from zbroker.storage.flush import FLUSH_SEGMENTS_MAX, FlushJob
from zbroker.storage.handles import Handles
from zbroker.storage.index_pair import NO_TIMESTAMP
from zbroker.storage.layout import CleanMarker
from zbroker.storage.recovery import Opened, RecoveryReport, open_segments
from zbroker.storage.retention import count_expired, delete_copy, unlink_leftovers
from zbroker.storage.scan import EPOCH_MAX
from zbroker.storage.segment import Segment
from zbroker.storage.segments import Segments
from zbroker.storage.store import DiskSpace

# base_offset, batch_length, leader_epoch, last_offset_delta, max_timestamp of a stamped batch
_STAMPED = struct.Struct(">qii7xi8xq")


class Log:
    """An open log. Offsets count records; `log_end` is the offset that the next record gets."""

    def __init__(self, directory: Path, files: Files, clock: Clock, segments: Segments) -> None:
        """Use `Log.open`."""
        self.directory = directory
        self.epochs = Epochs(directory, files)
        self.recovery = RecoveryReport()
        self.failure: BrokerError | None = None
        self.log_start = self.log_end = self.durable_end = self.last_append_ns = 0
        self._files = files
        self._clock = clock
        self._positions = Positions(directory, files)
        self._segments = segments
        self._epoch: int | None = None
        self._is_marked = self._is_fresh = False
        self._must_sync_names = True
        self._lock_fd = -1

    @classmethod
    def open(
        cls,
        directory: Path,
        config: TopicConfig,
        files: Files,
        clock: Clock,
        *,
        leader_epoch_hint: int | None = None,
        handles: Handles | None = None,
        disk_free_min_bytes: int = 0,
        accept_loss: bool = False,
    ) -> Self:
        """Lock the directory, made if need be, and open the log in it, recovered unless it was closed cleanly.

        `leader_epoch_hint`: the epoch of the grant; no batch can have a higher one. `handles`: one for all logs of a
        process. `accept_loss`: cut a damaged copy at the damage, wherever it lies. Raises DirectoryLockedError,
        CopyDamagedError (the files are untouched), DiskFullError, StorageError.
        """
        handles = Handles(files) if handles is None else handles
        files.make_directory(directory)
        lock_fd = files.lock_directory(directory)
        space = DiskSpace(files.is_tmpfs(directory), disk_free_min_bytes)
        segments = Segments(directory, config, files, clock, handles, space)
        try:
            unlink_leftovers(directory, files)
            log = cls(directory, files, clock, segments)
            if accept_loss:
                log._positions.distrust()
                remove_marker(directory, files)
            epoch_max = EPOCH_MAX if leader_epoch_hint is None else leader_epoch_hint
            log._take(open_segments(directory, files, log._positions, log.epochs, segments.make, epoch_max=epoch_max))
        except BaseException:
            segments.release()
            files.close(lock_fd)
            raise
        log._lock_fd = lock_fd
        return log

    def _take(self, opened: Opened) -> None:
        self.recovery = opened.report
        self._segments.take(opened.segments)
        self._segments.retire(opened.removed)
        self.log_start = opened.log_start
        self.log_end = self._segments.active.next_offset
        self._is_marked = opened.report.is_clean and not opened.is_new
        self._is_fresh = self.log_start == self.log_end  # nothing was ever promised: its directory may be as new
        recovery_point = self.log_end if opened.report.is_clean else self._positions.saved.recovery_point
        self.durable_end = min(max(recovery_point, self.log_start), self.log_end)

    # --- what it is --------------------------------------------------------------------------------------------------

    @property
    def active_base(self) -> int:
        """Base offset of the segment that is appended to."""
        return self._segments.active.base_offset

    @property
    def active_position(self) -> int:
        """The byte in the active segment where the next batch goes."""
        return self._segments.active.store.end

    @property
    def size_bytes(self) -> int:
        """Bytes of batches in all segments."""
        return self._segments.size_bytes

    @property
    def segment_count(self) -> int:
        """Segments."""
        return len(self._segments)

    @property
    def saved_high_watermark(self) -> int:
        """The high watermark as last saved; 0 when none was."""
        return min(self._positions.saved.high_watermark, self.log_end)

    def configure(self, config: TopicConfig) -> None:
        """Take changed topic settings; the active segment follows the new sizes at once."""
        self._segments.configure(config)

    # --- append ------------------------------------------------------------------------------------------------------

    def append(self, batch: Buffer, header: BatchHeader) -> None:
        """Append one batch, checked by the caller and stamped with `log_end` as its base offset.

        What is stored is taken from the stamped bytes; `header` may be the one from before the stamp. Raises
        DiskFullError, TooManyOpenFilesError or StorageError with nothing changed; the first two may pass by themselves.
        """
        if self.failure is not None:
            self._check_usable()
        base_offset, length, epoch, last_delta, max_timestamp = _STAMPED.unpack_from(batch)
        size_bytes = length + LOG_OVERHEAD
        assert base_offset == self.log_end, f"a batch stamped {base_offset} where {self.log_end} comes next"
        assert size_bytes == len(batch)
        assert last_delta == header.last_offset_delta
        next_offset = base_offset + last_delta + 1
        segments = self._segments
        segment = segments.active
        if not segment.has_room(size_bytes, next_offset) or (
            segment.first_timestamp != NO_TIMESTAMP
            and max_timestamp - segment.first_timestamp > segments.config.segment_ms
        ):
            segment = self.roll()
        if self._must_sync_names or epoch != self._epoch:
            self._begin_writing(epoch)
        try:
            segment.append(batch, size_bytes, next_offset, max_timestamp)
        except BrokerError as error:
            if segment.store.is_spoilt:
                self.failure = error
            raise
        self.log_end = next_offset
        segments.size_bytes += size_bytes
        self.last_append_ns = self._clock.now_ns()

    def _begin_writing(self, epoch: int) -> None:
        """Before the first batch of an epoch or of a segment: names and epoch are in place."""
        if epoch != self._epoch:
            self.epochs.note_epoch(epoch, self.log_end)
            self.epochs.save()
            self._epoch = epoch
        if self._must_sync_names:
            remove_marker(self.directory, self._files)
            self._is_marked = False
            self._positions.begin()
            try:
                self._files.fsync_directory(self.directory)
                if self._is_fresh:
                    self._files.fsync_directory(self.directory.parent)
            except StorageError as error:
                self.failure = error
                raise
            self._is_fresh = self._must_sync_names = False

    def roll(self) -> Segment:
        """Seal the active segment and begin another at `log_end`. An empty one stays. On an error nothing changed."""
        segment = self._segments.roll()
        self._must_sync_names, self._is_marked = True, False
        return segment

    # --- read --------------------------------------------------------------------------------------------------------

    def _segment_of(self, offset: int) -> Segment:
        self._check_usable()
        if not self.log_start <= offset <= self.log_end:
            raise OffsetOutOfRangeError(f"offset {offset} is not in {self.log_start} to {self.log_end}")
        return self._segments.of(offset)

    def read(self, offset: int, max_bytes: int, upper_offset: int) -> bytes:
        """Whole batches from the one that contains `offset`, below `upper_offset`: at least one, if there is one, then
        as many as `max_bytes` hold, of one segment. Their CRCs were checked. Raises OffsetOutOfRangeError."""
        segment = self._segment_of(offset)
        if offset >= min(upper_offset, self.log_end):
            return b""
        return segment.read(offset, max_bytes, upper_offset)

    def position_of(self, offset: int) -> tuple[int, int]:
        """(segment base, byte position) of the batch that contains `offset`; of the end, for `log_end`."""
        segment = self._segment_of(offset)
        if offset == segment.next_offset:
            return segment.base_offset, segment.store.end
        return segment.base_offset, segment.find(offset).position

    def offset_for_time(self, timestamp_ms: int, upper_offset: int) -> tuple[int, int] | None:
        """(offset, timestamp) of the first record as late as `timestamp_ms`, below `upper_offset`; else None.

        Exact but for compressed batches and Kafka's rows, where it may be up to one batch early, never late.
        """
        self._check_usable()
        for segment in self._segments:
            if segment.next_offset > self.log_start and segment.timestamp_max >= timestamp_ms:
                found = segment.find_time(timestamp_ms, max(self.log_start, segment.base_offset))
                if found is not None:
                    return found if found[0] < upper_offset else None
        return None

    # --- durability --------------------------------------------------------------------------------------------------

    def begin_flush(self) -> FlushJob:
        """A job that makes durable what was appended so far, or the oldest part of it where very many segments wait.

        Run it in any thread, then give it to `finish_flush` here."""
        self._check_usable()
        self.epochs.save()
        epochs = None if self.epochs.is_durable else self.epochs
        job = FlushJob(self._files, epochs, end_offset=self.durable_end)
        waiting = (segment for segment in self._segments if segment.next_offset > self.durable_end)
        for segment in islice(waiting, FLUSH_SEGMENTS_MAX):
            job.add(segment.store.fd(), segment.next_offset)
        return job

    def finish_flush(self, job: FlushJob) -> int:
        """Take a job's result and return `durable_end`. Its error is fatal: every call raises it from now on."""
        if job.error is not None:
            self.failure = job.error
            self._check_usable()
        self.epochs.note_synced(job.epochs_version)
        if job.end_offset > self.durable_end:
            self.durable_end = job.end_offset
            self._save_positions(self._positions.saved.high_watermark)
        return self.durable_end

    def flush(self) -> int:
        """fdatasync what was appended and return the offset up to which the log is durable. An error is fatal."""
        while True:
            job = self.begin_flush()
            job.run()
            if self.finish_flush(job) == self.log_end:
                return self.durable_end

    def save_high_watermark(self, high_watermark: int) -> None:
        """Remember the high watermark for the next start: damage below it will be taken for damage, not for a tear."""
        assert high_watermark <= self.log_end
        self._save_positions(high_watermark)

    @property
    def _recovery_point(self) -> int:
        if self.durable_end > self.log_start:
            return self.durable_end
        # It may stem from a deletion: no sync has seen the batch that lies there.
        return min(self.durable_end, self._positions.saved.recovery_point)

    def _save_positions(self, high_watermark: int, *, durable: bool = False) -> None:
        point, start = self._recovery_point, self.log_start
        with suppress(DiskFullError, TooManyOpenFilesError):  # the older positions stay true; the next save comes soon
            self._positions.save(high_watermark=high_watermark, recovery_point=point, log_start=start, durable=durable)

    def _check_usable(self) -> None:
        if self.failure is not None:
            raise StorageError(f"{self.directory} is out of use since: {self.failure}") from self.failure

    # --- retention ---------------------------------------------------------------------------------------------------

    def retain(self, now_ms: int, high_watermark: int) -> int:
        """Roll a segment that is too old, delete what the topic's settings let go, and return the log start."""
        self._check_usable()
        config, begun_ms = self._segments.config, self._segments.active.first_timestamp
        try:
            if begun_ms != NO_TIMESTAMP and now_ms - begun_ms > config.segment_ms:
                self.roll()
        except DiskFullError:
            pass  # no room for a new segment: the old one goes on
        self._expire(now_ms, high_watermark, *config.expiry)
        return self.log_start

    def truncate_before(self, offset: int) -> int:
        """Delete records below `offset`, and return the log start. Raises OffsetOutOfRangeError behind the log end."""
        self._check_usable()
        if offset > self.log_end:
            raise OffsetOutOfRangeError(f"offset {offset} lies behind the log end {self.log_end}")
        if offset > self.log_start:
            self.log_start = offset
            self.epochs.cut_start(offset)
            self._save_positions(self._positions.saved.high_watermark)
            self._expire(0, offset, -1, -1)
        return self.log_start

    def _expire(self, now_ms: int, high_watermark: int, retention_ms: int, retention_bytes: int) -> None:
        segments = list(self._segments)
        count = count_expired(
            segments if self._segments.active.size_bytes else segments[:-1],
            now_ms=now_ms,
            log_start=self.log_start,
            high_watermark=high_watermark,
            retention_ms=retention_ms,
            retention_bytes=retention_bytes,
        )
        if count == len(segments):
            try:
                self.roll()
            except DiskFullError:
                count -= 1
        if count:
            self.log_start = max(self.log_start, segments[count - 1].next_offset)
            self.durable_end = max(self.durable_end, self.log_start)
            self.epochs.cut_start(self.log_start)
            # Of the deletions a power cut may keep any: only below a durable log start is a hole no damage.
            self._save_positions(self._positions.saved.high_watermark, durable=True)
            self._segments.drop_oldest(count)

    def unlink_deleted(self, now_ns: int) -> int:
        """Unlink segment files whose delay has passed; how many. May run in another thread."""
        return self._segments.deleted.unlink_due(now_ns)

    def close(self, clean: bool = True) -> None:
        """Give the files and the lock back. `clean`: sync first and leave the marker that spares the next start a scan;
        where that fails, the close is not clean, and nothing is lost."""
        if self._lock_fd < 0:
            return
        try:
            if clean and self.failure is None and not self._is_marked:
                self._mark_clean()
        except BrokerError:
            pass  # without a marker the next start scans
        finally:
            self._segments.release()
            self._files.close(self._lock_fd)
            self._lock_fd = -1

    def _mark_clean(self) -> None:
        if self.durable_end < self.log_end:
            self.flush()
        self._segments.active.indexes.save()
        self.epochs.save()
        self._save_positions(self._positions.saved.high_watermark)
        marker = CleanMarker(self.log_start, self.log_end, self.active_base, self.active_position)
        write_marker(self.directory, self._files, marker)

    def delete(self) -> None:
        """Remove the whole copy. A death in the middle leaves a directory that `sweep_deleted_copies` removes."""
        self._segments.release()
        try:
            delete_copy(self.directory, self._files)
        finally:
            self._files.close(self._lock_fd)
            self._lock_fd = -1
