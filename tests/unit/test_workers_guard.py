"""When the router listens: bounds, the pause in a flood, how often it looks."""

from __future__ import annotations

import pytest

from zbroker.clock import NS_PER_MS
from zbroker.workers.guard import ACCEPTS_PER_MS_MAX, FRESH_INTERVAL_MS, MIB, Guard, bounds_for

FILES_MAX = 1_000


class Doors:
    """What a guard opens and shuts."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.may_resume = True
        self.bounds = bounds_for(FILES_MAX, 1_024)
        self.now_ms = 10_000
        self.guard = Guard(
            self.bounds,
            stop=lambda why: self.said.append("stop"),
            stop_all=lambda why: self.said.append("stop all"),
            resume=self.resume,
            reset=lambda why: self.said.append("reset"),
            trim=lambda: self.said.append("trim"),
        )

    def resume(self) -> bool:
        self.said.append("resume")
        return self.may_resume

    def look(self, files: int, *, resident: int = 10 * MIB, after_ms: int = 100) -> list[str]:
        self.now_ms += after_ms
        self.said.clear()
        self.guard.check(files, resident, self.now_ms * NS_PER_MS)
        return list(self.said)


@pytest.mark.parametrize("files_max", [256, 1_024, 4_096, 20_000, 1 << 20])
def test_what_may_come_between_two_looks_fits_below_the_limit(files_max: int) -> None:
    bounds = bounds_for(files_max, 1_024)
    assert bounds.files_resume < bounds.files_stop < bounds.files_stop_all < files_max
    if files_max >= 4_096:
        assert bounds.files_stop + bounds.interval_ms * ACCEPTS_PER_MS_MAX <= files_max
    if files_max >= 25_000:
        assert bounds.interval_ms == 200  # an idle router looks five times a second


def test_it_stops_at_the_bound_and_goes_on_well_below() -> None:
    doors = Doors()
    stop, resume = doors.bounds.files_stop, doors.bounds.files_resume
    assert doors.look(stop) == []
    assert doors.look(stop + 1) == ["stop"]
    assert doors.look(stop + 1) == []
    assert doors.look(doors.bounds.files_stop_all + 1) == ["stop all"]
    assert doors.look(resume) == []
    assert doors.look(resume - 1) == ["resume"]
    assert doors.look(resume - 1) == []


def test_a_flood_makes_it_wait_longer_each_time_and_peace_makes_it_forget() -> None:
    doors = Doors()
    high, low = doors.bounds.files_stop + 1, 1
    waits = []
    assert doors.look(high) == ["stop"]
    assert doors.look(low) == ["resume"]
    for _ in range(6):
        assert doors.look(high, after_ms=1) == ["stop"]
        stopped_ms = doors.now_ms
        while doors.look(low) != ["resume"]:
            pass
        waits.append(doors.now_ms - stopped_ms)
    assert waits == [1_000, 2_000, 4_000, 8_000, 10_000, 10_000]
    assert doors.look(high, after_ms=60_000) == ["stop"]
    assert doors.look(low) == ["resume"]


def test_it_looks_often_for_a_moment_after_it_listens_again() -> None:
    doors = Doors()
    look_ms = doors.guard.next_look_ms(doors.now_ms * NS_PER_MS)
    assert look_ms == doors.bounds.interval_ms
    doors.look(doors.bounds.files_stop + 1)
    doors.look(1)
    assert doors.guard.next_look_ms(doors.now_ms * NS_PER_MS) == FRESH_INTERVAL_MS
    assert doors.guard.next_look_ms((doors.now_ms + 60) * NS_PER_MS) == doors.bounds.interval_ms


def test_a_resume_that_fails_is_tried_again() -> None:
    doors = Doors()
    doors.look(doors.bounds.files_stop + 1)
    doors.may_resume = False
    assert doors.look(1) == ["resume"]
    doors.may_resume = True
    assert doors.look(1) == ["resume"]
    assert doors.look(1) == []


def test_memory_stops_trims_and_resets() -> None:
    doors = Doors()
    assert doors.look(1, resident=100 * MIB) == ["trim"]
    assert doors.look(1, resident=300 * MIB, after_ms=1_000) == ["stop", "trim"]
    assert doors.look(1, resident=200 * MIB, after_ms=100) == []
    assert doors.look(1, resident=2_000 * MIB, after_ms=1_000) == ["reset", "trim"]
    assert doors.look(1, resident=20 * MIB, after_ms=1_000) == ["resume"]
