"""Watching before sleeping: for how long, when not, what ends it and what brings it back. On a clock of its own."""

from __future__ import annotations

import pytest

from zbroker.shm.spin import (
    EXPECTED_NS,
    PREEMPTED_NS,
    PROBE_EVERY,
    REST_MAX_NS,
    REST_MIN_NS,
    TERM_WAITS,
    TRIAL_WAITS,
    SpinWatch,
)

STEP_NS = 1_000
SPIN_US = 100


class World:
    """Time goes on by a step with each look; something is ready at a time, and later by `waking_ns` for who sleeps."""

    def __init__(self, *, cores: int = 2, spin_us: int = SPIN_US, waking_ns: int = 70_000) -> None:
        self.waking_ns = waking_ns
        self.now_ns = 1 << 40
        self.ready_ns = 1 << 62
        self.looks = 0
        self.step_ns = STEP_NS
        self.watch = SpinWatch(spin_us, cores, clock_ns=lambda: self.now_ns)

    def is_ready(self) -> bool:
        self.looks += 1
        self.now_ns += self.step_ns
        return self.now_ns >= self.ready_ns

    def wait(self, took_ns: int) -> bool:
        """A wait that ends so long after its begin; whether it was watched to its end."""
        self.ready_ns = self.now_ns + took_ns
        found = self.watch.watch(self.is_ready)
        if not found:
            self.now_ns = max(self.now_ns, self.ready_ns) + self.waking_ns
        self.watch.note_work()
        return found

    def tried(self) -> World:
        """After the first trial."""
        for _ in range(2 * TRIAL_WAITS):
            self.wait(10_000)
        return self


@pytest.mark.parametrize(("waking_ns", "pays"), [(70_000, True), (1_000, False)], ids=["dear", "cheap"])
def test_it_watches_where_that_is_faster_than_to_sleep_and_tries_again(waking_ns: int, pays: bool) -> None:
    world = World(waking_ns=waking_ns).tried()
    assert [world.wait(10_000) for _ in range(TERM_WAITS)] == [pays] * TERM_WAITS
    world.waking_ns = 71_000 - waking_ns
    world.tried()
    assert [world.wait(10_000) for _ in range(TERM_WAITS)] == [not pays] * TERM_WAITS


def test_what_comes_soon_is_found_and_what_does_not_is_given_up() -> None:
    world = World().tried()
    assert world.wait(50_000)
    before_ns = world.now_ns
    world.ready_ns = 1 << 62
    assert not world.watch.watch(world.is_ready)
    assert SPIN_US * 1_000 <= world.now_ns - before_ns <= SPIN_US * 1_000 + 2 * STEP_NS


@pytest.mark.parametrize(("spin_us", "cores"), [(0, 8), (100, 1)], ids=["switched off", "one core"])
def test_it_never_watches_where_that_would_only_burn_a_core(spin_us: int, cores: int) -> None:
    world = World(spin_us=spin_us, cores=cores)
    assert not world.wait(10)
    assert world.looks == 0


def test_after_long_waits_it_looks_only_now_and_then_and_short_ones_bring_it_back() -> None:
    world = World().tried()
    for _ in range(20):
        world.wait(10_000_000)
    watched = 0
    for _ in range(4 * PROBE_EVERY):
        before = world.looks
        world.wait(10_000_000)
        watched += world.looks > before
    assert watched == 4
    found = [world.wait(5_000) for _ in range(2 * PROBE_EVERY)]
    assert all(found[PROBE_EVERY:])


def test_it_rests_while_somebody_else_wants_the_core_and_longer_each_time() -> None:
    world = World().tried()
    rests = []
    for _ in range(12):
        world.step_ns = PREEMPTED_NS + 1
        world.ready_ns = 1 << 62
        while True:  # until it watches again
            looks = world.looks
            began_ns = world.now_ns
            world.watch.watch(world.is_ready)
            if world.looks > looks:
                break
            world.now_ns += REST_MIN_NS // 4
        world.watch.note_work()
        looks = world.looks
        rest_from_ns = world.now_ns
        while world.looks == looks:
            world.now_ns += REST_MIN_NS // 4
            world.step_ns = STEP_NS
            world.ready_ns = world.now_ns + 2 * STEP_NS
            world.watch.watch(world.is_ready)
            world.watch.note_work()
        rests.append(world.now_ns - rest_from_ns)
        assert began_ns < rest_from_ns
    assert rests[0] < 2 * REST_MIN_NS
    assert rests[4] > 2 * rests[0]
    assert max(rests) <= REST_MAX_NS + REST_MIN_NS


def test_what_was_announced_is_watched_for_and_judged_as_part_of_the_sleep() -> None:
    world = World(waking_ns=1_000).tried()
    world.ready_ns = world.now_ns + 100_000
    assert not world.watch.watch(world.is_ready), "sleeping was found to be as fast"
    assert world.watch.watch_for_announced(world.is_ready)
    world.ready_ns = 1 << 62
    before_ns = world.now_ns
    assert not world.watch.watch_for_announced(world.is_ready)
    assert EXPECTED_NS <= world.now_ns - before_ns <= EXPECTED_NS + 2 * STEP_NS
    assert not World(cores=1).watch.watch_for_announced(lambda: True)
