"""T15: every history of three copies with few records, deaths and elections, on the real state machines.

The first searches are complete: no state that their bounds allow was left out. The others have more, and go
as far as ZBROKER_SEARCH_STATES; `zbroker soak search` lets them go on for hours.
"""

from __future__ import annotations

import os

import pytest

from tests.replication_node import Node
from tests.replication_search import Bounds, search
from tests.sim.test_replication_bugs import AcksBeforeReplication, TruncatesToHighWatermark
from zbroker.core.partition import ACKS_ALL, ACKS_FSYNC

STATES_MAX = int(os.environ.get("ZBROKER_SEARCH_STATES", "1500"))
NOTHING = Bounds(acks=(ACKS_ALL,), deaths=1, ticks=0, overtakes=0)
HEAL_EVERY = 200
# Fewer states than were once counted: something cannot happen any more, and the search says less than it did.
STATES = {False: 5_895, True: 5_808}
LONG = {
    "two deaths": NOTHING._replace(deaths=2),
    "two records": NOTHING._replace(acks=(ACKS_ALL, ACKS_ALL)),
    "a record on the disk": NOTHING._replace(acks=(ACKS_FSYNC,)),
    "an overtaken message": NOTHING._replace(overtakes=1),
    "a lost message and time": NOTHING._replace(drops=1, ticks=1),
    "everything": Bounds(drops=1),
}


@pytest.mark.parametrize("has_tails", [False, True])
def test_t15_no_history_of_one_record_and_one_death_breaks_a_promise(has_tails: bool) -> None:
    found = search(NOTHING, 1_000_000, has_tails=has_tails, heal_every=HEAL_EVERY)
    assert found.is_complete, found
    assert found.seen == {"deliver", "produce", "kill", "silence", "lossy kill", "prove", "start"}
    assert found.states >= STATES[has_tails], found


@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", LONG)
def test_t15_no_longer_history_breaks_a_promise(name: str) -> None:
    found = search(LONG[name], STATES_MAX, heal_every=HEAL_EVERY)
    assert found.is_complete or found.states >= STATES_MAX, found


def test_t15_the_search_finds_the_shortest_way_to_a_bug() -> None:
    class AcksTooSoon(Node):
        partition_class = AcksBeforeReplication

    class CutsTooMuch(Node):
        follower_class = TruncatesToHighWatermark

    with pytest.raises(AssertionError, match=r"cannot be read\nafter \[\] \('produce', 0, 0\)"):
        search(NOTHING, 1_000_000, node_class=AcksTooSoon)
    with pytest.raises(AssertionError, match="which readers could see"):
        search(NOTHING, 1_000_000, node_class=CutsTooMuch)
