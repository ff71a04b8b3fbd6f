"""What becomes of open producers when their process ends or forks.

At exit what is queued is delivered, for a bounded time, and what is left is counted in a ResourceWarning. A forked
child has its parent's objects but not its threads, and perhaps a lock that nobody will release: there a producer loses
its topics, so that its next use goes the way that raises ForkError, and no lock is taken.
"""

from __future__ import annotations

import atexit
import os
import warnings
import weakref
from typing import Any, Final

EXIT_FLUSH_MS: Final = 2_000

_open_producers: weakref.WeakSet[Any] = weakref.WeakSet()


def note_open(producer: Any) -> None:
    """Look after this producer until `note_closed`."""
    _open_producers.add(producer)


def note_closed(producer: Any) -> None:
    """It needs nothing any more."""
    _open_producers.discard(producer)


def _flush_at_exit() -> None:
    for producer in list(_open_producers):
        if not producer.unanswered_records():
            continue
        producer.close(timeout_ms=EXIT_FLUSH_MS)
        left = producer.failed_at_close
        if left:
            warnings.warn(f"{left} records were not delivered before exit: call close()", ResourceWarning, stacklevel=1)


def _disarm_in_child() -> None:
    for producer in list(_open_producers):
        producer.disarm_in_child()
    _open_producers.clear()


atexit.register(_flush_at_exit)
os.register_at_fork(after_in_child=_disarm_in_child)
