"""Waits of sleeping readers, over a leader that is only a state machine."""

from __future__ import annotations

import pytest

from zbroker.config.schema import TopicConfig
from zbroker.core import partition_events as ev
from zbroker.core.partition import Partition, State
from zbroker.errors import PolicyViolationError
from zbroker.workers import waits as waits_module
from zbroker.workers.waits import Wait, Waits


class Leader:
    """As much of a leader as waits touch."""

    def __init__(self, waits: Waits) -> None:
        self.core = Partition(1, 0, 0, 0, TopicConfig())
        self.waits = waits

    @property
    def high_watermark(self) -> int:
        return self.core.high_watermark

    @property
    def state(self) -> State:
        return self.core.state

    def handle(self, event: ev.Event) -> None:
        for effect in self.core.handle(event, 0):
            if isinstance(effect, ev.Wake):
                self.waits.wake(effect.waits)

    def append(self, count: int = 1) -> None:
        self.handle(ev.Appended(None, 0, self.core.log_end, self.core.log_end + count))


class Asker:
    """Notes how a wait ended."""

    def __init__(self, *, wakes_needed: int = 1) -> None:
        self.woken = 0
        self.ended = 0
        self.wakes_needed = wakes_needed

    def on_wake(self, wait: Wait) -> bool:
        self.woken += 1
        return self.woken >= self.wakes_needed

    def on_end(self, wait: Wait) -> None:
        self.ended += 1


def open_wait(waits: Waits, asker: Asker, *leaders: tuple[Leader, int], deadline_ns: int = 100) -> int:
    return waits.open(list(leaders), deadline_ns, asker.on_wake, asker.on_end)  # type: ignore[arg-type] # a stand-in


class Roused:
    """A way back that counts how often it was rung ahead."""

    def __init__(self) -> None:
        self.times = 0

    def send(self, frames: object) -> None:
        raise AssertionError("nothing is answered here")

    def rouse(self) -> bool:
        self.times += 1
        return True


@pytest.mark.parametrize(("cores_beside", "readers"), [(0, 1), (1, 1), (1, 2), (2, 2), (1, 0), (0, 0)])
def test_who_waits_for_a_batch_is_roused_where_there_is_a_core_for_each(cores_beside: int, readers: int) -> None:
    waits, asker, routes, producer = Waits(cores_beside), Asker(), [Roused() for _ in range(readers)], Roused()
    leader = Leader(waits)
    for route in routes:
        waits.open([(leader, 0)], 100, asker.on_wake, asker.on_end, route)  # type: ignore[list-item] # a stand-in
    waits.rouse(leader.core.waits, producer)
    assert [route.times for route in routes] == [int(readers <= cores_beside)] * readers
    assert producer.times == int(not readers and cores_beside > 0)
    assert (asker.woken, len(waits)) == (0, readers)


def test_a_wait_over_several_partitions_ends_by_the_first_and_leaves_the_others() -> None:
    waits, asker = Waits(), Asker()
    first, second = Leader(waits), Leader(waits)
    open_wait(waits, asker, (first, 0), (second, 0))
    second.append()
    assert (asker.woken, len(waits)) == (1, 0)
    assert first.core.wait_count == 0
    first.append()
    assert waits.expire(10**9) == 0
    assert (asker.woken, asker.ended) == (1, 0)


def test_a_wait_that_wants_more_goes_on_with_what_comes_next() -> None:
    waits, asker = Waits(), Asker(wakes_needed=3)
    leader = Leader(waits)
    open_wait(waits, asker, (leader, 0))
    leader.append()
    leader.append()
    assert (asker.woken, len(waits)) == (2, 1)
    leader.append()
    assert (asker.woken, len(waits)) == (3, 0)


def test_a_wait_ends_at_its_deadline_and_not_before() -> None:
    waits, late, early = Waits(), Asker(), Asker()
    leader = Leader(waits)
    open_wait(waits, late, (leader, 0), deadline_ns=200)
    open_wait(waits, early, (leader, 0), deadline_ns=100)
    assert waits.nearest_deadline_ns == 100
    assert waits.expire(99) == 0
    assert waits.expire(100) == 1
    assert (early.ended, late.ended) == (1, 0)
    assert leader.core.wait_count == 1


def test_a_closed_wait_hears_nothing_more() -> None:
    waits, asker = Waits(), Asker()
    leader = Leader(waits)
    number = open_wait(waits, asker, (leader, 0))
    waits.close(number)
    waits.close(number)
    leader.append()
    waits.expire(10**9)
    assert (asker.woken, asker.ended) == (0, 0)


def test_deadlines_of_ended_waits_do_not_pile_up() -> None:
    waits, asker = Waits(), Asker()
    leader = Leader(waits)
    for _ in range(10_000):
        waits.close(open_wait(waits, asker, (leader, 0)))
    assert len(waits._deadlines) < 3_000


def test_too_many_waits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits_module, "WAITS_MAX", 2)
    waits, asker = Waits(), Asker()
    leader = Leader(waits)
    for _ in range(2):
        open_wait(waits, asker, (leader, 0))
    with pytest.raises(PolicyViolationError):
        open_wait(waits, asker, (leader, 0))
