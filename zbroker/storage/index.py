"""The two sparse indexes of a segment, in Kafka's format: offset to position, and timestamp to offset.

Guarantees: entries only rise, in both columns; `load` refuses a file in which they do not, or which does not fit the
segment, and the caller rebuilds it from the log. Lookups are bisections of arrays. A file that misses its last entries
is sound: the log is walked from the last one on.

No checksum guards them, as in Kafka: who uses an entry compares it with the batch that it points to.
"""

from __future__ import annotations

import os
import struct
from array import array
from bisect import bisect_left, bisect_right
from itertools import pairwise
from operator import lt
from pathlib import Path
from typing import Final, NamedTuple

from zbroker.errors import BrokerError
from zbroker.storage.files import Files
from zbroker.storage.layout import INDEX_ENTRY, RELATIVE_MAX, TIMEINDEX_ENTRY

SAVE_EVERY_ENTRIES: Final = 64
INDEX_FILE_BYTES_MAX: Final = 1 << 30


class OffsetEntry(NamedTuple):
    """The last relative offset of a batch, and the byte position where the batch begins."""

    relative: int
    position: int


class TimeEntry(NamedTuple):
    """The largest timestamp of all records up to and including the relative offset."""

    timestamp: int
    relative: int


def _rises(column: array[int]) -> bool:
    return all(lt(one, other) for one, other in pairwise(column))


class _Columns:
    """Two columns in memory and their file. The file is written in blocks, behind the log."""

    entry: struct.Struct
    codes: tuple[str, str]

    def __init__(self, path: Path, files: Files) -> None:
        self.path = path
        self._files = files
        self._saved_count = 0
        self.first: array[int] = array(self.codes[0])
        self.second: array[int] = array(self.codes[1])

    def __len__(self) -> int:
        return len(self.first)

    @property
    def is_saved(self) -> bool:
        """Whether the file holds every entry."""
        return self._saved_count == len(self.first)

    def create(self) -> None:
        """Make the file empty."""
        self._files.close(self._files.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
        self._saved_count = 0

    def _add(self, first: int, second: int) -> None:
        self.first.append(first)
        self.second.append(second)
        if len(self.first) - self._saved_count >= SAVE_EVERY_ENTRIES and len(self.first) % SAVE_EVERY_ENTRIES == 0:
            self.save()

    def save(self) -> None:
        """Write the entries that the file does not have yet. That it cannot be written is no error: they stay in
        memory, and a start without them walks the log."""
        if self.is_saved:
            return
        start = self._saved_count
        pack = self.entry.pack
        data = b"".join(map(pack, self.first[start:], self.second[start:]))
        try:
            fd = self._files.open(self.path, os.O_WRONLY | os.O_CREAT | (0 if start else os.O_TRUNC))
            try:
                self._files.pwrite(fd, data, start * self.entry.size)
                self._saved_count = len(self.first)
            finally:
                self._files.close(fd)
        except (BrokerError, FileNotFoundError):
            pass

    def cut(self, count: int) -> None:
        """Keep the first `count` entries. The file is written anew: what lies behind would be taken for entries."""
        assert count > 0
        if count == len(self.first) and self.is_saved:
            return
        del self.first[count:]
        del self.second[count:]
        self._saved_count = 0
        self.save()

    def clear(self) -> None:
        """Forget all entries, and whatever the file holds."""
        self.first = array(self.codes[0])
        self.second = array(self.codes[1])
        self._saved_count = 0
        try:
            self.create()
        except BrokerError:
            pass  # the first save tries again

    def forget(self) -> None:
        """Free the memory of an index that is saved; `load` brings it back."""
        assert self.is_saved
        self.first = array(self.codes[0])
        self.second = array(self.codes[1])
        self._saved_count = 0

    def _load(self) -> bool:
        data = self._files.read_file(self.path, INDEX_FILE_BYTES_MAX)
        if data is None or len(data) % self.entry.size:
            return False
        columns = tuple(zip(*self.entry.iter_unpack(data), strict=True)) or ((), ())
        firsts, seconds = array(self.codes[0], columns[0]), array(self.codes[1], columns[1])
        if not (_rises(firsts) and _rises(seconds)):
            return False
        self.first, self.second = firsts, seconds
        self._saved_count = len(firsts)
        return True


class OffsetIndex(_Columns):
    """relative offset -> position."""

    entry = INDEX_ENTRY
    codes = ("I", "I")

    def add(self, relative: int, position: int) -> None:
        """Note where the batch begins that ends with this relative offset."""
        assert 0 <= relative <= RELATIVE_MAX
        assert not self.first or (relative > self.first[-1] and position > self.second[-1])
        self._add(relative, position)

    def lookup(self, relative: int) -> OffsetEntry | None:
        """The last entry at or below a relative offset; None: begin at the start of the segment."""
        return self.at(self.count_up_to(relative) - 1)

    def at(self, number: int) -> OffsetEntry | None:
        """Entry by its number; None below 0."""
        return OffsetEntry(self.first[number], self.second[number]) if number >= 0 else None

    def count_up_to(self, relative: int) -> int:
        """How many entries lie at or below a relative offset."""
        return bisect_right(self.first, relative)

    def last_in_file(self) -> OffsetEntry | None:
        """The last entry, read from the file alone; None when it has none or cannot be right."""
        try:
            fd = self._files.open(self.path)
        except FileNotFoundError:
            return None
        try:
            size_bytes = self._files.size_bytes(fd)
            if size_bytes == 0 or size_bytes % self.entry.size:
                return None
            found = self._files.pread(fd, self.entry.size, size_bytes - self.entry.size)
        finally:
            self._files.close(fd)
        return OffsetEntry(*self.entry.unpack(found))

    def load(self, bytes_end: int) -> bool:
        """Read the file. False: it is missing, or cannot belong to a log file of this size."""
        return self._load() and (not self.second or self.second[-1] < bytes_end)


class TimeIndex(_Columns):
    """largest timestamp so far -> relative offset."""

    entry = TIMEINDEX_ENTRY
    codes = ("q", "I")

    def add_if_later(self, timestamp: int, relative: int) -> None:
        """Note the largest timestamp so far, unless the last entry says it already."""
        if not self.first or timestamp > self.first[-1]:
            if self.first and relative <= self.second[-1]:
                return
            self._add(timestamp, relative)

    def before(self, timestamp: int) -> TimeEntry | None:
        """The last entry whose timestamp is lower: no record up to its offset is as late as `timestamp`."""
        number = bisect_left(self.first, timestamp) - 1
        return TimeEntry(self.first[number], self.second[number]) if number >= 0 else None

    def count_up_to(self, relative: int) -> int:
        """How many entries name an offset at or below a relative offset."""
        return bisect_right(self.second, relative)

    def up_to(self, relative: int) -> TimeEntry:
        """The last entry that names an offset at or below a relative offset. There must be one."""
        number = self.count_up_to(relative) - 1
        assert number >= 0
        return TimeEntry(self.first[number], self.second[number])

    def last(self) -> TimeEntry | None:
        """The last entry."""
        return TimeEntry(self.first[-1], self.second[-1]) if self.first else None

    def load(self) -> bool:
        """Read the file. False: it is missing or contradicts itself."""
        return self._load()
