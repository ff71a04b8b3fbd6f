"""The one event loop of router, worker and coordinator: descriptors, zmq sockets, timers, signals.

Guarantees: callbacks run one at a time, in the thread that calls `run_once`; a signal only sets a flag and is handled
between callbacks; a timer fires at or after its time. zmq's descriptor is edge-triggered, so every socket is asked for
input before each sleep. There is no timer for each lane or partition: an idle loop wakes ten times a second.
"""

from __future__ import annotations

import heapq
import os
import select
import signal
from collections.abc import Callable
from itertools import count
from typing import Any, Protocol

from zbroker.clock import NS_PER_MS, Clock, HostClock

IDLE_MS = 100
MESSAGES_A_TURN = 64  # of one socket, before the others have theirs


class Source(Protocol):
    """A zmq socket, as the loop sees it."""

    def fileno(self) -> int:
        """Its descriptor."""

    def has_input(self) -> bool:
        """Whether it has a message."""

    def receive(self) -> list[Any] | None:
        """Its next message."""


class Timer:
    """A call at a time. `cancel` makes it do nothing."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None] | None) -> None:
        self.call = call

    def cancel(self) -> None:
        """The call will not be made."""
        self.call = None


class Loop:
    """See the module. `before_sleep` may return False to say that there is work after all: the loop does not sleep."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or HostClock()
        self._epoll = select.epoll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._sources: list[tuple[Source, Callable[[list[Any]], None]]] = []
        self._timers: list[tuple[int, int, Timer]] = []
        self._order = count()
        self._signals: dict[int, Callable[[], None]] = {}
        self._signal_pipe: tuple[int, int] | None = None
        self.before_sleep: Callable[[], bool] = lambda: True
        self.after_sleep: Callable[[], None] = lambda: None

    def add_reader(self, fd: int, call: Callable[[], None]) -> None:
        """Call when the descriptor is readable (level-triggered), a pidfd when its process has ended."""
        assert fd not in self._readers
        self._epoll.register(fd, select.EPOLLIN)
        self._readers[fd] = call

    def remove_reader(self, fd: int) -> None:
        """Forget a descriptor; it must still be open."""
        if self._readers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def add_socket(self, source: Source, on_message: Callable[[list[Any]], None]) -> None:
        """Call with each message of a socket."""
        self._sources.append((source, on_message))
        self._epoll.register(source.fileno(), select.EPOLLIN | select.EPOLLET)

    def remove_socket(self, source: Source) -> None:
        """Forget a socket; it must still be open."""
        self._sources = [entry for entry in self._sources if entry[0] is not source]
        self._epoll.unregister(source.fileno())

    def call_at(self, when_ns: int, call: Callable[[], None]) -> Timer:
        """Call once at a time of the loop's clock."""
        timer = Timer(call)
        heapq.heappush(self._timers, (when_ns, next(self._order), timer))
        return timer

    def call_after(self, delay_ms: float, call: Callable[[], None]) -> Timer:
        """Call once after a delay."""
        return self.call_at(self._clock.now_ns() + int(delay_ms * NS_PER_MS), call)

    def call_every(self, interval_ms: float, call: Callable[[], None]) -> None:
        """Call again and again for as long as the loop lives, `interval_ms` after the end of the last call."""

        def again() -> None:
            call()
            self.call_after(interval_ms, again)

        self.call_after(interval_ms, again)

    def on_signal(self, number: int, call: Callable[[], None]) -> None:
        """Call between two callbacks after a signal came. Only from the main thread."""
        if self._signal_pipe is None:
            read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._signal_pipe = (read_end, write_end)
            signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
            self.add_reader(read_end, self._take_signals)
        self._signals[number] = call
        signal.signal(number, lambda *_: None)

    def _take_signals(self) -> None:
        assert self._signal_pipe is not None
        try:
            numbers = os.read(self._signal_pipe[0], 64)
        except BlockingIOError:
            return
        for number in numbers:
            call = self._signals.get(number)
            if call is not None:
                call()

    def run_once(self, timeout_ms: float = IDLE_MS) -> int:
        """One turn: every socket's messages, the timers that are due, and if there was nothing, a sleep of at most
        `timeout_ms` and what ended it. Gives the number of callbacks that were made."""
        work = self._take_messages() + self._fire_timers()
        if work:
            timeout_ms = 0
        elif self._timers:
            timeout_ms = min(timeout_ms, max(0.0, (self._timers[0][0] - self._clock.now_ns()) / NS_PER_MS))
        may_sleep = timeout_ms > 0 and self.before_sleep()
        events = self._epoll.poll(timeout_ms / 1000 if may_sleep else 0)
        if timeout_ms > 0:
            self.after_sleep()
        for fd, _ in events:
            call = self._readers.get(fd)
            if call is not None:
                call()
                work += 1
        return work

    def _take_messages(self) -> int:
        work = 0
        for source, on_message in self._sources:
            if not source.has_input():
                continue
            for _ in range(MESSAGES_A_TURN):
                message = source.receive()
                if message is None:
                    break
                on_message(message)
                work += 1
        return work

    def _fire_timers(self) -> int:
        work = 0
        timers = self._timers
        if timers:
            now_ns = self._clock.now_ns()
            while timers and timers[0][0] <= now_ns:
                call = heapq.heappop(timers)[2].call
                if call is not None:
                    call()
                    work += 1
        return work

    def close(self) -> None:
        """Give the loop's descriptors back; registered ones stay open."""
        if self._signal_pipe is not None:
            signal.set_wakeup_fd(-1)
            for fd in self._signal_pipe:
                os.close(fd)
            self._signal_pipe = None
        self._epoll.close()
