"""A thread for calls that may wait for the disk: fdatasync, deletion, opening and recovering a copy.

Guarantees: works are done one after the other, in the order given; each `done` is called once, from the loop's thread,
with the work's result or its exception, unless the thread was closed before. The board says since when a work has been
running, so that a process whose loop is kept waiting is not taken for one that hangs. At most `WORKS_MAX` wait.

A work may only touch what its module says is safe while the loop goes on.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final

from zbroker.clock import Clock
from zbroker.transport.loop import Loop

WORKS_MAX: Final = 100_000

Done = Callable[[Any, BaseException | None], None]


class IoClock:
    """Since when the process waits for a disk, over all its threads: what the board shows."""

    def __init__(self, clock: Clock, begin: Callable[[int], None], end: Callable[[], None]) -> None:
        self._clock = clock
        self._begin = begin
        self._end = end
        self._running: dict[int, int] = {}
        self._lock = threading.Lock()

    def enter(self, who: int) -> None:
        """`who` begins."""
        with self._lock:
            self._running[who] = self._clock.now_ns()
            self._begin(min(self._running.values()))

    def leave(self, who: int) -> None:
        """`who` is done."""
        with self._lock:
            del self._running[who]
            if self._running:
                self._begin(min(self._running.values()))
            else:
                self._end()


class DiskThread:
    """See the module. The thread starts with the first work."""

    def __init__(self, loop: Loop, io_clock: IoClock, name: str) -> None:
        self._loop = loop
        self._io_clock = io_clock
        self._name = name
        self._works: SimpleQueue[tuple[Callable[[], Any], Done] | None] = SimpleQueue()
        self._results: deque[tuple[Done, Any, BaseException | None]] = deque()
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None
        self.pending_count = 0
        loop.add_reader(self._event_fd, self._deliver)

    def submit(self, work: Callable[[], Any], done: Done) -> None:
        """Have `work()` done in the thread and `done(result, error)` called in the loop afterwards."""
        assert self.pending_count < WORKS_MAX, "works for the disk have piled up"
        self.pending_count += 1
        self._works.put((work, done))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def close(self, *, timeout_s: float) -> bool:
        """Finish what was submitted and end the thread. Returns whether it ended in time.

        Results that the loop has not delivered by then are delivered here.
        """
        ended = True
        if self._thread is not None:
            self._works.put(None)
            self._thread.join(timeout_s)
            ended = not self._thread.is_alive()
        if ended:
            self._deliver()
            self._loop.remove_reader(self._event_fd)
            os.close(self._event_fd)
        return ended

    def _run(self) -> None:
        while (found := self._works.get()) is not None:
            work, done = found
            result, error = None, None
            self._io_clock.enter(id(self))
            try:
                result = work()
            except BaseException as caught:
                error = caught  # `done` gets it, and raises what it does not expect.
            finally:
                self._io_clock.leave(id(self))
            self._results.append((done, result, error))
            os.eventfd_write(self._event_fd, 1)

    def _deliver(self) -> None:
        try:
            os.eventfd_read(self._event_fd)
        except BlockingIOError:
            pass
        while self._results:
            done, result, error = self._results.popleft()
            self.pending_count -= 1
            done(result, error)
