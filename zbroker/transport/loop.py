"""The one event loop of router, worker and coordinator: descriptors, zmq sockets, timers, signals.

Guarantees: callbacks run one at a time, in the thread that calls `run_once`; a signal only sets a flag and is handled
between callbacks; a timer fires at or after its time; one busy socket does not keep the others waiting. There is no
timer for each lane or partition: an idle loop wakes ten times a second.

zmq's descriptor is edge-triggered, and asking a socket for input takes longer than the rest of a turn. So a socket is
asked when its descriptor was readable, when it was used since the last answer "no", and after a sleep that nothing
ended; a turn for a lane pays for no socket.
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

IDLE_MS = 200
POLL_INTERVAL_NS = 200_000  # between two looks at the descriptors while the hook has work
MESSAGES_A_TURN = 64  # of one socket, before the others have theirs


class Source(Protocol):
    """A zmq socket, as the loop sees it."""

    needs_look: bool

    def fileno(self) -> int:
        """Its descriptor."""

    def has_input(self) -> bool:
        """Whether it has a message."""

    def receive(self) -> list[Any] | None:
        """Its next message; empty: one was thrown away."""


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
        self._sources: dict[int, tuple[Source, Callable[[list[Any]], None]]] = {}
        self._served: tuple[tuple[Source, Callable[[list[Any]], None]], ...] = ()
        self._timers: list[tuple[int, int, Timer]] = []
        self._order = count()
        self._signals: dict[int, Callable[[], None]] = {}
        self._previous_handlers: dict[int, Any] = {}
        self._signal_pipe: tuple[int, int] | None = None
        self._polled_ns = 0
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
        assert source.fileno() not in self._sources
        self._sources[source.fileno()] = (source, on_message)
        self._served = tuple(self._sources.values())
        self._epoll.register(source.fileno(), select.EPOLLIN | select.EPOLLET)

    def remove_socket(self, source: Source) -> None:
        """Forget a socket; it must still be open."""
        if self._sources.pop(source.fileno(), None) is not None:
            self._served = tuple(self._sources.values())
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
        """Call again and again for as long as the loop lives, at multiples of `interval_ms` of the clock."""

        def again() -> None:
            call()
            self.call_at_multiple(interval_ms, again)

        self.call_at_multiple(interval_ms, again)

    def call_at_multiple(self, interval_ms: float, call: Callable[[], None]) -> Timer:
        """Call once when the clock passes the next multiple of `interval_ms`.

        Timers of one interval, or of multiples of it, so share their wake-ups: an idle process sleeps longer.
        """
        now_ns, interval_ns = self._clock.now_ns(), int(interval_ms * NS_PER_MS)
        return self.call_at(now_ns - now_ns % interval_ns + interval_ns, call)

    def on_signal(self, number: int, call: Callable[[], None]) -> None:
        """Call between two callbacks after a signal came. Only from the main thread."""
        if self._signal_pipe is None:
            read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._signal_pipe = (read_end, write_end)
            signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
            self.add_reader(read_end, self._take_signals)
        previous = signal.signal(number, lambda *_: None)
        self._previous_handlers.setdefault(number, previous)
        self._signals[number] = call

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
        may_sleep = timeout_ms > 0 and not work
        if may_sleep:
            if self._timers:
                timeout_ms = min(timeout_ms, max(0.0, (self._timers[0][0] - self._clock.now_ns()) / NS_PER_MS))
            # The hook may send, and so swallow a socket's signal: look again before sleeping on it.
            has_rest = timeout_ms > 0 and self.before_sleep()
            if not has_rest and self._clock.now_ns() - self._polled_ns < POLL_INTERVAL_NS:
                self.after_sleep()
                return 0  # the caller has work: descriptors may wait a little
            may_sleep = has_rest and not any(s.needs_look for s, _ in self._served)
            events = self._epoll.poll(timeout_ms / 1000 if may_sleep else 0)
            self._polled_ns = self._clock.now_ns()
            self.after_sleep()
        else:
            events = self._epoll.poll(0)
        if not events:
            if may_sleep:
                for source, _ in self._served:
                    source.needs_look = True
            return work
        # Sockets first: their edges come once, and a reader may raise.
        calls = []
        for fd, _ in events:
            found = self._sources.get(fd)
            if found is not None:
                found[0].needs_look = True
            else:
                calls.append(fd)
        for fd in calls:
            # A callback may have removed a descriptor that comes later in this list.
            call = self._readers.get(fd)
            if call is not None:
                call()
                work += 1
        if may_sleep and not calls:
            # What was asked by a descriptor comes first, in the caller's turn: here only messages have come.
            work += self._take_messages()
        return work

    def _take_messages(self) -> int:
        work = 0
        for source, on_message in self._served:
            if not source.needs_look:
                continue
            left = MESSAGES_A_TURN
            while left and source.has_input():
                message = source.receive()
                if message:
                    on_message(message)
                left -= 1
            work += MESSAGES_A_TURN - left
        return work

    def _fire_timers(self) -> int:
        work = 0
        timers = self._timers
        if timers:
            now_ns = self._clock.now_ns()
            # Those made meanwhile have their turn next: a timer that sets itself again cannot keep the loop.
            left = len(timers)
            while left and timers and timers[0][0] <= now_ns:
                left -= 1
                call = heapq.heappop(timers)[2].call
                if call is not None:
                    call()
                    work += 1
        return work

    def close(self) -> None:
        """Give the loop's descriptors back, and signals to whom they belonged; registered descriptors stay open."""
        for number, handler in self._previous_handlers.items():
            # None: somebody who does not speak Python had it, and cannot have it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous_handlers.clear()
        if self._signal_pipe is not None:
            signal.set_wakeup_fd(-1)
            for fd in self._signal_pipe:
                os.close(fd)
            self._signal_pipe = None
        self._epoll.close()
