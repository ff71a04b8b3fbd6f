"""Who of the copies is late, by ticks that come as a worker's do."""

from __future__ import annotations

import pytest

from zbroker.clock import NS_PER_MS
from zbroker.core import partition_events as ev
from zbroker.core.partition_events import Copies
from zbroker.core.progress import Progress

OWN, OTHER = 1, 2
TICK_MS = 200


def ms_until_it_leaves(lag_max_ms: int, pause_ms: int = 0) -> int:
    """After how long a copy that says nothing any more is proposed to leave; `pause_ms`: of the leader, at first."""
    copies = Copies((OWN, OTHER), (OWN, OTHER), (), 1)
    progress = Progress(OWN, copies, 0, lag_max_ms * NS_PER_MS, 0)
    progress.report(ev.FollowerAt(OTHER, 7, 0, 0), 0, 0)
    now_ms = pause_ms
    while now_ms < 100 * lag_max_ms:
        progress.pass_time(10, now_ms * NS_PER_MS)
        found = progress.proposal(1, 0, now_ms * NS_PER_MS)
        if found is not None:
            assert found.isr == (OWN,)
            return now_ms
        now_ms += TICK_MS
    pytest.fail("it stays in sync for ever")


@pytest.mark.parametrize("lag_max_ms", [100, 200, 400, 1_000, 5_000])
def test_t23_a_silent_copy_leaves_soon_after_its_time_however_short_that_is(lag_max_ms: int) -> None:
    assert lag_max_ms < ms_until_it_leaves(lag_max_ms) <= lag_max_ms + 2 * TICK_MS


def test_t23_a_pause_of_the_leader_itself_makes_nobody_late() -> None:
    assert ms_until_it_leaves(5_000, pause_ms=60_000) > 64_000
