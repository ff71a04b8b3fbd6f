"""Which copies a leader proposes to have in sync, and for how long it takes a no for an answer."""

from __future__ import annotations

from zbroker.clock import NS_PER_MS
from zbroker.core import partition_events as ev
from zbroker.core.partition_events import Copies
from zbroker.core.progress import PROPOSE_AGAIN_AFTER_NS, REFUSED_FOR_NS, Progress
from zbroker.errors import FencedLeaderEpochError, LeaderNotAvailableError, StaleIncarnationError

LAG_MAX_NS = 5_000 * NS_PER_MS
END = 10


def progress(isr: tuple[int, ...]) -> Progress:
    """A leader, copy 1, whose log ends at 10, and copies 2 and 3."""
    return Progress(1, Copies((1, 2, 3), isr, (), 7), 0, LAG_MAX_NS, 0)


def proposed(found: Progress, now_ns: int) -> tuple[int, ...] | None:
    asked = found.proposal(1, END, now_ns)
    return None if asked is None else asked.isr


def report(found: Progress, copy_id: int, incarnation: int, now_ns: int) -> None:
    assert found.report(ev.FollowerAt(copy_id, incarnation, END, END), END, now_ns)


def with_copy_3_proposed() -> Progress:
    """Copies 1 and 2 are in sync, and copy 3, which has caught up, is proposed as well."""
    found = progress((1, 2))
    report(found, 2, 20, 0)
    report(found, 3, 30, 0)
    assert proposed(found, 0) == (1, 2, 3)
    return found


def test_a_copy_that_was_refused_is_proposed_again_because_the_coordinator_may_not_have_known_it_yet() -> None:
    found = with_copy_3_proposed()
    found.refused(ev.IsrRefused(7, StaleIncarnationError()), 0)
    for now_ns in (PROPOSE_AGAIN_AFTER_NS, REFUSED_FOR_NS - 1):
        report(found, 3, 30, now_ns)
        assert proposed(found, now_ns) is None
    report(found, 3, 30, REFUSED_FOR_NS)
    assert proposed(found, REFUSED_FOR_NS) == (1, 2, 3)


def test_the_same_is_proposed_again_to_a_coordinator_that_does_not_know_yet_who_leads() -> None:
    found = with_copy_3_proposed()
    found.refused(ev.IsrRefused(7, LeaderNotAvailableError()), 0)
    assert proposed(found, PROPOSE_AGAIN_AFTER_NS - 1) is None
    assert proposed(found, PROPOSE_AGAIN_AFTER_NS) == (1, 2, 3)


def test_what_was_proposed_under_an_epoch_that_is_over_is_proposed_again_under_the_next() -> None:
    for is_refused_first in (True, False):
        found = with_copy_3_proposed()
        if is_refused_first:
            found.refused(ev.IsrRefused(7, FencedLeaderEpochError()), 0)
            assert proposed(found, PROPOSE_AGAIN_AFTER_NS) is None, "the coordinator has news"
        found.begin_epoch(END, PROPOSE_AGAIN_AFTER_NS)  # and these change no set: the version is the same
        assert found.proposed == (1, 2, 3), "it may have been taken over, and counts until that is known"
        assert proposed(found, PROPOSE_AGAIN_AFTER_NS) == (1, 2, 3)
        if not is_refused_first:
            found.refused(ev.IsrRefused(7, FencedLeaderEpochError()), PROPOSE_AGAIN_AFTER_NS)
        found.answered(ev.IsrAnswered(8, (1, 2, 3), ()), PROPOSE_AGAIN_AFTER_NS)
        assert found.isr_size == 3
        assert proposed(found, REFUSED_FOR_NS) is None, "nothing is open any more"


def test_another_incarnation_of_a_refused_copy_is_proposed_without_delay() -> None:
    found = with_copy_3_proposed()
    found.refused(ev.IsrRefused(7, StaleIncarnationError()), 0)
    report(found, 3, 31, PROPOSE_AGAIN_AFTER_NS)
    assert proposed(found, PROPOSE_AGAIN_AFTER_NS) == (1, 2, 3)


def test_while_one_copy_is_refused_the_others_changes_go_on() -> None:
    found = progress((1,))
    report(found, 3, 30, 0)
    assert proposed(found, 0) == (1, 3)
    found.refused(ev.IsrRefused(7, StaleIncarnationError()), 0)
    report(found, 2, 20, PROPOSE_AGAIN_AFTER_NS)
    assert proposed(found, PROPOSE_AGAIN_AFTER_NS) == (1, 2)
