"""What the C library does with memory that was given back.

A worker takes each request into memory of its own and gives that back a moment later. Left to itself, the C library
returns such pieces to the kernel, at sizes that it finds by trying, and gets them again page by page: 60 page faults
for a request of 250 KB, which take longer than copying it does.
"""

from __future__ import annotations

import ctypes
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3


def keep_freed_memory(piece_bytes: int) -> None:
    """Have pieces of up to so many bytes come from memory that stays with this process once it was used, two of them at
    the most. Does nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, piece_bytes)
        mallopt(M_TRIM_THRESHOLD, 2 * piece_bytes)
