"""The Linux calls that Python's `os` does not have: fallocate, sync_file_range, and the type of a file system.

Guarantees: every call sets errno for itself alone (`use_errno`) and raises OSError with it; the GIL is free while the
kernel works. Only this file uses ctypes on libc for storage.
"""

from __future__ import annotations

import ctypes
import os
import sys
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
