"""Requests that wait for records: the readers that sleep.

Guarantees: a wait ends once, by a passed high watermark, by its deadline, by its replacement, or because a partition of
it is not led here any more. Its order among others is that of the partition's waits. There is no timer for each wait:
`expire` looks at the nearest deadline, which a heap keeps. At most `WAITS_MAX` waits are open.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Sequence
from typing import Final

from zbroker.core import partition_events as ev
from zbroker.core.partition import State
from zbroker.errors import PolicyViolationError
from zbroker.workers.leader import Leader
from zbroker.workers.request import Route

WAITS_MAX: Final = 65_536
PARTITIONS_MAX: Final = 10_000
_STALE_DEADLINES_MAX: Final = 1_024

Watched = list[tuple[Leader, int]]


class Wait:
    """One open wait. `on_wake(wait)` is asked when something passed: True ends the wait, False goes on with it."""

    __slots__ = ("is_roused", "number", "on_end", "on_wake", "route", "watched")

    def __init__(
        self,
        number: int,
        watched: Watched,
        on_wake: Callable[[Wait], bool],
        on_end: Callable[[Wait], None],
        route: Route | None,
    ) -> None:
        self.number = number
        self.watched = watched
        self.on_wake = on_wake
        self.on_end = on_end
        self.route = route
        self.is_roused = False  # it slept and was rung ahead of what is appended now


class Waits:
    """All open waits of a process."""

    def __init__(self, rouse_max: int = 0) -> None:
        """`rouse_max`: how many may run beside this process, each on a core of its own."""
        self._rouse_max = rouse_max
        self._open: dict[int, Wait] = {}
        self._deadlines: list[tuple[int, int]] = []
        self._next_number = 1

    def __len__(self) -> int:
        return len(self._open)

    @property
    def nearest_deadline_ns(self) -> int | None:
        """When `expire` may next have something to do; it may be the time of a wait that has ended already."""
        return self._deadlines[0][0] if self._deadlines else None

    def open(
        self,
        watched: Watched,
        deadline_ns: int,
        on_wake: Callable[[Wait], bool],
        on_end: Callable[[Wait], None],
        route: Route | None = None,
    ) -> int:
        """Wait until one of `watched` has its high watermark above the offset beside it. Returns the wait's number.

        `on_wake` may be called before this returns. `on_end` is called at the deadline. Raises PolicyViolationError
        when too many waits are open. `route` is the way to who waits, when he can be roused.
        """
        if len(self._open) >= WAITS_MAX or len(watched) > PARTITIONS_MAX:
            raise PolicyViolationError(f"{len(self._open)} waits are open in this process")
        number = self._next_number
        self._next_number += 1
        wait = self._open[number] = Wait(number, watched, on_wake, on_end, route)
        heapq.heappush(self._deadlines, (deadline_ns, number))
        self._watch(wait)
        return number

    def wake(self, numbers: Sequence[int]) -> None:
        """What the waits of one partition waited for has come. Their partition has forgotten them."""
        for number in numbers:
            wait = self._open.get(number)
            if wait is None:
                continue
            if wait.on_wake(wait):
                self.close(number)
            else:
                # Where nothing has passed, the partition still has the wait.
                for index, (leader, offset) in enumerate(wait.watched):
                    if leader.high_watermark > offset:
                        wait.watched[index] = (leader, leader.high_watermark)
                        leader.handle(ev.WaitFor(wait.number, leader.high_watermark))

    def rouse(self, numbers: Collection[int], asker: Route | None) -> None:
        """A batch of one partition is about to be appended: wake who waits for it (`numbers`), or without any `asker`,
        who waits for the answer, so that they wake up meanwhile. Nobody where they would have to share cores."""
        if len(numbers) > self._rouse_max:
            return
        for number in numbers:
            wait = self._open.get(number)
            if wait is not None and wait.route is not None:
                wait.is_roused = wait.route.rouse()
        if not numbers and asker is not None and self._rouse_max:
            asker.rouse()

    def close(self, number: int) -> None:
        """End a wait without a word. An ended one stays ended."""
        wait = self._open.pop(number, None)
        if wait is None:
            return
        for leader, _ in wait.watched:
            if leader.state is not State.REVOKED:
                leader.handle(ev.StopWaiting(number))
        if len(self._deadlines) > 2 * len(self._open) + _STALE_DEADLINES_MAX:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._open]
            heapq.heapify(self._deadlines)

    def expire(self, now_ns: int) -> int:
        """End the waits whose time is over. Returns how many."""
        count = 0
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, number = heapq.heappop(self._deadlines)
            wait = self._open.get(number)
            if wait is not None:
                self.close(number)
                wait.on_end(wait)
                count += 1
        return count

    def _watch(self, wait: Wait) -> None:
        for leader, offset in wait.watched:
            if wait.number not in self._open:
                return
            leader.handle(ev.WaitFor(wait.number, offset))
