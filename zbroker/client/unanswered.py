"""Requests of a client that are not answered yet, and those that never will be.

Guarantees: each request's callback is called exactly once, by `settle` or by whoever took it, unless it is forgotten.
The caller holds its lock for everything but `settle`, which calls callbacks and must be called without.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from zbroker.errors import RequestTimedOutError

OnReply = Callable[[int, list[Any]], None]


class Pending(NamedTuple):
    """A request on its way. `way` is what carries it: a lane, or None for the socket."""

    on_reply: OnReply
    deadline_ns: int
    target: int
    way: object


# Not `Pending(...)`, which is a call in Python: one is made for each request.
pending_of: Callable[[tuple[OnReply, int, int, object]], Pending] = partial(tuple.__new__, Pending)


class Unanswered:
    """See the module."""

    def __init__(self) -> None:
        self._pending: dict[int, Pending] = {}
        self.lost: deque[tuple[OnReply, int, bytes]] = deque()
        """What `settle` has to say."""
        self.add = self._pending.__setitem__
        """`add(correlation, pending)`: a request was sent."""
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
        return bool(self.lost)

    def lose(self, correlation: int, error: int, text: str) -> None:
        """A request will not be answered: `settle` says so."""
        pending = self._pending.pop(correlation, None)
        if pending is not None:
            self.lost.append((pending.on_reply, error, text.encode()))

    def lose_where(self, is_lost: Callable[[Pending], bool], error: int, text: str) -> None:
        """All such requests will not be answered."""
        for correlation in [number for number, pending in self._pending.items() if is_lost(pending)]:
            self.lose(correlation, error, text)

    def lose_late(self, now_ns: int) -> None:
        """Those whose time is over will not be answered."""
        late = "the broker did not answer in time"
        self.lose_where(lambda pending: pending.deadline_ns <= now_ns, RequestTimedOutError.code, late)

    def settle(self) -> int:
        """Call the callbacks of lost requests. Returns how many."""
        settled = 0
        while self.lost:
            call, error, text = self.lost.popleft()
            call(error, [text])
            settled += 1
        return settled

    def clear(self) -> None:
        """Give all of them up: no callback is called."""
        self._pending.clear()
        self.lost.clear()
