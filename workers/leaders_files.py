"""The leader's segment files, as a follower reads them, and what it makes sure of before it takes their bytes over.

Guarantees: `read` gives our own copy of the bytes, so that what was checked is what is appended. They stand in one
buffer of the process, until the next read: fresh memory for every read would cost more than the reading. One file is
open at a time, and like any other descriptor it is closed while it is not used. `checked` trusts nothing but the bytes
at hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from zbroker.core.replication import ENTRY_BYTES_MAX
from zbroker.errors import CorruptRecordError, StorageError
from zbroker.record.batch import batches_in, crc_matches, read_header
from zbroker.record.compacted import HOLE_BYTES, hole, is_hole
from zbroker.record.layout import BatchHeader
from zbroker.storage.files import Buffer, Files
from zbroker.storage.handles import Handles
from zbroker.storage.layout import BATCH_BYTES_MAX, segment_name

READ_BYTES_MAX: Final = BATCH_BYTES_MAX  # no entry is larger than the largest batch


class ReadBuffer:
    """Memory that is read into again and again; one for a process."""

    def __init__(self) -> None:
        self._bytes = bytearray(ENTRY_BYTES_MAX)

    def view(self, size_bytes: int) -> memoryview:
        """So many bytes of it. The caller releases the view before it asks again."""
        if size_bytes > len(self._bytes):
            self._bytes = bytearray(size_bytes)
        return memoryview(self._bytes)[:size_bytes]


class _File:
    """One file, opened when it is read."""

    def __init__(self, path: Path, files: Files) -> None:
        self.path = path
        self._files = files

    def open_fd(self) -> int:
        """Open it: what the handles call. Raises StorageError."""
        try:
            return self._files.open(self.path)
        except FileNotFoundError as error:
            raise StorageError(f"{self.path} is gone") from error


class LeadersFiles:
    """See the module. `directory` is where the leader's copy lies."""

    def __init__(self, files: Files, handles: Handles, buffer: ReadBuffer) -> None:
        self.directory = Path()
        self._buffer = buffer
        self._files = files
        self._handles = handles
        self._file: _File | None = None
        self._base = -1

    def read(self, segment_base: int, position: int, size_bytes: int) -> memoryview:
        """Bytes of a segment; fewer only at the end of its file. The caller releases the view before the next read.
        Raises StorageError, TooManyOpenFilesError."""
        file = self._file
        if file is None or self._base != segment_base:
            self.drop()
            file = self._file = _File(self.directory / segment_name(segment_base), self._files)
            self._base = segment_base
        fd = self._handles.fd(file)
        view = self._buffer.view(min(size_bytes, READ_BYTES_MAX))
        count = self._files.pread_into(fd, view, position)
        return view if count == len(view) else view[:count]

    def drop(self) -> None:
        """Close what is open: the next file of that name may be another one."""
        if self._file is not None:
            self._handles.drop(self._file)
            self._file = None


def from_offset(data: memoryview, start_offset: int) -> memoryview:
    """The same bytes; but a hole that begins before `start_offset`, because the leader compacted what we have as it
    was, begins there. The caller releases both views."""
    if len(data) >= HOLE_BYTES:
        header = read_header(data)
        is_cut = header.base_offset < start_offset < header.next_offset
        if is_cut and is_hole(header) and header.size_bytes == HOLE_BYTES and crc_matches(data, 0, header):
            rest = hole(start_offset, header.next_offset, header.leader_epoch)
            return memoryview(rest + data[HOLE_BYTES:])
    return data[:]


def checked(data: Buffer, start_offset: int, end_offset: int, epoch_min: int, epoch_max: int) -> list[BatchHeader]:
    """The headers of the batches in `data`: whole, sound, following on each other from one offset to the other, with
    epochs that do not fall. Raises CorruptRecordError for anything else."""
    headers: list[BatchHeader] = []
    following, end, epoch = start_offset, 0, epoch_min
    with memoryview(data) as view:
        for position, header in batches_in(view):
            if header.base_offset != following or not epoch <= header.leader_epoch <= epoch_max:
                raise CorruptRecordError(
                    f"a batch at offset {header.base_offset} of epoch {header.leader_epoch}, where {following} comes "
                    f"next, of epoch {epoch} to {epoch_max}"
                )
            if not crc_matches(view, position, header):
                raise CorruptRecordError(f"the leader's batch at offset {following} fails its CRC")
            following, epoch = header.next_offset, header.leader_epoch
            end = position + header.size_bytes
            headers.append(header)
    if following != end_offset or end != len(data):
        raise CorruptRecordError(f"batches up to offset {following}, where the leader named {end_offset}")
    return headers
