"""One .log file: the bytes of a segment, appended by pwrite into space allocated ahead.

Guarantees: `end` is the logical end, a position; after a failed append it is what it was, and all behind it reads as
zeros again, so that nothing of the failed batch can come back as a phantom behind a shorter one. The file is never
shortened, because a reader may have it mapped; behind the logical end it holds zeros. Space is taken by fallocate in
steps that double (64 KiB up to 64 MiB, 2 MiB on tmpfs, where a larger step stalls), and a full disk shows there.

It knows nothing of batches and offsets.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

from zbroker.errors import BrokerError, DiskFullError, StorageError
from zbroker.storage.files import Buffer, Files
from zbroker.storage.handles import Handles
from zbroker.storage.layout import PAGE_BYTES, SEAL_MARGIN_BYTES

GROWTH_FIRST_BYTES: Final = 64 << 10
GROWTH_MAX_BYTES: Final = 64 << 20
GROWTH_MAX_TMPFS_BYTES: Final = 2 << 20
_PROBE_BYTES: Final = 64 << 10
_PROBE_ZEROS: Final = bytes(_PROBE_BYTES)
PUSH_BYTES: Final = 16 << 20  # dirty pages are pushed out in pieces of this size, before the kernel stops the writer


class DiskSpace(NamedTuple):
    """What a store needs to know of its disk."""

    is_tmpfs: bool
    disk_free_min_bytes: int


def page_up(position: int) -> int:
    """The first page boundary at or behind a position."""
    return -(-position // PAGE_BYTES) * PAGE_BYTES


class Store:
    """The bytes of one segment. `end` and `allocated` are positions in the file."""

    __slots__ = ("_files", "_handles", "_pushed", "_space", "_step", "allocated", "end", "is_spoilt", "limit", "path")

    def __init__(self, path: Path, files: Files, handles: Handles, space: DiskSpace, *, limit: int) -> None:
        self.path = path
        self.limit = limit
        self.end = 0
        self.allocated = 0
        self.is_spoilt = False
        self._files = files
        self._handles = handles
        self._space = space
        self._step = GROWTH_FIRST_BYTES
        self._pushed = 0

    def create(self) -> None:
        """Make the file with its first step allocated, if the disk has room for that. Replaces an older file."""
        fd = self._files.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._handles.adopt(self, fd)
        try:
            self.grow(0)
        except DiskFullError:
            pass  # the first append asks again, and reports it

    def fd(self) -> int:
        """The open descriptor, for this thread and this moment: the next call may close it."""
        return self._handles.fd(self)

    def open_fd(self) -> int:
        """Open the file: what the handles call."""
        try:
            return self._files.open(self.path, os.O_RDWR)
        except FileNotFoundError as error:
            raise StorageError(f"{self.path} is gone") from error

    def size_bytes(self) -> int:
        """The length of the file, zeros behind the logical end included."""
        return self._files.size_bytes(self.fd())

    def append(self, data: Buffer, size_bytes: int) -> int:
        """Write at the end and return where. On an error `end` is unchanged; DiskFullError may pass by itself."""
        position = self.end
        end = position + size_bytes
        if end > self.allocated:
            self.grow(size_bytes)
        fd = self._handles.fd(self)
        try:
            self._files.pwrite(fd, data, position)
        except BrokerError:
            self._erase(fd, position, end)
            raise
        self.end = end
        if end - self._pushed >= PUSH_BYTES and not self._space.is_tmpfs:
            self._files.sync_file_range(fd, self._pushed, end - self._pushed)
            self._pushed = end
        return position

    def grow(self, size_bytes: int) -> None:
        """Allocate so that `size_bytes` fit behind the end, and a step more if there is room. Raises DiskFullError."""
        needed = page_up(self.end + size_bytes)
        target = max(needed, min(self.allocated + self._step, page_up(self.limit)))
        step_max = GROWTH_MAX_TMPFS_BYTES if self._space.is_tmpfs else GROWTH_MAX_BYTES
        self._step = min(self._step * 2, step_max)
        try:
            self._allocate(target)
        except DiskFullError:
            self._step = GROWTH_FIRST_BYTES
            if needed == target:
                raise
            self._allocate(needed)

    def _allocate(self, target: int) -> None:
        size_bytes = target - self.allocated
        if size_bytes <= 0:
            return
        least = self._space.disk_free_min_bytes
        if least and self._files.free_bytes(self.path.parent) - size_bytes < least:
            raise DiskFullError(f"{self.path}: {size_bytes} bytes more would leave less than {least} bytes free")
        self._files.fallocate(self._handles.fd(self), self.allocated, size_bytes)
        self.allocated = target

    def _erase(self, fd: int, position: int, end: int) -> None:
        self.allocated = min(self.allocated, position)
        try:
            self._files.punch_hole(fd, position, end - position)
        except BrokerError:
            self.is_spoilt = True

    def read(self, size_bytes: int, position: int) -> bytes:
        """Bytes of the file, never from behind the logical end."""
        return self._files.pread(self._handles.fd(self), min(size_bytes, self.end - position), position)

    def settle(self, end: int) -> bool:
        """Make `end` the logical end of a file found after a death: zeros behind it, whatever was there.

        True: something was there. It was punched out, its space allocated again, and the file synced, because a stale
        batch behind a torn one would otherwise come back after the next power cut.
        """
        fd = self._handles.fd(self)
        size_bytes = self._files.size_bytes(fd)
        self.end = self._pushed = end
        self.allocated = max(size_bytes, end)
        if not self.has_data_behind(end):
            return False
        self._files.punch_hole(fd, end, size_bytes - end)
        try:
            self._files.fallocate(fd, end, size_bytes - end)
        except DiskFullError:
            self.allocated = end
        self._files.fdatasync(fd)
        return True

    def has_data_behind(self, end: int) -> bool:
        """Whether anything but zeros was written behind a position."""
        fd = self._handles.fd(self)
        size_bytes = self._files.size_bytes(fd)
        # Allocated pages that a read has brought into the page cache count as data for the kernel, so they are compared
        # with zeros; and the reads must not bring in more of them.
        self._files.expect_random_reads(fd, True)
        try:
            position: int | None = end
            while position is not None and position < size_bytes:
                chunk = self._files.pread(fd, min(_PROBE_BYTES, size_bytes - position), position)
                if chunk != _PROBE_ZEROS[: len(chunk)]:
                    return True
                position = self._files.next_data(fd, position + len(chunk)) if chunk else None
            return False
        finally:
            self._files.expect_random_reads(fd, False)

    def seal(self) -> None:
        """Give back what was allocated ahead, but for zeros that show readers where the segment ends."""
        boundary = page_up(self.end + SEAL_MARGIN_BYTES)
        if self.allocated > boundary:
            self._files.punch_hole(self._handles.fd(self), boundary, self.allocated - boundary)
        self.allocated = min(self.allocated, boundary)
