"""When a producer's background thread receives, and when it leaves that to others."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

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
        self.waits_ms: list[float] = []
        self.asked = 0
        self._others = others

    @property
    def last_pump_ns(self) -> int:
        self.asked += 1
        return time.monotonic_ns() if self._others else max(self.pumped_ns, default=0)

    def pump(self, timeout_ms: float) -> int:
        self.pumped_ns.append(time.monotonic_ns())
        self.waits_ms.append(timeout_ms)
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


class Calm(Work):
    """Something is unacknowledged while `left` says so."""

    left = 0

    def has_work(self) -> bool:
        return self.left > 0


@pytest.fixture
def dozing(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Background, Calm, Connection]]:
    """A thread that dozes, and does not fall asleep before a test has looked."""
    monkeypatch.setattr("zbroker.client.background.DOZES_MAX", sys.maxsize)
    work, connection = Calm(), Connection(others=False)
    thread = Background(work, cast(Any, connection), linger_ms=0)
    work.left = 1
    thread.doze()  # it sleeps, and has to be woken once
    wait_until(lambda: bool(connection.pumped_ns))
    work.left = 0
    wait_until(lambda: thread.is_idle and not thread.is_asleep)
    connection.waits_ms.clear()
    yield thread, work, connection
    thread.close()


def test_work_without_haste_is_looked_after_by_a_thread_that_nobody_wakes(
    dozing: tuple[Background, Calm, Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    thread, work, connection = dozing
    work.left = 1
    thread.doze()
    wait_until(lambda: len(connection.waits_ms) >= 2)
    assert set(connection.waits_ms) == {0}, "it looked, and did not stay to wait"
    monkeypatch.undo()
    work.left = 0
    thread.doze()
    wait_until(lambda: thread.is_asleep)


def test_haste_ends_a_doze(dozing: tuple[Background, Calm, Connection]) -> None:
    thread, work, connection = dozing
    work.left = 1
    thread.doze()
    wait_until(lambda: len(connection.waits_ms) >= 2)
    assert not any(connection.waits_ms)
    thread.wake()
    wait_until(lambda: any(connection.waits_ms))
    work.left = 0
    wait_until(lambda: thread.is_asleep)
