"""Giving the copies of a process that stays dead to others that live.

A process that dies is started again within milliseconds, and then leads its own copies as before. Only when it stays
dead for `ADOPTION_DELAY_MS`, or when the settings do not want it any more, do others get them. Only the map from copies
to processes changes; no byte moves. A process that merely says nothing keeps its copies: silence proves no death.

A copy is adopted where no other can lead, and never by a process that has a copy of the same partition.

With a worker for each partition nothing is adopted: whoever could adopt it would be such a process as well.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from zbroker.clock import NS_PER_MS
from zbroker.core.cluster_state import ClusterState, Process, ProcessState, is_worker
from zbroker.core.effects import Effect
from zbroker.core.entries import Adopted, AnyEntry
from zbroker.core.image import Copy, Partition
from zbroker.core.journal import Journal
from zbroker.errors import BrokerError

ADOPTION_DELAY_MS: Final = 10_000


class Adoption:
    """See the module."""

    def __init__(self, state: ClusterState, journal: Journal) -> None:
        self._state = state
        self._journal = journal

    def adopt(self, now_ns: int) -> list[Effect]:
        """Give orphaned copies away, and have their new owners lead them."""
        state = self._state
        dead = [process for process in state.processes.values() if process.state is ProcessState.DEAD]
        if not state.fixed_workers or not dead:
            return []
        orphans = self._orphans(sorted(dead, key=lambda one: one.number), now_ns)
        heirs = self._heirs() if orphans else []
        loads = Counter(dict(state.image.owner_loads()))
        given: dict[int, list[int]] = {}
        adopted: list[Partition] = []
        former: set[int] = set()
        for partition, copy in orphans:
            heir = self._heir(partition, heirs, loads)
            if heir is not None:
                given.setdefault(heir, []).append(copy.copy_id)
                loads[heir] += 1
                adopted.append(partition)
                former.add(copy.owner)
        if not given:
            return []
        entries: list[AnyEntry] = [Adopted(heir, copy_ids) for heir, copy_ids in given.items()]

        def then(_: int) -> list[Effect]:
            kept = (*state.wanted(), *state.replicas())
            for number in former:
                if not state.image.of_owner(number) and number not in kept:
                    state.processes.pop(number, None)
            for partition in adopted:
                state.want_election(partition.key)
            return []

        def otherwise(_: BrokerError, at_ns: int) -> list[Effect]:
            for number in former:
                state.processes[number].since_ns = at_ns
            return []

        return self._journal.append(entries, durable=True, then=then, otherwise=otherwise)

    def _orphans(self, dead: list[Process], now_ns: int) -> list[tuple[Partition, Copy]]:
        state = self._state
        wanted = {*state.wanted(), *state.replicas()}
        is_complete = all(state.live(number) for number in wanted)
        found = []
        for process in dead:
            is_late = now_ns - process.since_ns >= ADOPTION_DELAY_MS * NS_PER_MS
            is_gone = is_complete and process.number not in wanted
            if not is_late and not is_gone:
                continue
            for partition in state.image.of_owner(process.number):
                copy = partition.copy_at(process.number)
                if copy is not None and self._is_free(partition) and (is_gone or self._is_missed(partition, copy)):
                    found.append((partition, copy))
        return found

    def _is_free(self, partition: Partition) -> bool:
        return not self._state.holders_alive(partition) or len(partition.copies) > 1

    def _is_missed(self, partition: Partition, copy: Copy) -> bool:
        """Whether a copy could lead, and nobody else can."""
        eligible = {*partition.isr, *partition.elr}
        return copy.copy_id in eligible and not any(self._state.live(one.owner) for one in partition.candidates)

    def _heirs(self) -> list[int]:
        state = self._state
        wanted = [number for number in state.wanted() if state.live(number)]
        return wanted or sorted(number for number in state.processes if is_worker(number) and state.live(number))

    def _heir(self, partition: Partition, heirs: list[int], loads: Counter[int]) -> int | None:
        """The process with the fewest copies, and with none of this partition."""
        copies_max = self._state.config.limits.partitions_per_process_max
        free = [one for one in heirs if partition.copy_at(one) is None and loads[one] < copies_max]
        return min(free, key=lambda number: (loads[number], number), default=None)
