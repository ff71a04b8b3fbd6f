"""The two indexes of one segment, kept in step: when an entry is due, and what the largest timestamp is.

Guarantees: the entries are the same whether they were made while appending or by a walk over the log, so a rebuilt
index equals the first one. Entries follow Kafka's rule: one when more than `interval_bytes` were appended since the
last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from zbroker.storage.files import Files
from zbroker.storage.index import OffsetEntry, OffsetIndex, TimeIndex
from zbroker.storage.layout import INDEX, TIMEINDEX, segment_name

NO_TIMESTAMP: Final = -1


class IndexPair:
    """The .index and .timeindex of the segment with this base offset."""

    def __init__(self, directory: Path, base_offset: int, files: Files, *, interval_bytes: int) -> None:
        self.offsets = OffsetIndex(directory / segment_name(base_offset, INDEX), files)
        self.times = TimeIndex(directory / segment_name(base_offset, TIMEINDEX), files)
        self.interval_bytes = interval_bytes
        self.timestamp_max = NO_TIMESTAMP
        self.is_loaded = True
        self._timestamp_max_relative = 0
        self._bytes_since_entry = 0

    def create(self) -> None:
        """Make both files, empty."""
        self.offsets.create()
        self.times.create()

    def note(self, position: int, size_bytes: int, relative: int, max_timestamp: int) -> None:
        """A batch was appended at `position`; `relative` is its last offset less the base offset."""
        if max_timestamp > self.timestamp_max:  # as note_timestamp, for every batch
            self.timestamp_max = max_timestamp
            self._timestamp_max_relative = relative
        if self._bytes_since_entry > self.interval_bytes:
            self.offsets.add(relative, position)
            if self.timestamp_max != NO_TIMESTAMP:
                self.times.add_if_later(self.timestamp_max, self._timestamp_max_relative)
            self._bytes_since_entry = 0
        self._bytes_since_entry += size_bytes

    def note_timestamp(self, max_timestamp: int, relative: int) -> None:
        """A batch has this largest timestamp."""
        if max_timestamp > self.timestamp_max:
            self.timestamp_max = max_timestamp
            self._timestamp_max_relative = relative

    def finish(self) -> None:
        """The segment is sealed: the largest timestamp becomes the last entry."""
        if self.timestamp_max != NO_TIMESTAMP:
            self.times.add_if_later(self.timestamp_max, self._timestamp_max_relative)
        self.save()

    def save(self) -> None:
        """Write what is only in memory."""
        if self.is_loaded:
            self.offsets.save()
            self.times.save()

    def forget(self) -> None:
        """Free the memory, if the files hold everything."""
        if self.is_loaded and self.offsets.is_saved and self.times.is_saved:
            self.offsets.forget()
            self.times.forget()
            self.is_loaded = False

    def load(self, bytes_end: int, count: int) -> bool:
        """Read both files. False: they do not fit a segment of so many bytes and offsets, and have to be made anew."""
        self.is_loaded = True
        if not (self.offsets.load(bytes_end) and self.times.load()):
            return False
        last_offset, last_time = self.offsets.first[-1:], self.times.second[-1:]
        return all(relative < count for relative in (*last_offset, *last_time))

    def restart(self) -> None:
        """Forget all entries, in the files too: a walk over the log makes them anew."""
        self.offsets.clear()
        self.times.clear()
        self.is_loaded = True
        self.timestamp_max = NO_TIMESTAMP
        self._timestamp_max_relative = 0
        self._bytes_since_entry = 0

    def entry_up_to(self, relative: int) -> OffsetEntry | None:
        """The last entry at or below a relative offset; None also when the time index does not reach there."""
        entry = self.offsets.lookup(relative)
        return entry if entry is not None and self.times.count_up_to(entry.relative) else None

    def cut_behind(self, entry: OffsetEntry, size_bytes: int) -> None:
        """Keep what was noted up to the entry's own batch, of so many bytes, as if nothing had followed it yet."""
        self.offsets.cut(self.offsets.count_up_to(entry.relative))
        self.times.cut(self.times.count_up_to(entry.relative))
        self.timestamp_max = self.times.first[-1]
        self._timestamp_max_relative = self.times.second[-1]
        self._bytes_since_entry = size_bytes
