"""P-07: members that stand still while their lag grows are reported once, and nobody else is."""

from __future__ import annotations

from zbroker.core.stalls import Change, Reading, Stalls

MS = 1_000_000
AFTER_MS = 1_000


def reading(progress: int, log_end: int, member_id: str = "m") -> Reading:
    return Reading("g", member_id, (1, 0), progress, log_end)


def told(*steps: tuple[int, Reading]) -> list[int | None]:
    """What is reported of these looks, each (ms, what is seen): for how long it stood still, None when it goes on."""
    stalls = Stalls()
    found: list[Change] = []
    for at_ms, seen in steps:
        change = stalls.see(seen, at_ms * MS, AFTER_MS)
        found += [change] if change is not None else []
    return [change.still_ms for change in found]


def test_p07_a_member_that_stands_still_while_more_is_written_is_reported_once_and_when_it_goes_on() -> None:
    steps = [(0, reading(5, 6)), (500, reading(5, 8)), (1_000, reading(5, 9)), (9_000, reading(5, 20))]
    assert told(*steps) == [1_000]
    assert told(*steps, (9_500, reading(6, 20)), (9_900, reading(6, 20))) == [1_000, None]


def test_a_member_that_moves_is_slow_and_not_stalled() -> None:
    assert told(*[(500 * step, reading(step, 100 * step)) for step in range(20)]) == []


def test_a_partition_that_nobody_writes_to_and_one_that_is_read_to_its_end_are_left_alone() -> None:
    assert told((0, reading(5, 9)), (2_000, reading(5, 9)), (4_000, reading(5, 9))) == []
    assert told((0, reading(9, 9)), (2_000, reading(9, 9)), (2_500, reading(9, 10)), (2_600, reading(10, 10))) == []


def test_another_member_begins_anew_and_nothing_is_said_of_the_one_before() -> None:
    steps = [(0, reading(5, 6)), (1_500, reading(5, 7)), (1_600, reading(5, 8, "n")), (2_000, reading(5, 9, "n"))]
    assert told(*steps) == [1_500]
    assert told(*steps, (2_700, reading(5, 10, "n"))) == [1_500, 1_100]


def test_what_nobody_reads_any_more_is_forgotten() -> None:
    stalls = Stalls()
    stalls.see(reading(5, 6), 0, AFTER_MS)
    stalls.keep(set())
    assert stalls.see(reading(5, 9), 2_000 * MS, AFTER_MS) is None
    assert stalls.see(reading(5, 10), 3_000 * MS, AFTER_MS) == Change(reading(5, 10), 1_000)
