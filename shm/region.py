"""Mapped memory: one file or memfd, seen as bytes and as 8-byte words.

Guarantees: every page of a region is allocated before it is mapped, so that a full file system is a typed error at
creation and never a SIGBUS at a store; a memfd is sealed against shrinking and growing, so that nobody who holds it
can take its pages away; `attach` refuses a memfd without those seals. Words are stored and loaded whole.

It does not know what the words mean, and orders nothing: that is the part of the modules above it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path

from zbroker.errors import BrokerError, DiskFullError, InvalidRequestError, StorageError, TooManyOpenFilesError

WORD_BYTES = 8
PAGE_BYTES = 4096
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def _typed(error: OSError, what: str) -> BrokerError:
    text = f"{what}: {os.strerror(error.errno or 0)}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
        return DiskFullError(text, hint="df /dev/shm; free memory or shared memory")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return TooManyOpenFilesError(text)
    return StorageError(text)


class Region:
    """A mapping. `u64` is the view for words (one store is one 8-byte store), `bytes` the view for payloads."""

    __slots__ = ("_map", "bytes", "is_writable", "size_bytes", "u64")

    def __init__(self, fd: int, size_bytes: int, *, is_writable: bool) -> None:
        assert size_bytes > 0, f"{size_bytes} bytes"
        assert size_bytes % WORD_BYTES == 0, f"{size_bytes} bytes are no whole words"
        protection = mmap.PROT_READ | mmap.PROT_WRITE if is_writable else mmap.PROT_READ
        self._map = mmap.mmap(fd, size_bytes, flags=mmap.MAP_SHARED, prot=protection)
        self.bytes = memoryview(self._map)
        self.u64 = self.bytes.cast("Q")
        self.size_bytes = size_bytes
        self.is_writable = is_writable

    def close(self) -> None:
        """Release the views and the mapping. Where a caller still holds a view, the pages go with the last one."""
        self.u64.release()
        self.bytes.release()
        try:
            self._map.close()
        except BufferError:
            pass  # Views of a peeked message are still held; the mapping is unmapped when they are dropped.


def create_file(path: Path, size_bytes: int) -> tuple[Region, Path]:
    """Make a file of zeros, mode 0600, under a temporary name beside `path`, and map it for writing.

    The caller fills in its header and then calls `publish_file`: a reader never sees a file without its header.
    Raises DiskFullError when the file system cannot hold it; nothing is left behind then.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _typed(error, str(path)) from error
    try:
        os.posix_fallocate(fd, 0, size_bytes)
        return Region(fd, size_bytes, is_writable=True), temporary
    except OSError as error:
        os.unlink(temporary)
        raise _typed(error, f"{path}: {size_bytes} bytes of shared memory") from error
    finally:
        os.close(fd)


def publish_file(temporary: Path, path: Path) -> None:
    """Give a file made by `create_file` its name."""
    os.rename(temporary, path)


def attach_file(path: Path, *, is_writable: bool = False) -> Region:
    """Map an existing file. Raises FileNotFoundError when there is none, StorageError when it cannot be a region."""
    access = os.O_RDWR if is_writable else os.O_RDONLY
    try:
        fd = os.open(path, access | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _typed(error, str(path)) from error
    try:
        size_bytes = os.fstat(fd).st_size
        if size_bytes < PAGE_BYTES or size_bytes % WORD_BYTES:
            raise StorageError(f"{path}: {size_bytes} bytes are no region", hint="it was not written by zbroker")
        return Region(fd, size_bytes, is_writable=is_writable)
    except OSError as error:  # a directory, for one, has a size too
        raise _typed(error, str(path)) from error
    finally:
        os.close(fd)


def create_memfd(name: str, size_bytes: int) -> tuple[Region, int]:
    """Make a sealed memfd of zeros and map it. The caller closes the descriptor when it has handed it over."""
    fd = -1
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.posix_fallocate(fd, 0, size_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return Region(fd, size_bytes, is_writable=True), fd
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise _typed(error, f"{size_bytes} bytes of shared memory") from error


def attach_memfd(fd: int) -> Region:
    """Map a memfd that another process handed over. Raises InvalidRequestError when its size is not sealed."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise InvalidRequestError("the descriptor handed over is no memfd") from error
    if seals & _SEALS != _SEALS:
        raise InvalidRequestError("the memory handed over is not sealed: its size could change while it is mapped")
    size_bytes = os.fstat(fd).st_size
    if size_bytes < PAGE_BYTES or size_bytes % WORD_BYTES:
        raise InvalidRequestError(f"the memory handed over has {size_bytes} bytes")
    try:
        return Region(fd, size_bytes, is_writable=True)
    except OSError as error:
        raise _typed(error, f"mapping {size_bytes} bytes") from error
