"""The wall time that retention goes by, when the wall clock jumps. T22's rule without processes."""

from __future__ import annotations

import random

import pytest

from zbroker.clock import NS_PER_MS
from zbroker.core.settled_time import SETTLED_NS, SettledTime

HOUR_MS = 3_600_000
STEP_MS = 5_000


class Clocks:
    """Both clocks, and what the settled time is asked with."""

    def __init__(self) -> None:
        self.now_ms, self.jump_ms = 1_000_000, 0
        self.settled = SettledTime()

    def after(self, ms: int) -> int:
        """The settled time minus the true one, some time later, asked every few seconds until then."""
        for _ in range(max(1, ms // STEP_MS)):
            self.now_ms += STEP_MS
            found = self.settled.now_ms(1_700_000_000_000 + self.now_ms + self.jump_ms, self.now_ms * NS_PER_MS)
        return found - 1_700_000_000_000 - self.now_ms


def test_t22_it_is_the_wall_clock_while_that_does_not_jump() -> None:
    assert Clocks().after(3 * HOUR_MS) == 0


@pytest.mark.parametrize("jump_ms", [1_000, 59 * 60_000, 30 * 24 * HOUR_MS])
def test_t22_a_jump_forward_counts_when_it_has_lasted_an_hour(jump_ms: int) -> None:
    clocks = Clocks()
    clocks.after(HOUR_MS)
    clocks.jump_ms = jump_ms
    assert clocks.after(SETTLED_NS // NS_PER_MS - STEP_MS) == 0
    assert clocks.after(2 * STEP_MS) == jump_ms


def test_t22_a_jump_back_counts_at_once_and_its_end_an_hour_later() -> None:
    clocks = Clocks()
    clocks.after(STEP_MS)
    clocks.jump_ms = -HOUR_MS
    assert clocks.after(STEP_MS) == -HOUR_MS
    clocks.jump_ms = 0
    assert clocks.after(HOUR_MS - STEP_MS) == -HOUR_MS
    assert clocks.after(2 * STEP_MS) == 0


def test_t22_a_clock_that_jumps_to_and_fro_is_never_ahead_of_the_true_time() -> None:
    rng = random.Random(22)
    clocks = Clocks()
    clocks.after(STEP_MS)
    for _ in range(2_000):
        clocks.jump_ms = rng.choice([0, 0, rng.randint(-HOUR_MS, HOUR_MS)])
        assert clocks.after(rng.choice([STEP_MS, 60_000])) <= 0


def test_an_hour_of_questions_is_remembered_in_little() -> None:
    clocks = Clocks()
    for _ in range(5_000):
        clocks.jump_ms += 1
        clocks.after(STEP_MS)
    assert len(clocks.settled._ahead) <= SETTLED_NS // NS_PER_MS // STEP_MS + 2
