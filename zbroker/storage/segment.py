"""One segment: a .log file with its offset index and its time index.

Guarantees: `next_offset`, `end` and the indexes change only after the bytes are in the file. A lookup goes as the
articles describe it: bisect the index for the last entry at or below the offset, then walk the log from there. An index
entry is believed only when the batch at its position is the one that it names; else both indexes are rebuilt from the
log. What is read is checked against its CRC.

Sealed, a segment keeps nothing in memory but a few numbers; its indexes are loaded when a lookup needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from zbroker.errors import CorruptRecordError
from zbroker.record.batch import crc_matches
from zbroker.record.columns import Columns
from zbroker.record.layout import HEADER_BYTES, MAGIC_COLUMNS, BatchHeader
from zbroker.storage.files import Buffer, Files
from zbroker.storage.handles import Handles
from zbroker.storage.index import OffsetEntry, OffsetIndex, TimeIndex
from zbroker.storage.layout import INDEX, LOG, RELATIVE_MAX, TIMEINDEX, segment_name
from zbroker.storage.scan import EPOCH_MAX, Scan
from zbroker.storage.store import Space, Store

NO_TIMESTAMP = -1


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
        space: Space,
        *,
        segment_bytes: int,
        index_interval_bytes: int,
    ) -> None:
        self._handles = handles
        self.base_offset = base_offset
        self.next_offset = base_offset
        self.store = Store(directory / segment_name(base_offset, LOG), files, handles, space, limit=segment_bytes)
        self.offset_index = OffsetIndex(directory / segment_name(base_offset, INDEX), files)
        self.time_index = TimeIndex(directory / segment_name(base_offset, TIMEINDEX), files)
        self.index_interval_bytes = index_interval_bytes
        self.first_timestamp = NO_TIMESTAMP
        self.is_sealed = False
        self._timestamp_max = NO_TIMESTAMP
        self._timestamp_max_relative = 0
        self._bytes_since_entry = 0
        self._is_loaded = True
        self._hint_offset = -1
        self._hint_position = 0

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """The three files."""
        return self.store.path, self.offset_index.path, self.time_index.path

    @property
    def size_bytes(self) -> int:
        """Bytes of batches."""
        return self.store.end

    def create(self) -> None:
        """Make the three files, empty. Raises DiskFullError or StorageError with none of them believed."""
        self.offset_index.create()
        self.time_index.create()
        self.store.create()

    # --- append ------------------------------------------------------------------------------------------------------

    def has_room(self, size_bytes: int, next_offset: int) -> bool:
        """Whether a batch fits: into the size limit, and into the relative offsets of the indexes."""
        end = self.store.end
        return end == 0 or (
            end + size_bytes <= self.store.limit and next_offset - 1 - self.base_offset <= RELATIVE_MAX
        )

    def append(self, batch: Buffer, size_bytes: int, next_offset: int, max_timestamp: int) -> None:
        """Write a batch at the end. On an error the segment is what it was."""
        position = self.store.append(batch, size_bytes)
        self._note(position, size_bytes, next_offset, max_timestamp)

    def _note(self, position: int, size_bytes: int, next_offset: int, max_timestamp: int) -> None:
        if position == 0:
            self.first_timestamp = max_timestamp
        relative = next_offset - 1 - self.base_offset
        if max_timestamp > self._timestamp_max:
            self._timestamp_max = max_timestamp
            self._timestamp_max_relative = relative
        if self._bytes_since_entry > self.index_interval_bytes:
            self.offset_index.add(relative, position)
            self.time_index.add_if_later(self._timestamp_max, self._timestamp_max_relative)
            self._bytes_since_entry = 0
        self._bytes_since_entry += size_bytes
        self.next_offset = next_offset

    def seal(self) -> None:
        """Nothing is appended any more: give the space behind the end back and write the indexes out."""
        self.store.seal()
        self.is_sealed = True
        self._finish_indexes()

    def unseal(self) -> None:
        """Take a `seal` back that could not be finished: the segment is appended to again."""
        self.is_sealed = False
        if not self._is_loaded:
            self._load_indexes()

    def _finish_indexes(self) -> None:
        if self._timestamp_max != NO_TIMESTAMP:
            self.time_index.add_if_later(self._timestamp_max, self._timestamp_max_relative)
        self.save_indexes()
        self.forget_indexes()

    def save_indexes(self) -> None:
        """Write index entries that are only in memory."""
        if self._is_loaded:
            self.offset_index.save()
            self.time_index.save()

    def forget_indexes(self) -> None:
        """Free the memory of a sealed segment's indexes, if their files hold everything."""
        if self.is_sealed and self._is_loaded and self.offset_index.is_saved and self.time_index.is_saved:
            self.offset_index.forget()
            self.time_index.forget()
            self._is_loaded = False

    # --- find --------------------------------------------------------------------------------------------------------

    def find(self, offset: int) -> Found:
        """The batch that contains an offset of this segment. Raises CorruptRecordError when the log is damaged there."""
        assert self.base_offset <= offset < self.next_offset, f"{offset} is not in {self.store.path}"
        if offset == self._hint_offset:
            for position, header in self._walk(self._hint_position, offset):
                return Found(position, header)
        self._load_indexes()
        entry = self.offset_index.lookup(offset - self.base_offset)
        if entry is not None:
            found = self._walk_to(entry, offset)
            if found is not None:
                return found
            self.rebuild_indexes()
        scan = self._walk(0, self.base_offset)
        for position, header in scan:
            if header.next_offset > offset:
                return Found(position, header)
        raise CorruptRecordError(f"{self.store.path}, position {scan.position}: {scan.damage or 'zeros'}")

    def _walk(self, position: int, next_offset: int | None) -> Scan:
        return Scan(
            self.store.read, position=position, bytes_end=self.store.end, next_offset=next_offset, check_crc=False
        )

    def _walk_to(self, entry: OffsetEntry, offset: int) -> Found | None:
        """Walk from an entry; None when the entry does not name the batch that it points to."""
        is_first = True
        for position, header in self._walk(entry.position, None):
            if is_first and header.last_offset != self.base_offset + entry.relative:
                return None
            is_first = False
            if header.next_offset > offset:
                return Found(position, header) if header.base_offset <= offset else None
        return None

    def read(self, offset: int, bytes_max: int, upper_offset: int) -> bytes:
        """Whole batches from the one that contains `offset`, below `upper_offset`, at most `bytes_max` but at least one."""
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
            if not crc_matches(data, position, found):
                raise CorruptRecordError(f"{self.store.path}: the batch at offset {found.base_offset} is damaged")
            end = position + found.size_bytes
            self._hint_offset, self._hint_position = found.next_offset, start + end
        if end == 0:
            raise CorruptRecordError(f"{self.store.path}: the batch at offset {header.base_offset} is damaged")
        return data if end == len(data) else data[:end]

    def headers(self) -> Iterator[BatchHeader]:
        """Every batch's header, by a walk over the whole segment."""
        for _, header in self._walk(0, self.base_offset):
            yield header

    # --- time --------------------------------------------------------------------------------------------------------

    @property
    def timestamp_max(self) -> int:
        """The largest timestamp, or NO_TIMESTAMP when the segment is empty."""
        if self._timestamp_max == NO_TIMESTAMP and self.next_offset > self.base_offset:
            self._load_indexes()
        return self._timestamp_max

    def find_time(self, timestamp: int, offset_min: int) -> tuple[int, int] | None:
        """(offset, timestamp) of the first record from `offset_min` on that is as late as `timestamp`, or None.

        Exact for columns that are not compressed. For other batches it is the first record of the first batch that
        holds such a record: never too far, at most one batch early.
        """
        self._load_indexes()
        entry = self.time_index.before(timestamp)
        start = self.base_offset
        if entry is not None and entry.relative < self.next_offset - self.base_offset:
            found = self.find(self.base_offset + entry.relative)
            if found.header.max_timestamp == entry.timestamp:
                start = found.header.base_offset
            else:
                self.rebuild_indexes()
        begin = self.find(max(start, offset_min))
        for position, header in self._walk(begin.position, begin.header.base_offset):
            if header.max_timestamp >= timestamp:
                found = self._first_record_at(timestamp, offset_min, position, header)
                if found is not None:
                    return found
        return None

    def _first_record_at(
        self, timestamp: int, offset_min: int, position: int, header: BatchHeader
    ) -> tuple[int, int] | None:
        first = max(header.base_offset, offset_min)
        if header.has_append_time:
            return first, header.max_timestamp
        if header.magic != MAGIC_COLUMNS or header.compression:
            return first, header.base_timestamp
        batch = self.store.read(header.size_bytes, position)
        if not crc_matches(batch, 0, header):
            raise CorruptRecordError(f"{self.store.path}: the batch at offset {header.base_offset} is damaged")
        for number, found in enumerate(Columns(memoryview(batch), header).timestamps()):
            if found >= timestamp and header.base_offset + number >= first:
                return header.base_offset + number, found
        return None

    # --- indexes -----------------------------------------------------------------------------------------------------

    def _load_indexes(self) -> None:
        if not self._is_loaded:
            count = self.next_offset - self.base_offset
            self._is_loaded = True
            if not self._load_sound_indexes() or not self._fits(count):
                self.rebuild_indexes()
        self._handles.use_indexes(self)
        if self._timestamp_max == NO_TIMESTAMP and self.next_offset > self.base_offset:
            self._restore_timestamp_max()

    def _load_sound_indexes(self) -> bool:
        return self.offset_index.load(self.store.end) and self.time_index.load()

    def _fits(self, count: int) -> bool:
        offsets, times = self.offset_index.first, self.time_index.second
        return (not offsets or offsets[-1] < count) and (not times or times[-1] < count)

    def _restore_timestamp_max(self) -> None:
        # The time index may miss its last entries, so that the batches behind the last one are asked as well.
        last = self.time_index.last()
        offset = self.base_offset if last is None else self.base_offset + last.relative
        start = self.find(offset)
        self._timestamp_max = NO_TIMESTAMP if last is None else last.timestamp
        for _, header in self._walk(start.position, start.header.base_offset):
            if header.max_timestamp > self._timestamp_max:
                self._timestamp_max = header.max_timestamp
                self._timestamp_max_relative = header.last_offset - self.base_offset

    def rebuild_indexes(self) -> None:
        """Make both indexes anew from the log. Raises CorruptRecordError when the log cannot be walked to its end."""
        next_offset = self.next_offset
        self._restart()
        scan = self._walk(0, self.base_offset)
        for position, header in scan:
            self._note(position, header.size_bytes, header.next_offset, header.max_timestamp)
        if self.next_offset != next_offset:
            self.next_offset = next_offset
            raise CorruptRecordError(f"{self.store.path}, position {scan.position}: {scan.damage or 'zeros'}")
        if self.is_sealed and self._timestamp_max != NO_TIMESTAMP:
            self.time_index.add_if_later(self._timestamp_max, self._timestamp_max_relative)
        self.save_indexes()

    def _restart(self) -> None:
        self.offset_index.cut(0)
        self.time_index.cut(0)
        self._is_loaded = True
        self.next_offset = self.base_offset
        self._timestamp_max = NO_TIMESTAMP
        self._timestamp_max_relative = 0
        self._bytes_since_entry = 0
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
        self._is_loaded = True
        entry = self._sound_entry(offset) if self._load_sound_indexes() else None
        if entry is None:
            self._restart()
        self._bytes_since_entry = 0
        self._hint_offset = -1
        scan = Scan(
            self.store.read,
            position=0 if entry is None else entry.position,
            bytes_end=self.store.end,
            next_offset=self.next_offset,
            check_crc=check_crc,
            epoch_max=epoch_max,
        )
        for position, header in scan:
            self._resume_batch(position, header, entry)
            if on_batch is not None:
                on_batch(header)
        return scan

    def _resume_batch(self, position: int, header: BatchHeader, entry: OffsetEntry | None) -> None:
        if entry is not None and position == entry.position:
            self.next_offset = header.next_offset
            self._bytes_since_entry = header.size_bytes
        else:
            self._note(position, header.size_bytes, header.next_offset, header.max_timestamp)

    def _sound_entry(self, offset: int) -> OffsetEntry | None:
        """Cut the indexes to the last entry whose batch ends at or below `offset`, if log and time index agree with it."""
        number = self.offset_index.count_up_to(offset - self.base_offset) - 1
        entry = self.offset_index.at(number)
        if entry is None:
            return None
        first = next(iter(self._walk(0, self.base_offset)), None)
        named = next(iter(self._walk(entry.position, None)), None)
        times = sum(relative <= entry.relative for relative in self.time_index.second)
        if first is None or named is None or times == 0:
            return None
        if named[1].last_offset != self.base_offset + entry.relative:
            return None
        self.offset_index.cut(number + 1)
        self.time_index.cut(times)
        self.first_timestamp = first[1].max_timestamp
        self.next_offset = named[1].base_offset
        self._timestamp_max = self.time_index.first[-1]
        self._timestamp_max_relative = self.time_index.second[-1]
        return entry

    def settle(self, end: int) -> bool:
        """Make a position of `resume` the end of the segment (`Store.settle`)."""
        return self.store.settle(end)

    def resume_sealed(self, next_base: int) -> str | None:
        """Take the segment over as sealed, by a look at its last index entry and the batches behind it.

        None: it ends at offset `next_base`, as it must. Else what is wrong with it; then it is not taken over.
        """
        self.store.end = self.store.size_bytes()
        self._is_loaded = False
        self.is_sealed = True
        scan: Scan | None = None
        entry = self.offset_index.last_in_file()
        if entry is not None and entry.position < self.store.end:
            scan = self._walk(entry.position, None)
            first = next(iter(scan), None)
            if first is None or first[1].last_offset != self.base_offset + entry.relative:
                scan = None
            else:
                scan = self._walk(entry.position, first[1].base_offset)
        for scan in filter(None, (scan, self._walk(0, self.base_offset))):
            for _ in scan:
                pass
            if scan.next_offset == next_base:
                self.store.end = self.store.allocated = scan.position
                self.next_offset = next_base
                return None
        assert scan is not None
        return f"{self.store.path}, position {scan.position}: {scan.damage or f'ends at offset {scan.next_offset}'}"
