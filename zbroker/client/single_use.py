"""One thread at a time, one process, and an end: how a consumer may be used.

Guarantees: a second thread gets ConcurrentUseError and disturbs nothing; another process gets ForkError; after `close`
every use gets ClosedError, but those that `release` makes itself. `close` may be called from any thread, and from a
signal handler: what the object holds is released exactly once, by whoever leaves last, so never under the feet of a
call that is under way.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

from zbroker.errors import ClosedError, ConcurrentUseError, ForkError


class SingleUse:
    """A context manager around each use. `wake` ends a use that sleeps; `release` frees everything."""

    def __init__(self, kind: str, wake: Callable[[], None], release: Callable[[], None]) -> None:
        self._kind = kind
        self._wake = wake
        self._release = release
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a signal handler may close while a use begins or ends
        self._ended = threading.Condition(self._lock)
        self._owner = 0
        self._depth = 0
        self._is_released = False
        self._releaser = 0
        self.is_closed = False

    def check(self) -> None:
        """Raise ForkError or ClosedError where no use is possible any more."""
        if os.getpid() != self._pid:
            raise ForkError(
                f"{self._kind} created in pid {self._pid} used in pid {os.getpid()}; create one per process "
                "(gunicorn: post_fork, celery: worker_process_init)"
            )
        if self.is_closed and self._releaser != threading.get_ident():
            raise ClosedError(f"this {self._kind} is closed")

    def __enter__(self) -> None:
        self.check()
        thread = threading.get_ident()
        with self._lock:
            if self._owner not in (0, thread):
                raise ConcurrentUseError(
                    f"a {self._kind} is used by one thread at a time; wakeup() and close() alone may come from others"
                )
            self._owner = thread
            self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth:
                return
            self._owner = 0
            if not self.is_closed:
                return
            is_last = not self._is_released
            self._is_released = True
            self._ended.notify_all()
        if is_last:
            self._end()

    def close(self, timeout_s: float) -> None:
        """End all use: wake a call of another thread and wait for it, at most `timeout_s`. A second time: nothing."""
        if os.getpid() != self._pid:
            self.is_closed = True
            return
        deadline_s = time.monotonic() + timeout_s
        with self._lock:
            if self._is_released:
                return
            self.is_closed = True
            if self._depth and self._owner == threading.get_ident():
                return  # Called from inside a use, by a signal handler or a callback: its end releases.
        self._wake()
        with self._ended:
            self._ended.wait_for(lambda: self._depth == 0, max(0.0, deadline_s - time.monotonic()))
            if self._depth or self._is_released:
                return
            self._is_released = True
        self._end()

    def _end(self) -> None:
        self._releaser = threading.get_ident()
        try:
            self._release()
        finally:
            self._releaser = 0
