"""Moving copies and leaders while everything goes on.

A copy is moved by making another: the new one follows until it is in sync, leads if the old one led, and then the old
one is closed and removed. What is being moved is in the log, so a coordinator that starts anew goes on with it. A
leader that is not the preferred one hands over as soon as the preferred one is in sync, or when a person says so.

Guarantees: at no time are there fewer copies in sync than without the move; who led answers that it follows before the
next one is granted; a request is answered when all of it is done, or when its time is over: then it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct

from zbroker.clock import NS_PER_MS
from zbroker.core import effects as do
from zbroker.core.cluster_state import ClusterState, Standing
from zbroker.core.effects import Effect
from zbroker.core.elections import Elections
from zbroker.core.entries import AnyEntry, CopiesChanged, CopyPlaced
from zbroker.core.followings import Followings
from zbroker.core.image import Copy, Key, Partition
from zbroker.core.journal import Journal, Otherwise
from zbroker.core.leavings import Leavings
from zbroker.errors import LeaderNotAvailableError, RequestTimedOutError
from zbroker.wire.copy_messages import PartitionResult, PartitionResults

RETURNS_AT_ONCE_MAX: Final = 64


class _Waiting(Struct):
    """A request, the partitions that it waits for, and what became of the others."""

    request: object
    deadline_ns: int
    keys: dict[Key, tuple[str, int]]
    results: list[PartitionResult]
    is_forced: bool = False


class Moves:
    """See the module."""

    def __init__(
        self, state: ClusterState, journal: Journal, elections: Elections, followings: Followings, leavings: Leavings
    ) -> None:
        self._state = state
        self._journal = journal
        self._elections = elections
        self._followings = followings
        self._leavings = leavings
        self._waiting: list[_Waiting] = []
        self._returned_ns = 0
        self._away: tuple[int, list[Partition]] = (-1, [])  # of a version of the image
        self._leaderless: set[Key] = set()

    def wait(
        self,
        request: object,
        deadline_ns: int,
        keys: dict[Key, tuple[str, int]],
        results: list[PartitionResult],
        *,
        is_forced: bool = False,
    ) -> None:
        """Answer a request when nothing of `keys` is under way any more; `results` are there already."""
        self._waiting.append(_Waiting(request, deadline_ns, keys, results, is_forced))

    def ticked(self, now_ns: int) -> list[Effect]:
        """Go on with what is being moved; now and then, send leaders back."""
        interval_ms = self._state.config.coordinator.preferred_leader_interval_ms
        if interval_ms and now_ns - self._returned_ns >= interval_ms * NS_PER_MS:
            self._returned_ns = now_ns
            self._return_leaders()
            self._force_leaders(now_ns)
        return self._step()

    def _return_leaders(self) -> None:
        count = 0
        image = self._state.image
        if self._away[0] != image.version:
            # Of thousands, all but a few lead where they should: one comparison each for them.
            away = [one for one in image.partitions() if one.leader_copy != one.copies[0].copy_id]
            self._away = (image.version, away)
        for partition in self._away[1]:
            if count >= RETURNS_AT_ONCE_MAX:
                return
            if partition.copy_id not in partition.removing and self.can_lead(partition, partition.copies[0]):
                self.hand_over(partition, partition.copies[0])
                count += 1

    def _force_leaders(self, now_ns: int) -> None:
        """Where the topic allows it: any copy leads when those that may have been away for a whole interval."""
        state, still = self._state, set[Key]()
        if state.are_all_led():
            self._leaderless = still
            return
        for partition in state.image.partitions():
            key = partition.key
            if state.leadership(key).standing is not Standing.VACANT or key in state.surveys:
                continue
            config = state.topic_config(state.image.topics[partition.topic_id])
            is_lost = not any(state.live(copy.owner) for copy in partition.candidates)
            if config.unclean_leader_election_enable and is_lost and state.live_owners(partition):
                still.add(key)
                if key in self._leaderless:
                    self._elections.force(partition, now_ns)
        self._leaderless = still

    def can_lead(self, partition: Partition, copy: Copy) -> bool:
        """Whether a copy could take over now."""
        is_led = self._state.leadership(partition.key).standing is Standing.LEADING
        return is_led and copy.copy_id in partition.isr and self._followings.is_following(partition, copy)

    def hand_over(self, partition: Partition, copy: Copy) -> None:
        """Have a copy lead in the place of the one that does, when the event is dealt with."""
        self._state.handovers[partition.key] = copy.copy_id
        self._state.want_election(partition.key)

    def _step(self) -> list[Effect]:
        done: list[Partition] = []
        for partition in self._state.image.in_transit.values():
            if not set(partition.adding) <= set(partition.isr):
                continue
            if self._state.leadership(partition.key).standing is not Standing.LEADING:
                continue
            if partition.leader_copy in partition.removing:
                heirs = [copy for copy in partition.copies if copy.copy_id not in partition.removing]
                heir = next((copy for copy in heirs if self.can_lead(partition, copy)), None)
                if heir is not None:
                    self.hand_over(partition, heir)
            else:
                done.append(partition)
        return self._finish(done) if done else []

    def _finish(self, done: list[Partition]) -> list[Effect]:
        entries: list[AnyEntry] = []
        gone: list[tuple[Key, Copy]] = []
        for partition in done:
            kept = [placed(copy) for copy in partition.copies if copy.copy_id not in partition.removing]
            entries.append(CopiesChanged(*partition.key, partition.partition_epoch + 1, kept, [], []))
            gone += [(partition.key, copy) for copy in partition.copies if copy.copy_id in partition.removing]

        def then(_: int) -> list[Effect]:
            for key, copy in gone:
                self._state.followings.pop((key, copy.owner), None)
            return [*self._state.news(done), *self._leavings.remove(gone)]

        return self._journal.append(entries, durable=True, then=then)

    def begin(
        self, moves: Iterable[tuple[Partition, Copy, int, str]], begun: Callable[[], None], otherwise: Otherwise
    ) -> list[Effect]:
        """Begin to move copies: (partition, copy, new process, new disk). The last effect is an append.

        `begun` is called when the log has it.
        """
        entries: list[AnyEntry] = []
        moved: list[Partition] = []
        copy_id = self._state.image.next_copy_id
        for partition, source, target, disk in moves:
            copies: list[CopyPlaced] = []
            for copy in partition.copies:
                copies.append(placed(copy))
                if copy is source:
                    copies.append(CopyPlaced(copy_id, disk, target))
            epoch = partition.partition_epoch + 1
            entries.append(CopiesChanged(*partition.key, epoch, copies, [copy_id], [source.copy_id]))
            moved.append(partition)
            copy_id += 1

        def then(_: int) -> list[Effect]:
            begun()
            return [*self._state.news(moved), *self._followings.invite(moved)]

        return self._journal.append(entries, durable=True, then=then, otherwise=otherwise)

    def answer_waiting(self, now_ns: int) -> list[Effect]:
        """Answer the requests of which everything is done, and those whose time is over."""
        if not self._waiting:
            return []
        effects, still = list[Effect](), list[_Waiting]()
        for waiting in self._waiting:
            for key in [key for key in waiting.keys if self._is_done(key)]:
                waiting.results.append(PartitionResult(*waiting.keys.pop(key), 0, ""))
            if waiting.keys and now_ns < waiting.deadline_ns:
                still.append(waiting)
                continue
            effects.append(self._answer(waiting))
        self._waiting = still
        return effects

    def _answer(self, waiting: _Waiting) -> Effect:
        for key, (topic, number) in waiting.keys.items():
            error, text = RequestTimedOutError.code, "not done yet; it goes on"
            survey = self._state.surveys.get(key)
            if waiting.is_forced and survey is not None and survey.is_forced:
                # Nobody may be surprised by lost records when a process comes back some day.
                del self._state.surveys[key]
                error, text = LeaderNotAvailableError.code, "no process with a copy has answered; given up"
            waiting.results.append(PartitionResult(topic, number, error, text))
        return do.Reply(waiting.request, PartitionResults(waiting.results))

    def _is_done(self, key: Key) -> bool:
        state = self._state
        if state.image.partition(*key) is None:
            return True
        is_led = state.leadership(key).standing is Standing.LEADING
        return is_led and key not in state.image.in_transit and key not in state.handovers


def placed(copy: Copy) -> CopyPlaced:
    """A copy as the log names it."""
    return CopyPlaced(copy.copy_id, copy.disk, copy.owner, -1 if copy.home == copy.owner else copy.home)
