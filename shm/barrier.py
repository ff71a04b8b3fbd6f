"""A barrier that one side pays for both: `membarrier(2)`.

Where two processes each store a word and then load the other's, both need a fence between the two (`fence`). If one of
them does so a million times a second and the other hardly ever, the rare one can have the kernel put a full barrier
into every thread that runs, of every process that has registered: then the frequent one needs none of its own.

Guarantees: when `barrier_everywhere` has returned, every store that a registered process had made before is visible to
the caller, and every load that such a process makes afterwards sees what the caller had stored before. A thread that
does not run has passed a barrier when it was stopped. It costs 2 to 20 us, and registering 0.2 ms in a process of one
thread, up to 30 ms in one of several, once.

`is_possible` says whether the kernel can: Linux 4.16, unless a sandbox forbids the call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import threading
from pathlib import Path
from typing import Final

_NUMBERS: Final = {
    "x86_64": 324, "AMD64": 324, "i686": 375, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356,
}  # fmt: skip
_QUERY: Final = 0
_GLOBAL: Final = 1
_GLOBAL_EXPEDITED: Final = 2
_REGISTER_GLOBAL_EXPEDITED: Final = 4
_TASKS: Final = Path("/proc/self/task")

has_number: Final = platform.machine() in _NUMBERS
"""Whether this machine's number of the call is known."""

_libc = ctypes.CDLL(None, use_errno=True)
_lock = threading.Lock()


def _membarrier(command: int) -> int:
    number = _NUMBERS.get(platform.machine())
    if number is None:
        ctypes.set_errno(errno.ENOSYS)
        return -1
    return int(_libc.syscall(number, command, 0, 0))


def _do(command: int) -> None:
    if _membarrier(command) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"membarrier: {os.strerror(error)}")


def _find_out() -> bool:
    commands = _membarrier(_QUERY)
    needed = _GLOBAL_EXPEDITED | _REGISTER_GLOBAL_EXPEDITED
    return commands > 0 and commands & needed == needed


is_possible: Final = _find_out()


class _Registration:
    """Whether this process passes the barriers of others. A forked one has to say so anew."""

    def __init__(self) -> None:
        self.is_done = False
        self.is_begun = False

    def register(self) -> None:
        try:
            _do(_REGISTER_GLOBAL_EXPEDITED)
        except OSError:
            return  # a sandbox that forbids just this: fences do
        self.is_done = True


_own = _Registration()


def is_registered() -> bool:
    """Whether this process passes every barrier that another one makes from now on."""
    return _own.is_done


def register() -> None:
    """Have this process pass the barriers of others: at once where it has one thread, else soon, see `is_registered`.
    Does nothing where that is not possible."""
    with _lock:
        if not is_possible or _own.is_begun:
            return
        _own.is_begun = True
    if len(list(_TASKS.iterdir())) == 1:
        _own.register()
    else:
        # The kernel waits until each of the other threads was seen: nobody is to wait with it.
        threading.Thread(target=_own.register, name="zbroker-barrier", daemon=True).start()


def barrier_everywhere() -> None:
    """See the module. Raises OSError where it is not possible."""
    _do(_GLOBAL_EXPEDITED)


def barrier_by_waiting() -> None:
    """The same for all processes, registered or not; it takes milliseconds. Raises OSError."""
    _do(_GLOBAL)


def _forked() -> None:
    global _own, _lock
    _own, _lock = _Registration(), threading.Lock()


os.register_at_fork(after_in_child=_forked)
