"""The Linux calls that Python does not have: fallocate, sync_file_range, the type of a file system, and a mapping that
reaches beyond the end of its file.

Guarantees: every call sets errno for itself alone (`use_errno`) and raises OSError with it; the GIL is free while the
kernel works. Only this file uses ctypes on libc for storage.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from typing import Final

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
SYNC_FILE_RANGE_WRITE: Final = 0x02
TMPFS_MAGIC: Final = 0x01021994
_STATFS_BYTES: Final = 256  # struct statfs is 120 bytes on 64-bit Linux; its first word is f_type

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_libc.statfs.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MAP_FAILED: Final = ctypes.c_void_p(-1).value

assert sys.byteorder == "little", "zbroker runs on little-endian Linux"
assert ctypes.sizeof(ctypes.c_long) == 8, "zbroker runs on 64-bit Linux"


def _raise_errno() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def fallocate(fd: int, mode: int, position: int, size_bytes: int) -> None:
    """fallocate(2). Raises OSError: ENOSPC, EOPNOTSUPP where the file system has no such thing."""
    if _libc.fallocate(fd, mode, position, size_bytes) != 0:
        _raise_errno()


def sync_file_range(fd: int, position: int, size_bytes: int) -> None:
    """Start writing back a range of the page cache. Returns before it is on disk and promises nothing about it."""
    if _libc.sync_file_range(fd, position, size_bytes, SYNC_FILE_RANGE_WRITE) != 0:
        _raise_errno()


def is_tmpfs(path: str | os.PathLike[str]) -> bool:
    """Whether the path lies on tmpfs. Raises OSError when there is no such path."""
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.statfs(os.fsencode(path), answer) != 0:
        _raise_errno()
    return int.from_bytes(answer.raw[:8], "little") == TMPFS_MAGIC


def map_ahead(fd: int, size_bytes: int) -> memoryview:
    """Map so many bytes of a file for reading, also where it is shorter: what it grows by can be read through the same
    mapping. Reading behind its end kills the process (SIGBUS), so who asks takes slices that lie before it.

    The mapping lives as long as the view or any slice of it. Raises OSError: ENOMEM, and what else mmap(2) says.
    """
    address = _libc.mmap(None, size_bytes, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address == _MAP_FAILED:
        _raise_errno()
    pages = (ctypes.c_char * size_bytes).from_address(address)
    # Not at the exit of the interpreter: a thread may still hold views then, and the kernel unmaps everything.
    weakref.finalize(pages, _libc.munmap, address, size_bytes).atexit = False
    return memoryview(pages).cast("B").toreadonly()
