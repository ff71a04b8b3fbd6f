"""Keep the router alive under a flood: listen no further while descriptors or memory run short.

libzmq ends the whole process when an ipc listener's accept() finds no descriptor, and keeps the messages of dead peers
until they are read. So the guard stops listening early: to clients at half of the descriptors or above a resident size,
to everybody at three quarters; it listens again when both are well below. Connections that stand are served all the
while.

One thing is not bounded by queue lengths: a message whose frames never end is kept by libzmq, out of sight, until its
last frame. Above a second resident size the guard has the sockets replaced, which frees all that they hold; clients
connect again by themselves and ask again.

It decides and counts; what stopping means is the caller's.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
import termios
from array import array
from collections.abc import Callable
from typing import Final, NamedTuple

from zbroker.clock import NS_PER_MS

MIB: Final = 1 << 20
TRIM_INTERVAL_NS: Final = 500 * NS_PER_MS
RESET_INTERVAL_NS: Final = 1_000 * NS_PER_MS
"""What a replaced socket held is freed by another thread, some time later."""
ACCEPTS_PER_MS_MAX: Final = 100
"""More than one I/O thread has been seen to accept: what may come between two looks."""
INTERVAL_MIN_MS: Final = 10
INTERVAL_MAX_MS: Final = 200
FEW_FILES: Final = 4096
FRESH_NS: Final = 50 * NS_PER_MS
FRESH_INTERVAL_MS: Final = 1
"""For a moment after it listens again, whoever waited comes at once."""
QUICK_NS: Final = 200 * NS_PER_MS
RESUME_WAIT_MIN_NS: Final = 1_000 * NS_PER_MS
RESUME_WAIT_MAX_NS: Final = 10_000 * NS_PER_MS
"""When a flood ends listening within `QUICK_NS`, the next try waits, twice as long each time."""
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_SELF_FD: Final = "/proc/self/fd"
_SELF_STATM: Final = "/proc/self/statm"
_STATM_BYTES_MAX: Final = 256


class Bounds(NamedTuple):
    """What a router may use. Below `resident_trim_bytes` memory is left alone."""

    files_stop: int
    files_stop_all: int
    files_resume: int
    files_max: int
    resident_stop_bytes: int = 256 * MIB
    resident_resume_bytes: int = 160 * MIB
    resident_reset_bytes: int = 1024 * MIB
    resident_trim_bytes: int = 56 * MIB

    @property
    def interval_ms(self) -> int:
        """How often to look, so that a flood cannot use up what lies between `files_stop` and the limit."""
        return max(INTERVAL_MIN_MS, min(INTERVAL_MAX_MS, (self.files_max - self.files_stop) // ACCEPTS_PER_MS_MAX))


def bounds_for(files_max: int, connections_max: int) -> Bounds:
    """The bounds of a process that may open `files_max` files: half of them to stop, a quarter to go on; of few, where
    what comes between two looks is much, half of that.

    Connections beyond twice the allowed number are refused by their first message; that many are not even accepted.
    """
    stop = min(files_max // (2 if files_max >= FEW_FILES else 4), 2 * connections_max + 256)
    return Bounds(stop, stop + stop // 2, stop // 2, files_max)


def open_files() -> int:
    """How many descriptors this process has."""
    # Linux gives the number as the directory's size since 6.2; before, one counts.
    return os.stat(_SELF_FD).st_size or len(os.listdir(_SELF_FD))


def has_unread_bytes() -> bool:
    """Whether a connection of this process holds anything that no thread of it has read yet."""
    unread_bytes = array("i", [0])
    for name in os.listdir(_SELF_FD):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                fcntl.ioctl(int(name), termios.FIONREAD, unread_bytes)
        except OSError:
            continue  # it listens, or was closed meanwhile
        if unread_bytes[0]:
            return True
    return False


def resident_bytes() -> int:
    """How much memory this process has resident."""
    # By descriptor: it is asked for some times a second for ever, and a Path costs five times as much.
    fd = os.open(_SELF_STATM, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, _STATM_BYTES_MAX).split()[1]) * _PAGE_BYTES
    finally:
        os.close(fd)


def trim_heap() -> None:
    """Give freed memory back to the kernel: glibc keeps what a burst has used. Other C libraries are left alone."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


class Guard:
    """Decides when to listen. `check` is called often; it acts only when the decision changes."""

    def __init__(
        self,
        bounds: Bounds,
        *,
        stop: Callable[[str], None],
        stop_all: Callable[[str], None],
        resume: Callable[[], bool],
        reset: Callable[[str], None],
        trim: Callable[[], None] = trim_heap,
    ) -> None:
        """`stop(why)` shall end listening to clients, `stop_all(why)` to processes too; `resume` begin it, or return
        False to be called again; `reset(why)` replace the clients' sockets, and not listen."""
        self._bounds = bounds
        self._stop = stop
        self._stop_all = stop_all
        self._resume = resume
        self._reset = reset
        self._trim = trim
        self._next_trim_ns = 0
        self._next_reset_ns = 0
        self._resumed_ns = 0
        self._resume_wait_ns = 0
        self._resume_from_ns = 0
        self.is_listening = True
        self._is_shut = False
        self.files = 0

    def check(self, files: int, resident: int, now_ns: int) -> None:
        """Compare what is used with the bounds."""
        bounds = self._bounds
        self.files = files
        if resident > bounds.resident_reset_bytes and now_ns >= self._next_reset_ns:
            self._next_reset_ns = now_ns + RESET_INTERVAL_NS
            self.is_listening = False
            self._reset(f"{resident // MIB} MiB resident")
        elif self.is_listening and files > bounds.files_stop:
            self._end_listening(f"{files} descriptors open", now_ns)
        elif self.is_listening and resident > bounds.resident_stop_bytes:
            self._end_listening(f"{resident // MIB} MiB resident", now_ns)
        elif not self.is_listening and files > bounds.files_stop_all and not self._is_shut:
            self._is_shut = True
            self._stop_all(f"{files} descriptors open")
        elif not self.is_listening and self._may_resume(files, resident, now_ns):
            self.is_listening = self._resume()
            self._is_shut = self._is_shut and not self.is_listening
            self._resumed_ns = now_ns
        if resident > bounds.resident_trim_bytes and now_ns >= self._next_trim_ns:
            self._next_trim_ns = now_ns + TRIM_INTERVAL_NS
            self._trim()

    def _end_listening(self, why: str, now_ns: int) -> None:
        self.is_listening = False
        if self._resumed_ns and now_ns - self._resumed_ns < QUICK_NS:
            self._resume_wait_ns = min(RESUME_WAIT_MAX_NS, max(RESUME_WAIT_MIN_NS, 2 * self._resume_wait_ns))
        else:
            self._resume_wait_ns = 0
        self._resume_from_ns = now_ns + self._resume_wait_ns
        self._stop(why)

    def _may_resume(self, files: int, resident: int, now_ns: int) -> bool:
        bounds = self._bounds
        is_low = files < bounds.files_resume and resident < bounds.resident_resume_bytes
        return is_low and now_ns >= self._resume_from_ns

    def next_look_ms(self, now_ns: int) -> int:
        """When to look again."""
        is_fresh = self._resumed_ns and self.is_listening and now_ns - self._resumed_ns < FRESH_NS
        return FRESH_INTERVAL_MS if is_fresh else self._bounds.interval_ms
