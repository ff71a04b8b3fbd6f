"""What the patterns keep in memory: the ids that were seen lately, and what is unfinished."""

from __future__ import annotations

import random

import pytest

from zbroker.clock import ManualClock
from zbroker.patterns import RecentIds
from zbroker.patterns.unfinished import Unfinished


def test_s169_an_id_is_new_once_within_its_time() -> None:
    clock = ManualClock()
    recent = RecentIds(1_000, clock=clock)
    assert recent.add("a")
    clock.advance(999)
    assert not recent.add("a")
    assert recent.add("b")
    clock.advance(1)
    assert recent.add("a"), "being seen again must not make it live longer"
    assert not recent.add("b")
    assert len(recent) == 2


def test_the_oldest_id_goes_when_there_are_too_many() -> None:
    recent = RecentIds(1_000, ids_max=2, clock=ManualClock())
    assert all(recent.add(one) for one in "abc")
    assert len(recent) == 2
    assert not recent.add("b")
    assert recent.add("a")


def test_an_id_that_was_discarded_is_new_again() -> None:
    recent = RecentIds(1_000, clock=ManualClock())
    recent.add("a")
    recent.discard("a")
    recent.discard("never seen")
    assert recent.add("a")


def test_a_memory_without_room_or_time_is_refused() -> None:
    for keep_ms, ids_max in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="above 0"):
            RecentIds(keep_ms, ids_max=ids_max)


@pytest.mark.parametrize("seed", range(20))
def test_what_may_be_committed_never_passes_what_is_not_finished(seed: int) -> None:
    rng = random.Random(seed)
    unfinished = Unfinished()
    begun: list[int] = []
    done: set[int] = set()
    offset = 0
    for _ in range(500):
        if rng.random() < 0.5 or len(done) == len(begun):
            offset += rng.choice((1, 1, 1, 7))
            unfinished.begin(offset)
            begun.append(offset)
        else:
            one = rng.choice([one for one in begun if one not in done])
            unfinished.finish(one)
            done.add(one)
        prefix = [one for index, one in enumerate(begun) if set(begun[: index + 1]) <= done]
        assert unfinished.committable == (prefix[-1] + 1 if prefix else None), f"seed {seed}"
        assert len(unfinished) == len(begun) - len(done)


def test_a_log_that_was_cut_begins_anew() -> None:
    unfinished = Unfinished()
    for offset in (5, 6, 7):
        unfinished.begin(offset)
    unfinished.begin(6)
    unfinished.finish(7)
    assert len(unfinished) == 1
    unfinished.finish(6)
    assert unfinished.committable == 7
