"""Requests of a client that are not answered yet, and those that never will be.

Guarantees: each request's callback is called exactly once, by `settle` or by whoever took it, unless it is forgotten.
The caller holds its lock for everything but `settle`, which calls callbacks and must be called without.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

OnReply = Callable[[int, list[Any]], None]


class Pending(NamedTuple):
    """A request on its way. `way` is what carries it: a lane, or None for the socket."""

    on_reply: OnReply
    deadline_ns: int
    target: int
    way: object


class Unanswered:
    """See the module."""

    def __init__(self) -> None:
        self._pending: dict[int, Pending] = {}
        self._lost: deque[tuple[OnReply, int, bytes]] = deque()
        self.take = self._pending.pop
        """`take(correlation, None)`: the request that a reply belongs to, which is answered with it."""

    def __len__(self) -> int:
        return len(self._pending)

    def wants(self, correlation: int) -> bool:
        """Whether it is still of use to send a request: its sender waits, or expects no answer (0)."""
        return correlation == 0 or correlation in self._pending

    @property
    def has_lost(self) -> bool:
        """Whether `settle` has callbacks to call."""
        return bool(self._lost)

    def add(self, correlation: int, pending: Pending) -> None:
        """A request was sent."""
        self._pending[correlation] = pending

    def lose(self, correlation: int, error: int, text: str) -> None:
        """A request will not be answered: `settle` says so."""
        pending = self._pending.pop(correlation, None)
        if pending is not None:
            self._lost.append((pending.on_reply, error, text.encode()))

    def lose_where(self, is_lost: Callable[[Pending], bool], error: int, text: str) -> None:
        """All such requests will not be answered."""
        for correlation in [number for number, pending in self._pending.items() if is_lost(pending)]:
            self.lose(correlation, error, text)

    def settle(self) -> int:
        """Call the callbacks of lost requests. Returns how many."""
        settled = 0
        while self._lost:
            call, error, text = self._lost.popleft()
            call(error, [text])
            settled += 1
        return settled

    def clear(self) -> None:
        """Give all of them up: no callback is called."""
        self._pending.clear()
        self._lost.clear()
