"""When the worker watches its lanes before it sleeps, and when it does not."""

from __future__ import annotations

import pytest

from zbroker.workers.spin import Spin


class Lanes:
    def __init__(self, *, after_looks: int = 0, busy: int = 1) -> None:
        self.looks = 0
        self.after_looks = after_looks
        self.busy = busy

    def has_input(self) -> bool:
        self.looks += 1
        return self.looks > self.after_looks

    def busy_count(self, since_ns: int) -> int:
        return self.busy


def test_a_request_that_comes_soon_is_found_without_sleep() -> None:
    lanes = Lanes(after_looks=3)
    assert Spin(1_000, 2, lanes).until_input()
    assert lanes.looks == 4


def test_it_gives_up_after_its_time() -> None:
    lanes = Lanes(after_looks=10**9)
    assert not Spin(50, 2, lanes).until_input()
    assert lanes.looks > 0


@pytest.mark.parametrize(
    ("spin_us", "cores", "busy"),
    [(0, 8, 1), (50, 1, 1), (50, 2, 2), (50, 2, 0)],
    ids=["switched off", "one core", "every core has a client", "nobody talks"],
)
def test_it_never_watches_where_that_would_only_burn_a_core(spin_us: int, cores: int, busy: int) -> None:
    lanes = Lanes(busy=busy)
    assert not Spin(spin_us, cores, lanes).until_input()
    assert lanes.looks == 0


def test_after_long_waits_it_stops_watching_and_tries_again_now_and_then() -> None:
    lanes = Lanes(after_looks=10**9)
    spin = Spin(1, 2, lanes)
    for _ in range(20):
        spin.until_input()
        spin._idle_since_ns -= 10**9
        spin.note_work()
    lanes.looks = 0
    watched = 0
    for _ in range(128):
        before = lanes.looks
        spin.until_input()
        watched += lanes.looks > before
    assert watched == 2


def test_short_waits_bring_it_back() -> None:
    lanes = Lanes(after_looks=10**9)
    spin = Spin(1_000, 2, lanes)
    spin._score = 0
    spin._idle_since_ns = 0
    lanes.after_looks = 0
    while not spin.until_input():
        pass
    spin.note_work()
    assert spin._score > 0
