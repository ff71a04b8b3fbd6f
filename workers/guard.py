"""Keep the router alive under a flood: listen no further while descriptors or memory run short.

libzmq ends the whole process when an ipc listener's accept() finds no descriptor (Z1), and keeps the messages of dead
peers until they are read (Z11). So the guard stops listening early: at half of the descriptors, or above a resident
size; it listens again when both are well below. Connections that stand are served all the while.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

RSS_STOP_BYTES: Final = 256 << 20
RSS_RESUME_BYTES: Final = 160 << 20
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def resident_bytes() -> int:
    """How much memory this process has resident."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def trim_heap() -> None:
    """Give freed memory back to the kernel: glibc keeps what a burst has used."""
    ctypes.CDLL(None).malloc_trim(0)


class Guard:
    """Decides when to listen. `check` is called often; it acts only when the decision changes."""

    def __init__(self, files_max: int, stop: Callable[[], None], resume: Callable[[], None]) -> None:
        self._stop_files = files_max // 2
        self._resume_files = files_max // 4
        self._stop = stop
        self._resume = resume
        self.is_listening = True

    def check(self, files: int, resident: int) -> None:
        """Compare what is used with the bounds."""
        if self.is_listening:
            if files > self._stop_files or resident > RSS_STOP_BYTES:
                self.is_listening = False
                self._stop()
                trim_heap()
        elif files < self._resume_files and resident < RSS_RESUME_BYTES:
            self.is_listening = True
            self._resume()
        elif resident >= RSS_RESUME_BYTES:
            trim_heap()
