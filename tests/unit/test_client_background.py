"""When a producer's background thread receives, and when it leaves that to others."""

from __future__ import annotations

import time
from typing import Any

from tests.conditions import wait_until
from zbroker.client.background import STAND_BACK_NS, Background


class Work:
    """Something is always unacknowledged."""

    has_emitters = False
    waited_ns = 0

    def __init__(self, *, is_tended: bool = False) -> None:
        self.is_tended = is_tended
        self.asked = 0

    @property
    def tended_ns(self) -> int:
        self.asked += 1
        return time.monotonic_ns() if self.is_tended else 0

    def has_work(self) -> bool:
        return True

    def do_what_is_due(self) -> None:
        pass

    def until_service_ms(self) -> float:
        return 5.0


class Connection:
    """Notes when the thread received; `others` receive all the time."""

    is_closed = False

    def __init__(self, *, others: bool) -> None:
        self.pumped_ns: list[int] = []
        self.asked = 0
        self._others = others

    @property
    def last_pump_ns(self) -> int:
        self.asked += 1
        return time.monotonic_ns() if self._others else max(self.pumped_ns, default=0)

    def pump(self, timeout_ms: float) -> int:
        self.pumped_ns.append(time.monotonic_ns())
        time.sleep(0.0001)
        return 1


def background(connection: Any, work: Any = None) -> Background:
    thread = Background(work or Work(), connection, linger_ms=0)
    thread.wake()
    return thread


def test_who_receives_alone_does_not_stand_back_for_itself() -> None:
    connection = Connection(others=False)
    thread = background(connection)
    wait_until(lambda: len(connection.pumped_ns) >= 50)
    thread.close()
    between = [after - before for before, after in zip(connection.pumped_ns, connection.pumped_ns[1:], strict=False)]
    assert min(between) < STAND_BACK_NS


def test_while_another_thread_receives_this_one_does_not() -> None:
    connection = Connection(others=True)
    thread = background(connection)
    wait_until(lambda: connection.asked >= 20)
    thread.close()
    assert not connection.pumped_ns


def test_while_a_thread_that_sends_looks_for_answers_this_one_does_not() -> None:
    connection, work = Connection(others=False), Work(is_tended=True)
    thread = background(connection, work)
    wait_until(lambda: work.asked >= 20)
    assert not connection.pumped_ns
    work.is_tended = False
    wait_until(lambda: len(connection.pumped_ns) >= 2)
    thread.close()
