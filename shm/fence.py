"""The memory barrier that CPython does not emit.

Guarantees: every store that this thread made before `fence()` is visible to all processes before any load that it
makes after it. That is the one order that x86 does not keep by itself: a load may pass an earlier store to another
address, and 774 of 4 million adjacent pairs did. Store-then-store and load-then-load are kept by x86; on a host with
a weaker order (`WEAK_ORDER`) the writers and readers of this package put a fence between those too.

It costs about 75 ns on x86. It is called once per batch or per sleep, never per record.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading

WEAK_ORDER = platform.machine() not in ("x86_64", "AMD64", "i686")

_lock = threading.Lock()


def _fence_by_lock() -> None:
    # Taking and giving back an uncontended lock runs two LOCK-prefixed instructions, and one is a full barrier on x86.
    # `with` and not acquire() and release(): a KeyboardInterrupt between two calls would leave the lock taken for ever.
    with _lock:
        pass


_MEMBARRIER_NUMBERS = {"aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}
_MEMBARRIER_GLOBAL = 1


def _fence_by_kernel() -> None:
    if _membarrier(_MEMBARRIER_GLOBAL, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"membarrier: {os.strerror(error)}")


if WEAK_ORDER:
    _libc = ctypes.CDLL(None, use_errno=True)
    _number = _MEMBARRIER_NUMBERS.get(platform.machine())
    if _number is None:
        raise ImportError(f"zbroker has no memory barrier for {platform.machine()}: it runs on x86_64 and aarch64")

    def _membarrier(command: int, flags: int, cpu: int) -> int:
        return int(_libc.syscall(_number, command, flags, cpu))

    fence = _fence_by_kernel
else:
    fence = _fence_by_lock
