"""Read a partition's segment files through read-only mappings, up to where its leader says readers may go.

Guarantees: no byte behind the frontier of the board is looked at, and none behind the logical end of a sealed segment
but the 64 bytes that always are zeros there, so a reader touches no page that could fail; batches are views into the
mapping, without a copy, and keep it alive after the file was deleted or the mapping left the cache; at most
`MAPPINGS_MAX` mappings are cached. The mapping of a file that grows reaches beyond its end; what is given out of it
never does. An index file is a hint: where it does not fit the log, the log is walked.

A segment ends where its file ends or where zeros stand in place of a batch; the next segment is the file named by the
next offset.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from array import array
from bisect import bisect_right
from collections import OrderedDict
from typing import Final, NamedTuple

from zbroker.client.batch_run import MakeBatch, read_run
from zbroker.errors import CorruptRecordError, StorageError, TooManyOpenFilesError
from zbroker.record.batch import read_header
from zbroker.record.layout import HEADER_BYTES, LOG_OVERHEAD, MAGIC_COLUMNS, MAGIC_ROWS
from zbroker.record.view import RecordBatch
from zbroker.shm.fence import fence
from zbroker.storage.layout import INDEX, INDEX_ENTRY, LOG, parse_segment_name, segment_name
from zbroker.storage.syscalls import map_ahead

MAPPINGS_MAX: Final = 256
INDEX_BYTES_MAX: Final = 1 << 30
AHEAD_BYTES: Final = 256 << 20  # address space alone
_EMPTY: Final = memoryview(b"")

Frontier = tuple[int, int, int]
"""(high watermark, base offset of the segment that holds it, byte position in that segment)."""


class SegmentMissingError(Exception):
    """No file holds the offset: deleted a moment ago, or not made yet. Ask the board again."""


class MappedFile(NamedTuple):
    """A file that is mapped."""

    view: memoryview
    """All of it, when it was looked at last."""
    ahead: memoryview
    """The same and what it may grow by, which must not be read before it has; or nothing."""
    identity: tuple[int, int]
    """Device and inode."""


def map_file(path: str, *, ahead_bytes: int = 0) -> MappedFile:
    """Map a whole file for reading, and `ahead_bytes` more where the system gives so much address space. The mapping
    lives as long as a view or any slice of it.

    Raises FileNotFoundError, TooManyOpenFilesError, StorageError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            size_bytes, identity = status.st_size, (status.st_dev, status.st_ino)
            if size_bytes == 0:
                return MappedFile(_EMPTY, _EMPTY, identity)
            if ahead_bytes:
                with contextlib.suppress(OSError):  # a limit on address space: the file alone may fit
                    ahead = map_ahead(fd, (size_bytes // ahead_bytes + 2) * ahead_bytes)
                    return MappedFile(ahead[:size_bytes], ahead, identity)
            view = memoryview(mmap.mmap(fd, size_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ))
            return MappedFile(view, _EMPTY, identity)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        text = f"{path}: {os.strerror(error.errno or 0)}"
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise TooManyOpenFilesError(text) from error
        raise StorageError(text, hint="a consumer reads the broker's files; transport='zmq' asks instead") from error


def _grown(path: str, known: MappedFile) -> MappedFile:
    """A file that was mapped when it was shorter. Raises as `map_file`."""
    with contextlib.suppress(OSError):  # which `map_file` meets as well, and names
        status = os.lstat(path)
        if known.identity == (status.st_dev, status.st_ino) and status.st_size <= len(known.ahead):
            return known._replace(view=known.ahead[: status.st_size])
    # What has grown once goes on growing, and a mapping is not only made: it also has to be taken down.
    return map_file(path, ahead_bytes=AHEAD_BYTES)


class Mappings:
    """The mapped segments of one consumer, the least recently used one dropped first."""

    def __init__(self, count_max: int = MAPPINGS_MAX) -> None:
        assert count_max > 0
        self._count_max = count_max
        self._files: OrderedDict[tuple[str, int], MappedFile] = OrderedDict()

    def __len__(self) -> int:
        return len(self._files)

    def get(self, directory: str, base_offset: int, size_bytes: int) -> memoryview:
        """A segment's bytes, at least `size_bytes` of them where the file has as many. Raises SegmentMissingError."""
        key = (directory, base_offset)
        known = self._files.get(key)
        if known is not None and len(known.view) >= size_bytes:
            self._files.move_to_end(key)
            return known.view
        path = os.path.join(directory, segment_name(base_offset, LOG))
        try:
            found = map_file(path) if known is None else _grown(path, known)
        except FileNotFoundError as error:
            self._files.pop(key, None)
            raise SegmentMissingError(f"{directory}: segment {base_offset}") from error
        self._files[key] = found
        self._files.move_to_end(key)
        while len(self._files) > self._count_max:
            self._files.popitem(last=False)
        return found.view

    def forget(self, directory: str) -> None:
        """Map the files of this directory anew at their next use."""
        for key in [key for key in self._files if key[0] == directory]:
            del self._files[key]

    def clear(self) -> None:
        """Drop every mapping; those with views in use go with the last view."""
        self._files.clear()


class MappedLog:
    """A place in the files of one partition's copy, which moves forward by reading."""

    def __init__(self, directory: str, mappings: Mappings, make: MakeBatch, name: str) -> None:
        self._directory = directory
        self._mappings = mappings
        self._make = make
        self._name = name
        self._base = -1
        self._position = 0
        self._base_offset = -1
        """Of the batch at `_position`: where the batch before it ends, or what segment or index say."""
        self._offset = -1
        self._view = _EMPTY

    def read(self, offset: int, frontier: Frontier, max_bytes: int) -> list[RecordBatch]:
        """Whole batches from the one that contains `offset`, of one segment, about `max_bytes` of them; none at the
        frontier. Raises SegmentMissingError, and CorruptRecordError that names partition and offset."""
        high_watermark, active_base, bound = frontier
        if offset >= high_watermark:
            return []
        if offset != self._offset:
            self._seek(offset, active_base, bound)
        for attempt in (1, 2):
            while True:
                end = self._end(active_base, bound)
                found = self._run(offset, end, high_watermark, max_bytes)
                if found:
                    return found
                if not self._next_segment(offset, active_base):
                    break
            if attempt == 1:
                # Nothing fits here: the files may have been replaced since they were mapped. Look with fresh eyes.
                self._mappings.forget(self._directory)
                fence()
                self._seek(offset, active_base, bound)
        path = os.path.join(self._directory, segment_name(self._base, LOG))
        raise CorruptRecordError(f"{self._name}: no batch at offset {offset}, byte {self._position} of {path}")

    def bytes_ahead(self, offset: int, frontier: Frontier) -> int | None:
        """Bytes from `offset` to the frontier; None when they are in different segments, so at least many."""
        high_watermark, active_base, bound = frontier
        if offset >= high_watermark:
            return 0
        if offset != self._offset:
            self._seek(offset, active_base, bound)
        return bound - self._position if self._base == active_base else None

    def forget(self) -> None:
        """The files may be others from now on: find the place and map anew at the next read."""
        self._mappings.forget(self._directory)
        self._offset = -1
        self._view = _EMPTY

    def _run(self, offset: int, end: int, high_watermark: int, max_bytes: int) -> list[RecordBatch]:
        make, view, position = self._make, self._view, self._position
        try:
            run = read_run(make, view, position, end, offset, high_watermark, max_bytes, base_offset=self._base_offset)
        except CorruptRecordError:
            # Bytes may reach this core after the word that announces them; a CRC that fails twice is damage.
            fence()
            run = read_run(make, view, position, end, offset, high_watermark, max_bytes, base_offset=self._base_offset)
        if run.batches:
            self._position, self._offset, self._base_offset = run.position, run.offset, run.offset
        return run.batches

    def _end(self, active_base: int, bound: int) -> int:
        """How far the segment may be read, mapped anew when it has grown."""
        if self._base < active_base:
            return len(self._view)
        if bound > len(self._view):
            self._view = self._mappings.get(self._directory, self._base, bound)
        return min(bound, len(self._view))

    def _next_segment(self, offset: int, active_base: int) -> bool:
        """Go on behind the end of a sealed segment. False: there is no going on, or this is not its end."""
        if self._base >= active_base:
            return False
        seen = len(self._view)
        if self._position + HEADER_BYTES > seen:
            # Mapped while it was shorter? A file that is deleted by now can have been mapped whole all the same.
            try:
                self._view = self._mappings.get(self._directory, self._base, seen + 1)
            except SegmentMissingError:
                pass
            if len(self._view) > seen:
                return True
        elif read_header(self._view, self._position).magic != 0:
            return False
        self._enter(self._segment_of(offset))
        return self._base == offset

    def _enter(self, base_offset: int) -> None:
        self._view = self._mappings.get(self._directory, base_offset, 0)
        self._base, self._position, self._base_offset = base_offset, 0, base_offset

    def _segment_of(self, offset: int) -> int:
        """The base of the segment that holds an offset."""
        if os.path.exists(os.path.join(self._directory, segment_name(offset, LOG))):
            return offset
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError as error:
            raise SegmentMissingError(f"{self._directory} is gone") from error
        found = [parsed for parsed in map(parse_segment_name, names) if parsed is not None]
        bases = [base for base, suffix in found if suffix == LOG and base <= offset]
        if not bases:
            raise SegmentMissingError(f"{self._directory}: no segment holds offset {offset}")
        return max(bases)

    def _seek(self, offset: int, active_base: int, bound: int) -> None:
        """Stand before the batch that contains `offset`, or where the log stops making sense on the way there."""
        # Where the board's segment begins is known without a look at the directory.
        base = active_base if offset >= active_base else self._segment_of(offset)
        self._enter(base)
        end = self._end(active_base, bound)
        view = self._view
        position, due = self._indexed_position(offset, end)
        while position + HEADER_BYTES <= end:
            header = read_header(view, position)
            if header.magic not in (MAGIC_COLUMNS, MAGIC_ROWS) or header.batch_length < HEADER_BYTES - LOG_OVERHEAD:
                break
            next_offset = due + header.last_offset_delta + 1
            if next_offset > offset:
                break
            position += header.size_bytes
            due = next_offset
        self._position, self._offset, self._base_offset = position, offset, due

    def _indexed_position(self, offset: int, end: int) -> tuple[int, int]:
        """A position at or before the batch that contains `offset`, and the base offset of the batch there, by the
        index file where it tells the truth."""
        begin = (0, self._base)
        path = os.path.join(self._directory, segment_name(self._base, INDEX))
        try:
            with open(path, "rb") as file:
                data = file.read(min(os.fstat(file.fileno()).st_size, INDEX_BYTES_MAX))
        except OSError:
            return begin
        words = array("I", data[: len(data) // INDEX_ENTRY.size * INDEX_ENTRY.size])
        words.byteswap()
        found = bisect_right(words[0::2], offset - self._base) - 1
        if found < 0:
            return begin
        relative, position = words[2 * found], words[2 * found + 1]
        if position + HEADER_BYTES > end:
            return begin
        header = read_header(self._view, position)
        fits = header.magic in (MAGIC_COLUMNS, MAGIC_ROWS) and header.last_offset == self._base + relative
        return (position, header.base_offset) if fits else begin
