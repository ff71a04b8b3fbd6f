"""The log of the offsets that groups have committed: a log like any partition's, written by the coordinator alone.

It lies in `<data_dir>/offsets`, in the same files and records as a partition (`docs/formats.md`), and can be read with
no process of the broker alive (`zbroker.dump.group_offsets`). What a record says stands in `core/group_offsets.py`.

Guarantees: when `append` returns, the entries survive the death of every process; with `durable`, a power cut. When it
raises a BrokerError, none of them is in the log; when nobody can know, OffsetLogFailed: the process must end, and its
successor will see. The log does not grow without bound: when most of it is outdated, what holds is appended anew and
everything before it is deleted; a crash in between leaves records that say the same twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from zbroker.clock import Clock
from zbroker.config.schema import TopicConfig
from zbroker.core.group_offsets import OffsetEntry, Offsets, record_of
from zbroker.dump.group_offsets import entries_in
from zbroker.errors import BrokerError
from zbroker.record.batch import batches_in, read_header, stamp
from zbroker.record.columns import encode_columns
from zbroker.storage.files import Files
from zbroker.storage.flush import FlushJob
from zbroker.storage.log import Log

RECORDS_A_BATCH: Final = 1_000
READ_BYTES: Final = 1 << 20
SNAPSHOT_RECORDS_MIN: Final = 10_000
EPOCH: Final = 0
CONFIG: Final = TopicConfig(segment_bytes=16 << 20, retention_ms=-1)


class OffsetLogFailed(RuntimeError):  # noqa: N818 - ends the process, and is no error that a caller handles
    """The log of offsets is in a state that only a restart can tell."""


class OffsetLog:
    """An open log. One process has it: the coordinator, which holds the data directory's lock."""

    def __init__(self, log: Log, clock: Clock) -> None:
        """Use `open`."""
        self._log = log
        self._clock = clock
        self.snapshot_records_min = SNAPSHOT_RECORDS_MIN

    @classmethod
    def open(cls, directory: Path, files: Files, clock: Clock) -> OffsetLog:
        """Open or make the log. Raises CopyDamagedError, DiskFullError, StorageError."""
        return cls(Log.open(directory, CONFIG, files, clock), clock)

    @property
    def record_count(self) -> int:
        """How many records the log has, outdated ones too."""
        return self._log.log_end - self._log.log_start

    def replay(self) -> Offsets:
        """The image that the log gives. Raises CorruptRecordError, UnsupportedVersionError."""
        offsets, log = Offsets(), self._log
        position = log.log_start
        while position < log.log_end:
            data = log.read(position, READ_BYTES, log.log_end)
            for entry in entries_in(memoryview(data)):
                offsets.apply(entry)
            position = [header.next_offset for _, header in batches_in(data)][-1]
        return offsets

    def append(self, entries: Sequence[OffsetEntry], *, durable: bool) -> None:
        """Append entries. Raises BrokerError when none of them is in the log, else OffsetLogFailed."""
        is_begun = False
        try:
            rest = iter(entries)
            while batch := list(islice(rest, RECORDS_A_BATCH)):
                self._append(batch)
                is_begun = True
        except BrokerError as error:
            if is_begun or self._log.failure is not None:
                raise OffsetLogFailed(f"{self._log.directory}: {error}") from error
            raise
        if durable:
            self.sync()

    def _append(self, entries: Sequence[OffsetEntry]) -> None:
        records = [record_of(entry) for entry in entries]
        keys = [key for key, _ in records]
        batch = encode_columns([value for _, value in records], keys, timestamp_ms=self._clock.wall_ms())
        stamp(batch, self._log.log_end, EPOCH)
        self._log.append(batch, read_header(memoryview(batch)))

    def sync(self) -> None:
        """Return when everything that was appended is on the disk. Raises OffsetLogFailed."""
        if self._log.durable_end == self._log.log_end:
            return
        try:
            self._log.flush()
            self._log.save_high_watermark(self._log.log_end)
        except BrokerError as error:
            raise OffsetLogFailed(f"{self._log.directory}: {error}") from error

    def begin_flush(self) -> FlushJob | None:
        """A job for another thread that puts on the disk what was appended so far; None: there is nothing."""
        if self._log.durable_end == self._log.log_end:
            return None
        try:
            return self._log.begin_flush()
        except BrokerError as error:
            raise OffsetLogFailed(f"{self._log.directory}: {error}") from error

    def finish_flush(self, job: FlushJob) -> None:
        """Take the job's result. Raises OffsetLogFailed."""
        try:
            self._log.save_high_watermark(self._log.finish_flush(job))
        except BrokerError as error:
            raise OffsetLogFailed(f"{self._log.directory}: {error}") from error

    def compact_if_due(self, offsets: Offsets) -> bool:
        """Write what holds anew, and delete everything before it, when that is most of the log. Raises BrokerError."""
        if self.record_count < max(self.snapshot_records_min, 4 * offsets.count()):
            return False
        if self._log.active_position:
            self._log.roll()
        first = self._log.log_end
        self.append(list(offsets.snapshot()), durable=True)
        self._log.truncate_before(first)
        return True

    def unlink_deleted(self) -> None:
        """Remove the files of deleted segments whose delay is over."""
        self._log.unlink_deleted(self._clock.now_ns())

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._log.close()
