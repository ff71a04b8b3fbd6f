"""How far ahead of its worker a `send_many` may get."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from zbroker.client.accumulator import AHEAD_BATCHES_MAX, PACE_MS, Accumulator


class Connection:
    """Each wait sends one batch, and notes how long it might have taken."""

    def __init__(self, waiting: deque[int], *, may_wait: bool = True) -> None:
        self.may_wait = may_wait
        self.waits_ms: list[float] = []
        self._waiting = waiting

    def wait_for(self, is_done: Any, timeout_ms: float) -> bool:
        self.waits_ms.append(timeout_ms)
        while not is_done():
            self._waiting.popleft()
        return True


def paced(connection: Connection, **queue: Any) -> int:
    """Keep pace with a queue that is so. Returns when the thread says that it has looked for answers."""
    accumulator: Any = Accumulator.__new__(Accumulator)
    accumulator._connection, accumulator._delivery = connection, SimpleNamespace(tended_ns=0)
    state = {"waiting": deque(), "lane": None, "needs_leader": False, **queue}
    accumulator.keep_pace(SimpleNamespace(**state))
    return int(accumulator._delivery.tended_ns)


def test_it_waits_for_those_that_wait_and_says_so() -> None:
    waiting = deque(range(AHEAD_BATCHES_MAX + 3))
    connection = Connection(waiting)
    assert paced(connection, waiting=waiting) > 0
    assert connection.waits_ms == [PACE_MS]
    assert len(waiting) == AHEAD_BATCHES_MAX - 1


def test_it_waits_for_a_lane_that_is_full() -> None:
    outbox = deque(range(AHEAD_BATCHES_MAX))
    connection = Connection(outbox)
    paced(connection, lane=SimpleNamespace(outbox=outbox))
    assert len(outbox) == AHEAD_BATCHES_MAX - 1


@pytest.mark.parametrize(
    ("count", "needs_leader", "may_wait"),
    [(AHEAD_BATCHES_MAX - 1, False, True), (9, True, True), (9, False, False)],
)
def test_it_does_not_wait_for_few_nor_without_a_leader_nor_in_a_callback(
    count: int, needs_leader: bool, may_wait: bool
) -> None:
    waiting = deque(range(count))
    connection = Connection(waiting, may_wait=may_wait)
    assert paced(connection, waiting=waiting, needs_leader=needs_leader) == 0
    assert not connection.waits_ms
