"""Giving the copies of a process that stays dead to others that live.

A process that dies is started again within milliseconds, and then leads its own copies as before. Only when it stays
dead for `ADOPTION_DELAY_MS`, or when the settings do not want it any more, do others get them. Only the map from copies
to processes changes; no byte moves. A process that merely says nothing keeps its copies: silence proves no death.

With a worker for each partition nothing is adopted: whoever could adopt it would be such a process as well.
"""

from __future__ import annotations

from typing import Final

from zbroker import ids
from zbroker.clock import NS_PER_MS
from zbroker.core.cluster_state import ClusterState, ProcessState
from zbroker.core.effects import Effect
from zbroker.core.elections import Elections
from zbroker.core.entries import Adopted, AnyEntry
from zbroker.core.image import Partition
from zbroker.core.journal import Journal
from zbroker.core.placement import choose_owners
from zbroker.errors import BrokerError

ADOPTION_DELAY_MS: Final = 10_000


class Adoption:
    """See the module."""

    def __init__(self, state: ClusterState, journal: Journal, elections: Elections) -> None:
        self._state = state
        self._journal = journal
        self._elections = elections

    def adopt(self, now_ns: int) -> list[Effect]:
        """Give orphaned copies away, and have their new owners lead them."""
        if not self._state.fixed_workers:
            return []
        orphans = self._orphans(now_ns)
        heirs = self._heirs() if orphans else []
        if not heirs:
            return []
        loads = self._state.image.owner_loads()
        copies_max = self._state.config.limits.partitions_per_process_max
        room = sum(max(0, copies_max - loads.get(number, 0)) for number in heirs)
        orphans = orphans[:room]
        given: dict[int, list[int]] = {}
        for partition, heir in zip(orphans, choose_owners(len(orphans), heirs, (), loads, copies_max), strict=True):
            given.setdefault(heir, []).append(partition.copy_id)
        if not given:
            return []
        entries: list[AnyEntry] = [Adopted(heir, copy_ids) for heir, copy_ids in given.items()]
        former = {partition.owner for partition in orphans}

        def then(at_ns: int) -> list[Effect]:
            for number in former:
                if not self._state.image.of_owner(number) and number not in self._state.wanted():
                    self._state.processes.pop(number, None)
            return self._elections.elect(orphans, at_ns)

        def otherwise(_: BrokerError, at_ns: int) -> list[Effect]:
            for number in former:
                self._state.processes[number].since_ns = at_ns
            return []

        return self._journal.append(entries, durable=True, then=then, otherwise=otherwise)

    def _orphans(self, now_ns: int) -> list[Partition]:
        state = self._state
        wanted = set(state.wanted())
        is_complete = all(state.live(number) for number in wanted)
        gone = []
        for process in state.processes.values():
            if process.state is not ProcessState.DEAD:
                continue
            is_late = now_ns - process.since_ns >= ADOPTION_DELAY_MS * NS_PER_MS
            if is_late or (is_complete and process.number not in wanted):
                gone.append(process.number)
        return [p for number in sorted(gone) for p in state.image.of_owner(number) if state.is_free(p)]

    def _heirs(self) -> list[int]:
        state = self._state
        wanted = [number for number in state.wanted() if state.live(number)]
        return wanted or sorted(number for number in state.processes if is_worker(number) and state.live(number))


def is_worker(number: int) -> bool:
    """Whether the number is a worker's: replicas, the coordinator and the router get no leadership by placement."""
    return ids.process_name(number).startswith("worker-")
