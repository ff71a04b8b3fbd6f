"""How many records may be given out, on a clock that moves by hand."""

from __future__ import annotations

import random

import pytest

from zbroker.client.rate_limit import RateLimit
from zbroker.client.settings import ConsumerSettings, read_settings
from zbroker.clock import ManualClock
from zbroker.errors import ConfigError


def test_a_tenth_of_a_second_comes_at_once_and_then_one_after_the_other() -> None:
    clock = ManualClock()
    rate = RateLimit(100, clock)
    assert rate.allowance() == 10
    rate.take(10)
    assert rate.allowance() == 0
    assert rate.wait_ms() == pytest.approx(10)
    clock.advance(10.001)
    assert rate.allowance() == 1
    clock.advance(60_000)
    assert rate.allowance() == 10, "what was not used is not saved up"


def test_a_batch_that_takes_more_is_waited_for() -> None:
    clock = ManualClock()
    rate = RateLimit(100, clock)
    rate.take(110)
    assert rate.allowance() == 0
    assert rate.wait_ms() == pytest.approx(1_010)
    clock.advance(1_010.001)
    assert rate.allowance() == 1


def test_less_than_one_a_second_is_still_some() -> None:
    clock = ManualClock()
    rate = RateLimit(0.5, clock)
    rate.take(rate.allowance())
    assert rate.wait_ms() == pytest.approx(2_000)
    clock.advance(2_000.001)
    assert rate.allowance() == 1


@pytest.mark.parametrize("seed", range(5))
def test_no_stretch_of_time_gives_more_than_its_share(seed: int) -> None:
    rng = random.Random(seed)
    clock = ManualClock()
    rate = RateLimit(1_000, clock)
    start_ns, taken = clock.now_ns(), 0
    for _ in range(1_000):
        clock.advance(rng.uniform(0, 5))
        count = min(rate.allowance(), rng.randrange(20))
        rate.take(count)
        taken += count
        assert taken <= 100 + (clock.now_ns() - start_ns) / 1e6 + 1, f"seed {seed}"


def test_a_limit_that_lets_nothing_through_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_records_per_s"):
        read_settings(ConsumerSettings, None, {"max_records_per_s": 0})
