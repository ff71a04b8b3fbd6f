"""When the worker watches its lanes before it sleeps, and when it does not."""

from __future__ import annotations

import time

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
    lanes = Lanes(after_looks=0)
    spin = Spin(1_000, 2, lanes)
    while not spin.until_input():  # it is tried first what a sleep costs
        time.sleep(0.000_1)
        spin.note_work()
    assert lanes.looks == 1


@pytest.mark.parametrize(
    ("spin_us", "cores", "busy"),
    [(0, 8, 1), (50, 1, 1), (50, 2, 2), (50, 2, 0)],
    ids=["switched off", "one core", "every core has a client", "nobody talks"],
)
def test_it_never_watches_where_that_would_only_burn_a_core(spin_us: int, cores: int, busy: int) -> None:
    lanes = Lanes(busy=busy)
    assert not Spin(spin_us, cores, lanes).until_input()
    assert lanes.looks == 0
