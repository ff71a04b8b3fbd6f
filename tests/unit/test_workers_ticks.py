"""How often the coordinator ticks, and what a copy in which nothing happens is looked at."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

from zbroker.clock import ManualClock
from zbroker.core.dedup import FOREVER_MS
from zbroker.transport.loop import Loop
from zbroker.workers.open_copy import OpenCopy
from zbroker.workers.ticks import Ticks


class Ticking:
    """Ticks on a clock that goes on by hand."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.loop = Loop(self.clock)
        self.is_calm = False
        self.at_ms: list[int] = []
        self.ticks = Ticks(self.loop, lambda: self.at_ms.append(self.now_ms), lambda: self.is_calm)

    @property
    def now_ms(self) -> int:
        return self.clock.now_ns() // 1_000_000

    def go_on_until(self, ms: int) -> None:
        while self.now_ms < ms:
            self.clock.advance(10)
            self.loop.run_once(0)


def test_calm_ticks_come_half_as_often_at_multiples_of_their_interval() -> None:
    world = Ticking()
    world.go_on_until(300)
    assert world.at_ms == [100, 200, 300]
    world.is_calm = True
    world.go_on_until(1_000)
    assert world.at_ms == [100, 200, 300, 400, 600, 800, 1_000]
    world.loop.close()


def test_whatever_happens_is_followed_by_a_tick_as_soon_as_ever() -> None:
    world = Ticking()
    world.is_calm = True
    world.go_on_until(410)
    assert world.at_ms == [100, 200, 400]
    world.ticks.busy()
    world.is_calm = False
    world.ticks.busy()
    world.go_on_until(700)
    assert world.at_ms == [100, 200, 400, 500, 600, 700], "and not twice"
    world.loop.close()


class Copy:
    """A copy of which only what is saved is real."""

    save: ClassVar[Any] = OpenCopy.save
    save_high_watermark: ClassVar[Any] = OpenCopy.save_high_watermark
    is_whole = True

    def __init__(self) -> None:
        self.saved: list[int] = []
        self.ticks = 0
        self.clock = ManualClock()
        self.high_watermark = 0
        self.log = SimpleNamespace(log_end=0, last_append_ns=0, save_high_watermark=self.saved.append)
        self.producers = SimpleNamespace(
            is_saved=True, sequences=SimpleNamespace(quiet_until_ms=FOREVER_MS), tick=self._count, save=lambda: None
        )
        self._host = SimpleNamespace(clock=self.clock)
        self._saved_high_watermark = 0
        self._settled_at = None
        self._settled_until_ms = 0

    def _count(self) -> None:
        self.ticks += 1

    def write(self, log_end: int, high_watermark: int, now_ns: int) -> None:
        self.log.log_end, self.log.last_append_ns, self.high_watermark = log_end, now_ns, high_watermark


is_settled: Any = OpenCopy.is_settled.fget  # type: ignore[attr-defined]  # a property's function


def looks(copy: Copy) -> int:
    """How many of three saves looked at the copy."""
    before = copy.ticks
    for _ in range(3):
        if not is_settled(copy):
            copy.save()
    return copy.ticks - before


def test_a_copy_in_which_nothing_happens_is_looked_at_once() -> None:
    copy = Copy()
    assert looks(copy) == 1
    copy.write(5, 5, 1)
    assert looks(copy) == 1
    assert copy.saved == [5]
    copy.write(3, 3, 1)  # cut
    copy.write(5, 5, 2)  # and written again
    assert looks(copy) == 1


def test_a_copy_is_looked_at_until_all_is_visible_and_saved_and_when_somebody_is_to_be_forgotten() -> None:
    copy = Copy()
    copy.write(5, 3, 1)
    assert looks(copy) == 3
    copy.high_watermark = 5
    assert looks(copy) == 1
    assert copy.saved == [3, 5]
    copy.producers.is_saved = False
    copy.write(6, 6, 2)
    assert looks(copy) == 3
    copy.producers.is_saved = True
    copy.producers.sequences.quiet_until_ms = copy.clock.wall_ms() + 10
    assert looks(copy) == 1
    copy.clock.advance(11)
    assert looks(copy) == 3
