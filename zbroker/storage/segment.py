"""One segment: a .log file with its offset index and its time index.

Guarantees: `next_offset`, `end` and the indexes change only after the bytes are in the file. A lookup goes as the
articles describe it: bisect the index for the last entry at or below the offset, then walk the log from there. An index
entry is believed only when the batch at its position is the one that it names; else both indexes are rebuilt from the
log. What is read is checked against its CRC.

Sealed, a segment keeps nothing in memory but a few numbers; its indexes are loaded when a lookup needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from zbroker.errors import CorruptRecordError
from zbroker.record.batch import crc_matches
from zbroker.record.columns import Columns
from zbroker.record.layout import MAGIC_COLUMNS, BatchHeader
from zbroker.storage.files import Buffer, Files
from zbroker.storage.handles import Handles
from zbroker.storage.index import OffsetEntry, TimeEntry
from zbroker.storage.index_pair import NO_TIMESTAMP, IndexPair
from zbroker.storage.layout import LOG, RELATIVE_MAX, segment_name
from zbroker.storage.scan import EPOCH_MAX, Scan
from zbroker.storage.store import DiskSpace, Store

_COUNT_MAX = RELATIVE_MAX + 1


class Found(NamedTuple):
    """A batch in the log."""

    position: int
    header: BatchHeader


class Segment:
    """Batches from `base_offset` up to, not including, `next_offset`."""

    def __init__(
        self,
        directory: Path,
        base_offset: int,
        files: Files,
        handles: Handles,
        space: DiskSpace,
        *,
        segment_bytes: int,
        index_interval_bytes: int,
    ) -> None:
        self.base_offset = base_offset
        self.next_offset = base_offset
        self.store = Store(directory / segment_name(base_offset, LOG), files, handles, space, limit=segment_bytes)
        self.indexes = IndexPair(directory, base_offset, files, interval_bytes=index_interval_bytes)
        self.first_timestamp = NO_TIMESTAMP
        self.is_sealed = False
        self._handles = handles
        self._hint_offset = -1
        self._hint_position = 0

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """The three files."""
        return self.store.path, self.indexes.offsets.path, self.indexes.times.path

    @property
    def size_bytes(self) -> int:
        """Bytes of batches."""
        return self.store.end

    def create(self) -> None:
        """Make the three files, empty. Raises DiskFullError or StorageError with none of them believed."""
        self.indexes.create()
        self.store.create()

    def release(self) -> None:
        """Close what is open. The segment can be used again."""
        self._handles.drop(self.store)
        self._handles.drop_indexes(self)

    # --- append ------------------------------------------------------------------------------------------------------

    def has_room(self, size_bytes: int, next_offset: int) -> bool:
        """Whether a batch fits: into the size limit, and into the relative offsets of the indexes."""
        end = self.store.end
        return end == 0 or (end + size_bytes <= self.store.limit and next_offset - self.base_offset <= _COUNT_MAX)

    def append(self, batch: Buffer, size_bytes: int, next_offset: int, max_timestamp: int) -> None:
        """Write a batch at the end. On an error the segment is what it was."""
        position = self.store.append(batch, size_bytes)
        if self.first_timestamp == NO_TIMESTAMP:
            self.first_timestamp = max_timestamp
        self.indexes.note(position, size_bytes, next_offset - 1 - self.base_offset, max_timestamp)
        self.next_offset = next_offset

    def append_run(self, data: Buffer, headers: Sequence[BatchHeader]) -> None:
        """Write several batches at the end, with one write. On an error the segment is what it was."""
        position = self.store.append(data, len(data))
        for header in headers:
            self._note(position, header.size_bytes, header.next_offset, header.max_timestamp)
            position += header.size_bytes

    def _note(self, position: int, size_bytes: int, next_offset: int, max_timestamp: int) -> None:
        if self.first_timestamp == NO_TIMESTAMP:
            self.first_timestamp = max_timestamp
        self.indexes.note(position, size_bytes, next_offset - 1 - self.base_offset, max_timestamp)
        self.next_offset = next_offset

    def seal(self) -> None:
        """Nothing is appended any more: give the space behind the end back and write the indexes out."""
        self.store.seal()
        self.is_sealed = True
        self.indexes.finish()
        self.indexes.forget()

    def forget_indexes(self) -> None:
        """Free the memory of the indexes, unless they are still being written."""
        if self.is_sealed:
            self.indexes.forget()

    # --- find --------------------------------------------------------------------------------------------------------

    def find(self, offset: int) -> Found:
        """The batch that contains an offset of this segment. Raises CorruptRecordError where the log is damaged."""
        assert self.base_offset <= offset < self.next_offset, f"{offset} is not in {self.store.path}"
        if offset == self._hint_offset:
            for position, header in self._walk(self._hint_position, offset):
                return Found(position, header)
        self._load_indexes()
        entry = self.indexes.offsets.lookup(offset - self.base_offset)
        if entry is not None:
            found = self._walk_to(entry, offset)
            if found is not None:
                return found
            self.rebuild_indexes()
        scan = self._walk(0, self.base_offset)
        for position, header in scan:
            if header.next_offset > offset:
                return Found(position, header)
        raise self._corrupt(scan)

    def _walk(self, position: int, next_offset: int | None) -> Scan:
        return Scan(
            self.store.read, position=position, bytes_end=self.store.end, next_offset=next_offset, check_crc=False
        )

    def _corrupt(self, scan: Scan) -> CorruptRecordError:
        return CorruptRecordError(f"{self.store.path}, position {scan.position}: {scan.damage or 'no batch there'}")

    def _named_by(self, entry: OffsetEntry) -> BatchHeader | None:
        """The header of the batch that an index entry points to; None when it is not the one that the entry names."""
        for _, header in self._walk(entry.position, None):
            return header if header.last_offset == self.base_offset + entry.relative else None
        return None

    def _walk_to(self, entry: OffsetEntry, offset: int) -> Found | None:
        named = self._named_by(entry)
        if named is not None and named.base_offset <= offset:
            for position, header in self._walk(entry.position, named.base_offset):
                if header.next_offset > offset:
                    return Found(position, header)
        return None

    def headers(self) -> Iterator[BatchHeader]:
        """Every batch's header, by a walk over the whole segment."""
        for _, header in self._walk(0, self.base_offset):
            yield header

    def batches(self, position: int, next_offset: int) -> Iterator[tuple[int, BatchHeader]]:
        """(position, header) of each batch from `position` on, where the one of `next_offset` begins."""
        return iter(self._walk(position, next_offset))

    def read(self, offset: int, bytes_max: int, upper_offset: int) -> bytes:
        """Whole batches from the one that contains `offset`, below `upper_offset`: at least one, and as many as fit."""
        start, header = self.find(offset)
        data = self.store.read(max(bytes_max, header.size_bytes), start)
        end = 0
        scan = Scan(
            lambda size_bytes, position: data[position : position + size_bytes],
            position=0,
            bytes_end=len(data),
            next_offset=header.base_offset,
            check_crc=False,
        )
        for position, found in scan:
            if found.base_offset >= upper_offset:
                break
            self._check(data, position, found)
            end = position + found.size_bytes
            self._hint_offset, self._hint_position = found.next_offset, start + end
        if end == 0:
            raise self._corrupt(scan)
        return data if end == len(data) else data[:end]

    def _check(self, data: bytes, position: int, header: BatchHeader) -> None:
        if not crc_matches(data, position, header):
            raise CorruptRecordError(f"{self.store.path}: the batch at offset {header.base_offset} fails its CRC")

    # --- time --------------------------------------------------------------------------------------------------------

    @property
    def timestamp_max(self) -> int:
        """The largest timestamp, or NO_TIMESTAMP when the segment is empty."""
        if self.indexes.timestamp_max == NO_TIMESTAMP and self.next_offset > self.base_offset:
            self._load_indexes()
        return self.indexes.timestamp_max

    def find_time(self, timestamp: int, offset_min: int) -> tuple[int, int] | None:
        """(offset, timestamp) of the first record from `offset_min` on that is as late as `timestamp`, or None.

        Exact for columns that are not compressed. For other batches it is the first record of the first batch that
        holds such a record: never too far, at most one batch early.
        """
        self._load_indexes()
        entry = self.indexes.times.before(timestamp)
        start = self.base_offset
        if entry is not None:
            if self._holds(entry):
                start = self.base_offset + entry.relative
            else:
                self.rebuild_indexes()
        begin = self.find(max(start, offset_min))
        for position, header in self._walk(begin.position, begin.header.base_offset):
            if header.max_timestamp >= timestamp:
                record = self._first_record_at(timestamp, offset_min, position, header)
                if record is not None:
                    return record
        return None

    def _first_record_at(
        self, timestamp: int, offset_min: int, position: int, header: BatchHeader
    ) -> tuple[int, int] | None:
        first = max(header.base_offset, offset_min)
        if not header.record_count:
            return None
        if header.has_append_time and not header.is_compacted:
            return first, header.max_timestamp
        if header.magic != MAGIC_COLUMNS or header.compression:
            return first, header.base_timestamp
        batch = self.store.read(header.size_bytes, position)
        self._check(batch, 0, header)
        columns = Columns(memoryview(batch), header)
        for offset, found in zip(columns.offsets(), columns.timestamps(), strict=True):
            if found >= timestamp and offset >= first:
                return offset, found
        return None

    # --- indexes -----------------------------------------------------------------------------------------------------

    def _load_indexes(self) -> None:
        if not self.indexes.is_loaded and not self.indexes.load(self.store.end, self.next_offset - self.base_offset):
            self.rebuild_indexes()
        self._handles.use_indexes(self)
        if self.indexes.timestamp_max == NO_TIMESTAMP and self.next_offset > self.base_offset:
            self._restore_timestamp_max()

    def _walk_from(self, relative: int) -> Scan:
        """A walk that begins at or before a relative offset, as near as the offset index allows."""
        entry = self.indexes.offsets.lookup(relative)
        named = None if entry is None else self._named_by(entry)
        if entry is None or named is None or named.base_offset > self.base_offset + relative:
            return self._walk(0, self.base_offset)
        return self._walk(entry.position, named.base_offset)

    def _holds(self, entry: TimeEntry) -> bool:
        """Whether the batch that a time index entry names ends there and has that largest timestamp."""
        last_offset = self.base_offset + entry.relative
        for _, header in self._walk_from(entry.relative):
            if header.last_offset >= last_offset:
                return header.last_offset == last_offset and header.max_timestamp == entry.timestamp
        return False

    def _restore_timestamp_max(self) -> None:
        # The time index may miss its last entries, so the batches from the last one on are asked as well.
        last = self.indexes.times.last()
        if last is not None and not self._holds(last):
            self.rebuild_indexes()
            return
        if last is not None:
            self.indexes.note_timestamp(last.timestamp, last.relative)
        for _, header in self._walk_from(0 if last is None else last.relative):
            self.indexes.note_timestamp(header.max_timestamp, header.last_offset - self.base_offset)

    def rebuild_indexes(self) -> None:
        """Make both indexes anew from the log. Raises CorruptRecordError when the log cannot be walked to its end."""
        next_offset = self.next_offset
        self._restart()
        scan = self._walk(0, self.base_offset)
        for position, header in scan:
            self._note(position, header.size_bytes, header.next_offset, header.max_timestamp)
        if self.next_offset != next_offset:
            self.next_offset = next_offset
            raise self._corrupt(scan)
        if self.is_sealed:
            self.indexes.finish()

    def _restart(self) -> None:
        self.indexes.restart()
        self.next_offset = self.base_offset
        self._hint_offset = -1

    # --- open again --------------------------------------------------------------------------------------------------

    def resume(
        self,
        offset: int,
        *,
        check_crc: bool,
        epoch_max: int = EPOCH_MAX,
        on_batch: Callable[[BatchHeader], None] | None = None,
    ) -> Scan:
        """Learn the segment's end by walking the log, from the last index entry at or below `offset`.

        Returns the finished scan: its `position` is the end of the last sound batch. Nothing of the log is changed; the
        caller settles the store there. Indexes that cannot be trusted are made anew on the way.
        """
        self.store.end = self.store.size_bytes()
        entry = self._sound_entry(offset - self.base_offset)
        if entry is None:
            self._restart()
        scan = Scan(
            self.store.read,
            position=0 if entry is None else entry.position,
            bytes_end=self.store.end,
            next_offset=self.next_offset,
            check_crc=check_crc,
            epoch_max=epoch_max,
        )
        for position, header in scan:
            if entry is not None and position == entry.position:
                self.next_offset = header.next_offset
            else:
                self._note(position, header.size_bytes, header.next_offset, header.max_timestamp)
            if on_batch is not None:
                on_batch(header)
        return scan

    def _sound_entry(self, relative: int) -> OffsetEntry | None:
        """Go back to the last entry at or below a relative offset, if the log and the time index agree with it."""
        entry = self.indexes.entry_up_to(relative) if self.indexes.load(self.store.end, _COUNT_MAX) else None
        if entry is None:
            return None
        first = next(self.headers(), None)
        named = self._named_by(entry)
        if first is None or named is None or not self._holds(self.indexes.times.up_to(entry.relative)):
            return None
        self.indexes.cut_behind(entry, named.size_bytes)
        self.first_timestamp = first.max_timestamp
        self.next_offset = named.base_offset
        self._hint_offset = -1
        return entry

    def take_over(self, next_offset: int, size_bytes: int, timestamp_max: int) -> None:
        """Use files that somebody else has written, as those of a sealed segment."""
        self.store.end = self.store.allocated = size_bytes
        self.next_offset = next_offset
        self.is_sealed = True
        self.indexes.is_loaded = False
        self.indexes.timestamp_max = timestamp_max

    def resume_sealed(self, next_base: int) -> str | None:
        """Take the segment over as sealed, by a look at its last index entry and the batches behind it.

        None: it ends at offset `next_base`, as it must. Else what is wrong with it.
        """
        self.store.end = self.store.size_bytes()
        self.indexes.is_loaded = False
        self.is_sealed = True
        entry = self.indexes.offsets.last_in_file()
        named = self._named_by(entry) if entry is not None and entry.position < self.store.end else None
        starts = [(0, self.base_offset)]
        if entry is not None and named is not None:
            starts.insert(0, (entry.position, named.base_offset))
        for position, offset in starts:
            scan = self._walk(position, offset)
            for _ in scan:
                pass
            if scan.next_offset == next_base:
                self.store.end = self.store.allocated = scan.position
                self.next_offset = next_base
                return None
        return f"{self.store.path}, position {scan.position}: {scan.damage or f'ends at offset {scan.next_offset}'}"
