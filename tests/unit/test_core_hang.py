"""Who hangs, by beats and by what the kernel says. T17's rules without processes."""

from __future__ import annotations

import pytest

from zbroker.clock import NS_PER_MS
from zbroker.core.hang import (
    RAN_ENOUGH_MS,
    STARVED_TIMES_MAX,
    STEP_MAX_MS,
    Beat,
    HangDetector,
    hangs,
    is_stuck,
)

STEP_MS = 50


def beat(incarnation: int = 1, beat_ns: int = 0, *, does_io: bool = False, is_starting: bool = False) -> Beat:
    return Beat(incarnation, beat_ns, does_io, is_starting)


def looks_until_late(detector: HangDetector, *, step_ms: int = STEP_MS, looks_max: int = 1_000) -> int | None:
    """After how many looks a process that never beats again is late; None: not within `looks_max`."""
    for number in range(looks_max):
        if detector.look(number * step_ms * NS_PER_MS, [beat()]):
            return number
    return None


def test_a_process_without_a_beat_is_late_after_the_timeout_and_not_before() -> None:
    looks = looks_until_late(HangDetector(1_000))
    assert looks == 1_000 // STEP_MS


def test_a_beat_makes_a_process_young_again() -> None:
    detector = HangDetector(1_000)
    for number in range(200):
        assert detector.look(number * STEP_MS * NS_PER_MS, [beat(beat_ns=number // 10)]) == []


def test_a_detector_that_stood_still_itself_does_not_count_that_time() -> None:
    detector = HangDetector(1_000)
    detector.look(0, [beat(1), beat(2)])
    stalled_ns = 3_600_000 * NS_PER_MS
    assert detector.look(stalled_ns, [beat(1), beat(2)]) == [], "an hour without a look is one step"
    late = [detector.look(stalled_ns + n * STEP_MS * NS_PER_MS, [beat(1), beat(2, n)]) for n in range(1, 30)]
    first = next(number for number, found in enumerate(late, 1) if found)
    assert first * STEP_MS >= 1_000 - STEP_MAX_MS
    assert [one.incarnation for one in late[first - 1]] == [1], "who beats again is not late"


def test_looks_as_far_apart_as_allowed_find_who_hangs_when_its_beat_is_too_old() -> None:
    detector, now_ns, last_beat_ns = HangDetector(1_000), 0, 0
    looks, late = 0, list[Beat]()
    while not late:
        if looks < 10:
            last_beat_ns = now_ns - 150 * NS_PER_MS
        late = detector.look(now_ns, [beat(beat_ns=last_beat_ns), beat(2, now_ns)])
        assert 0 < detector.next_look_ms <= STEP_MAX_MS
        looks += 1
        found_ns, now_ns = now_ns, now_ns + int(detector.next_look_ms * NS_PER_MS)
    assert found_ns - last_beat_ns == 1_000 * NS_PER_MS
    assert [one.incarnation for one in late] == [1]
    assert looks <= 10 + 1_000 // STEP_MAX_MS + 1


def test_a_beat_that_claims_to_be_older_than_the_last_look_is_not() -> None:
    detector = HangDetector(1_000)
    detector.look(0, [beat(beat_ns=1)])
    detector.look(200 * NS_PER_MS, [beat(beat_ns=-5_000 * NS_PER_MS)])
    for number in range(2, 5):
        assert detector.look(number * 200 * NS_PER_MS, [beat(beat_ns=-5_000 * NS_PER_MS)]) == []


def test_a_timeout_of_0_is_never_over() -> None:
    assert looks_until_late(HangDetector(0)) is None


def test_who_is_gone_is_forgotten_and_begins_anew() -> None:
    detector = HangDetector(1_000)
    detector.look(0, [beat()])
    detector.look(900 * NS_PER_MS, [])
    assert detector.look(1_100 * NS_PER_MS, [beat()]) == []


@pytest.mark.parametrize(
    ("found", "state", "verdict"),
    [
        (beat(), "S", True),
        (beat(), "R", True),
        (beat(), "D", False),
        (beat(), "Z", False),
        (beat(does_io=True), "S", False),
        (beat(does_io=True), "T", True),
        (beat(is_starting=True), "S", False),
        (beat(is_starting=True), "T", True),
        (beat(), "t", True),
    ],
)
def test_declared_io_and_the_kernels_waits_save_a_process_and_being_stopped_does_not(
    found: Beat, state: str, verdict: bool
) -> None:
    assert hangs(found, state) is verdict


def test_a_killed_process_is_stuck_when_no_thread_of_it_can_run() -> None:
    assert is_stuck(["D"])
    assert is_stuck(["D", "Z", "X"])
    assert not is_stuck(["D", "S"])
    assert not is_stuck(["Z"])
    assert not is_stuck([])


def test_who_could_run_and_is_not_let_is_starved_but_not_for_ever() -> None:
    detector = HangDetector(1_000)
    now_ns = 0

    def pass_ms(time_ms: int) -> None:
        nonlocal now_ns
        for _ in range(time_ms // STEP_MS):
            now_ns += STEP_MS * NS_PER_MS
            detector.look(now_ns, [beat()])

    detector.look(now_ns, [beat()])
    assert detector.silent == []
    pass_ms(2_000)
    assert detector.silent == [1]
    assert detector.silence_ms(1) == 2_000
    assert detector.is_starved(1, ["S", "R"], 0)
    assert detector.is_starved(1, ["R"], RAN_ENOUGH_MS - 1)
    assert not detector.is_starved(1, ["R"], RAN_ENOUGH_MS), "it had a core, and no turn of its loop came of it"
    assert not detector.is_starved(1, ["S", "S"], 0), "nobody keeps it from running"
    assert not detector.is_starved(1, ["T", "T"], 0)
    pass_ms(1_000 * STARVED_TIMES_MAX - 2_000)
    assert not detector.is_starved(1, ["R"], 0)
