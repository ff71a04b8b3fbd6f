"""What is to go: copies of deleted topics and moved copies, which somebody may have open, and boards of the dead.

Guarantees: a copy's files are removed only when nobody can have them open: its process said that it has closed them, or
is dead. A dead process's board stays until another has published each partition that it led.
"""

from __future__ import annotations

from collections.abc import Iterable

from zbroker.core import cluster_events as ev
from zbroker.core import effects as do
from zbroker.core.cluster_state import ClusterState
from zbroker.core.effects import Effect
from zbroker.core.image import Copy, Key, Partition
from zbroker.wire.inner_messages import Register, Revocation


class Leavings:
    """See the module."""

    def __init__(self, state: ClusterState) -> None:
        self._state = state
        # Copies by the incarnation that may have them open: they go when it has closed them, or died.
        self._deletions: dict[int, dict[Key, int]] = {}
        # Dead incarnations whose boards are still read: number, and the partitions without a successor.
        self._dead_boards: dict[int, tuple[int, set[Key]]] = {}

    def close(self, partitions: Iterable[Partition]) -> list[Effect]:
        """Have the copies of deleted partitions closed and removed, by whoever may have them open."""
        effects: list[Effect] = []
        copies: list[tuple[Key, Copy]] = []
        for partition in partitions:
            key = partition.key
            self._state.forget(key)
            effects += [do.ForgetPartition(*key), *self.succeeded(key)]
            copies += [(key, copy) for copy in partition.copies]
        return effects + self.remove(copies)

    def remove(self, copies: Iterable[tuple[Key, Copy]]) -> list[Effect]:
        """Have copies closed by the processes that have them, and removed."""
        effects: list[Effect] = []
        revocations: dict[int, list[Revocation]] = {}
        for key, copy in copies:
            holders = [incarnation for incarnation, number in self._state.watched.items() if number == copy.owner]
            for incarnation in holders:
                self._deletions.setdefault(incarnation, {})[key] = copy.copy_id
                revocations.setdefault(incarnation, []).append(Revocation(*key, delete=True))
            if not holders:
                effects.append(do.DeleteCopy(copy.copy_id))
        for incarnation, found in revocations.items():
            process = self._state.live(self._state.watched[incarnation])
            if process is not None and process.incarnation == incarnation:
                effects.append(do.SendRevoke(process.number, incarnation, found))
        return effects

    def is_closing(self, key: Key, number: int) -> bool:
        """Whether a process still has to close a copy of the partition that is to go."""
        watched = self._state.watched
        return any(watched.get(one) == number and key in keys for one, keys in self._deletions.items())

    def compare(self, register: Register) -> list[Effect]:
        """Have a process that registers close what it should not have."""
        image, strangers = self._state.image, list[Revocation]()
        deletions = self._deletions.get(register.incarnation, {})
        for held in register.holding:
            key = (held.topic_id, held.partition)
            partition = image.partition(*key)
            if partition is None or partition.copy(held.copy_id) is None:
                strangers.append(Revocation(*key, delete=True))
                deletions = self._deletions.setdefault(register.incarnation, {})
                deletions[key] = held.copy_id
            elif partition.copy_at(register.number) is not partition.copy(held.copy_id):
                strangers.append(Revocation(*key, delete=False))
        for key in deletions:
            if not any((one.topic_id, one.partition) == key for one in strangers):
                strangers.append(Revocation(*key, delete=True))
        return [do.SendRevoke(register.number, register.incarnation, strangers)] if strangers else []

    def revoke_answered(self, event: ev.RevokeAnswered) -> list[Effect]:
        """A process has closed copies; or it did not say, and is asked again for as long as it lives."""
        if not event.is_done:
            process = self._state.live(event.number)
            again = process is not None and process.incarnation == event.incarnation
            return [do.SendRevoke(event.number, event.incarnation, event.revocations)] if again else []
        waiting = self._deletions.get(event.incarnation, {})
        copies = [waiting.pop((one.topic_id, one.partition), None) for one in event.revocations]
        if not waiting:
            self._deletions.pop(event.incarnation, None)
        return [do.DeleteCopy(copy_id) for copy_id in copies if copy_id is not None and self._is_free(copy_id)]

    def _is_free(self, copy_id: int) -> bool:
        return all(copy_id not in keys.values() for keys in self._deletions.values())

    def died(self, number: int, incarnation: int, led: Iterable[Partition]) -> list[Effect]:
        """A process has ended: what it had to close is closed; its board goes when its partitions have leaders."""
        copies = self._deletions.pop(incarnation, {})
        effects: list[Effect] = [do.DeleteCopy(copy_id) for copy_id in copies.values() if self._is_free(copy_id)]
        self._dead_boards[incarnation] = (number, {partition.key for partition in led})
        return effects + self._remove_boards()

    def _remove_boards(self) -> list[Effect]:
        done = [incarnation for incarnation, (_, waiting) in self._dead_boards.items() if not waiting]
        return [do.RemoveBoard(self._dead_boards.pop(incarnation)[0], incarnation) for incarnation in done]

    def succeeded(self, key: Key) -> list[Effect]:
        """A partition has a leader, or is gone."""
        if not self._dead_boards:
            return []
        for _, waiting in self._dead_boards.values():
            waiting.discard(key)
        return self._remove_boards()
