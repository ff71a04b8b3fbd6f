"""Who leads what: elections, the grants that follow from them, and what the elected answer.

Rules, each with its reason:
- An election is in the metadata log before its grant is sent: a forgotten leader could write beside the next one.
- A leader epoch is used once: every grant has a higher one than the grant before, but for a repetition of the same.
- Nobody is granted a partition while another may still lead it. The pidfd of the other frees it, or a reboot, or its
  answer to a newer epoch in which it follows. Silence proves nothing.
- Only a copy in sync is elected, or one that is eligible (`in_sync`): the preferred one first, then workers', then
  replicas'. After a reboot all of them are asked first how far they are (`surveys`).

Handlers only say what is due (`ClusterState.due`, `.examine`, `.handovers`); `decide` looks at all of that when an
event is dealt with, so that what one event means is written down in one append.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from zbroker.clock import NS_PER_MS
from zbroker.core import effects as do
from zbroker.core.cluster_state import LEADING, VACANT, ClusterState, Leadership, Predecessor, Standing, is_worker
from zbroker.core.effects import Effect
from zbroker.core.entries import AnyEntry, Elected, Former, InSync, IsrChanged
from zbroker.core.followings import Followings
from zbroker.core.image import Copy, Key, Partition
from zbroker.core.in_sync import Sets, change_of, elected, shrunk
from zbroker.core.journal import Journal
from zbroker.core.leavings import Leavings
from zbroker.core.surveys import Surveys
from zbroker.errors import BrokerError, FencedLeaderEpochError, InvalidRequestError
from zbroker.wire.inner_messages import GrantResult, PartitionGrant

GRANT_RETRY_MS: Final = 200
GRANT_RETRY_MAX_MS: Final = 5_000


class _Choice(Struct, frozen=True):
    """A copy to elect, and the sets that it begins with."""

    partition: Partition
    copy: Copy
    sets: Sets
    is_unclean: bool = False


class Elections:
    """See the module."""

    def __init__(self, state: ClusterState, journal: Journal, followings: Followings, leavings: Leavings) -> None:
        self._state = state
        self._journal = journal
        self._followings = followings
        self._leavings = leavings
        self._surveys = Surveys(state)

    def vacate(self, partition: Partition) -> Effect:
        """Note, and show, that nobody leads a partition."""
        self._state.set_leadership(partition.key, VACANT)
        return do.PublishLeader(*partition.key, max(partition.leader_epoch, 0), None, None)

    def lost(self, partition: Partition, *, can_read_tail: bool = True) -> Effect:
        """Its leader is dead, or acts no more. Somebody else is to be elected."""
        state, key = self._state, partition.key
        if state.leadership(key).standing is Standing.LEADING or key not in state.predecessors:
            board = state.board_of(partition.leader_number, partition.leader_incarnation)
            state.predecessors[key] = Predecessor(partition.leader_copy if can_read_tail else -1, board)
        state.want_election(key)
        return self.vacate(partition)

    def decide(self, now_ns: int) -> list[Effect]:
        """Elect, and change who is in sync, where an event made that due. The last effect may be an append."""
        state = self._state
        due, state.due = state.due, {}
        examine, state.examine = state.examine, set()
        answers, state.answers_due = state.answers_due, []
        effects: list[Effect] = []
        choices: list[_Choice] = []
        changes: list[InSync] = []
        for key in sorted({*due, *examine}):
            partition = state.image.partition(*key)
            if partition is None:
                continue
            choice = self._choice(partition, now_ns, effects) if key in due else None
            if choice is not None:
                choices.append(choice)
            elif key in examine and (change := self._shrinking(partition)) is not None:
                changes.append(change)
        if not choices and not changes:
            return effects + answers
        entries = self._entries(choices, changes, due)
        # What a first election says is known without it: a reboot makes epochs higher, and all copies are in sync.
        first = {choice.partition.key for choice in choices if choice.partition.leader_epoch < 0}

        def then(_: int) -> list[Effect]:
            return self._decided(choices, changes, first) + answers

        def otherwise(error: BrokerError, at_ns: int) -> list[Effect]:
            for choice in choices:
                state.handovers.pop(choice.partition.key, None)
                if state.leadership(choice.partition.key).standing is not Standing.LEADING:
                    self._fail(choice.partition.key, error.code, error.message, at_ns)
            state.retry_examine |= {(change.topic_id, change.partition) for change in changes}
            return answers

        return effects + self._journal.append(entries, durable=False, then=then, otherwise=otherwise)

    def _shrinking(self, partition: Partition) -> InSync | None:
        standing = self._state.leadership(partition.key).standing
        if standing in (Standing.VACANT, Standing.FAILED) and partition.key not in self._state.suspects:
            return None
        after = shrunk(self._state, partition)
        if partition.key in self._state.suspects:
            # A version of its own, even if the copy was not in sync: no proposal from before may let it in.
            return InSync(*partition.key, partition.partition_epoch + 1, after.isr, after.elr)
        return change_of(partition, after)

    def _choice(self, partition: Partition, now_ns: int, effects: list[Effect]) -> _Choice | None:
        state, key = self._state, partition.key
        standing = state.leadership(key).standing
        heir = partition.copy(state.handovers.get(key, -1))
        if standing is Standing.LEADING and heir is not None:
            can_lead = heir in partition.candidates and self._followings.is_following(partition, heir)
            if can_lead and heir.copy_id != partition.leader_copy:
                return _Choice(partition, heir, elected(state, partition, heir))
            del state.handovers[key]
            return None
        if standing is Standing.LEADING:
            return None
        live = {process.incarnation for process in state.live_owners(partition)}
        if standing in (Standing.ASKED, Standing.DEPOSING) and partition.leader_incarnation in live:
            return None
        if self._surveys.is_needed(partition):
            return self._surveyed(partition, now_ns, effects)
        chosen = self._electable(partition)
        return None if chosen is None else _Choice(partition, chosen, elected(state, partition, chosen))

    def _surveyed(self, partition: Partition, now_ns: int, effects: list[Effect]) -> _Choice | None:
        effects += self._surveys.ask(partition, now_ns)
        winner = self._surveys.winner(partition, now_ns)
        if winner is None or not self._is_free_for(partition, winner.copy):
            return None
        return _Choice(partition, winner.copy, Sets(winner.isr, []), winner.is_unclean)

    def _electable(self, partition: Partition) -> Copy | None:
        refused = self._state.refused.get(partition.key, set())
        barred = self._state.suspects.get(partition.key, set())
        found = []
        for copy in partition.candidates:
            if copy.copy_id in barred or self._state.live(copy.owner) is None or not self._is_free_for(partition, copy):
                continue
            order = (
                copy.copy_id not in partition.isr,
                copy.copy_id in refused,
                copy is not partition.copies[0],
                not is_worker(copy.owner),
            )
            found.append((order, copy))
        return min(found, key=lambda one: one[0])[1] if found else None

    def _is_free_for(self, partition: Partition, copy: Copy) -> bool:
        """Whether nobody can lead who was elected last and has not been asked to follow."""
        process = self._state.live(copy.owner)
        if process is None:
            return False
        is_it = process.incarnation == partition.leader_incarnation
        return is_it or not self._state.is_leader_alive(partition)

    def _entries(self, choices: list[_Choice], changes: list[InSync], due: dict[Key, int]) -> list[AnyEntry]:
        by_owner: dict[int, list[_Choice]] = {}
        for choice in choices:
            by_owner.setdefault(choice.copy.owner, []).append(choice)
        entries: list[AnyEntry] = [IsrChanged(changes)] if changes else []
        for number, found in by_owner.items():
            incarnation = self._state.processes[number].incarnation
            epochs, sets, formers = [], [], []
            for choice in found:
                p = choice.partition
                epochs.append((*p.key, max(p.leader_epoch, due.get(p.key, -1)) + 1))
                if (change := change_of(p, choice.sets)) is not None:
                    sets.append(change)
                alive = self._state.holders_alive(p, but=incarnation)
                formers += [Former(*p.key, one) for one in alive]
            copy_ids = [choice.copy.copy_id for choice in found]
            is_plain = all(len(choice.partition.copies) == 1 for choice in found)
            entries.append(Elected(number, incarnation, epochs, [] if is_plain else copy_ids, sets, formers))
        return entries

    def _decided(self, choices: list[_Choice], changes: list[InSync], first: set[Key]) -> list[Effect]:
        state, effects = self._state, list[Effect]()
        granted = []
        for choice in choices:
            partition, key = choice.partition, choice.partition.key
            (state.unclean.add if choice.is_unclean else state.unclean.discard)(key)
            if choice.is_unclean:
                effects.append(self._unclean(choice))
            if key not in first:
                state.undurable.add(key)
            state.suspects.pop(key, None)
            state.surveys.pop(key, None)
            if state.handovers.pop(key, None) is not None:
                effects.append(self._hand_over(partition))
            before = state.leadership(key)
            if state.holders_alive(partition, but=partition.leader_incarnation):
                state.set_leadership(key, Leadership(Standing.DEPOSING, attempts=before.attempts))
                effects += self._followings.depose(partition)
            else:
                granted.append(partition)
        shrunken = [state.image.topics[one.topic_id].partitions[one.partition] for one in changes]
        for partition in shrunken:
            state.suspects.pop(partition.key, None)
        effects += self.grant(granted) + state.news(shrunken)
        if changes or len(first) < len(choices):
            effects.append(do.SyncLog())
        return effects

    def _hand_over(self, partition: Partition) -> Effect:
        former = next(iter(partition.formers), 0)
        number = self._state.watched.get(former, -1)
        copy = partition.copy_at(number)
        board = self._state.board_of(number, former) if former else ""
        self._state.predecessors[partition.key] = Predecessor(copy.copy_id if copy is not None else -1, board)
        return self.vacate(partition)

    def _unclean(self, choice: _Choice) -> Effect:
        fields: dict[str, object] = {
            "topic": self._state.image.topics[choice.partition.topic_id].name,
            "partition": choice.partition.partition,
            "copy": choice.copy.copy_id,
            "in_sync_before": ",".join(map(str, choice.partition.isr)),
        }
        return do.Warn("UNCLEAN ELECTION: acknowledged records that this copy does not have are lost", fields)

    def grant(self, partitions: list[Partition]) -> list[Effect]:
        """Send the grants of the newest epochs."""
        for partition in partitions:
            key = partition.key
            before = self._state.leadership(key)
            self._state.set_leadership(key, Leadership(Standing.ASKED, attempts=before.attempts))
            self._state.holders.setdefault(key, set()).add(partition.leader_incarnation)
        return self._state.send((partition, partition.leader, partition.leader_number) for partition in partitions)

    def proceed(self, partitions: Iterable[Partition]) -> list[Effect]:
        """Grant what was waiting for a former leader that leads no more."""
        state, free = self._state, []
        for partition in partitions:
            if state.leadership(partition.key).standing is not Standing.DEPOSING:
                continue
            process = state.live(partition.leader_number)
            if process is None or process.incarnation != partition.leader_incarnation:
                state.want_election(partition.key)
            elif not state.holders_alive(partition, but=partition.leader_incarnation):
                free.append(partition)
        return self.grant(free)

    def _fail(self, key: Key, error: int, message: str, now_ns: int) -> None:
        attempts = self._state.leadership(key).attempts
        wait_ms = min(GRANT_RETRY_MS << min(attempts, 16), GRANT_RETRY_MAX_MS)
        failed = Leadership(Standing.FAILED, error, message, attempts + 1, now_ns + wait_ms * NS_PER_MS)
        self._state.set_leadership(key, failed)

    def answered(
        self, number: int, incarnation: int, answers: list[tuple[PartitionGrant, GrantResult | None]], now_ns: int
    ) -> list[Effect]:
        """A process leads what it was granted, cannot, or did not say; then it is asked again, with the same epochs."""
        state, effects = self._state, list[Effect]()
        again, news, led = list[Partition](), list[Partition](), list[Partition]()
        for grant, result in answers:
            key = (grant.topic_id, grant.partition)
            partition = state.image.partition(*key)
            if partition is None or partition.leader_epoch != grant.leader_epoch:
                continue
            if partition.leader_incarnation != incarnation:
                continue
            standing = state.leadership(key).standing
            if standing is Standing.LEADING:
                if result is None:
                    news.append(partition)
            elif standing is not Standing.ASKED:
                continue
            elif result is None:
                again.append(partition)
            elif result.error or (result.is_suspect and self._has_other(partition)):
                self._refused(partition, result, incarnation, now_ns)
            else:
                effects += self.lead(partition)
                led.append(partition)
                is_new = grant.is_epoch_durable == (key not in state.undurable)
                if grant.partition_epoch != partition.partition_epoch or not is_new:
                    news.append(partition)
        return effects + self._followings.invite(led) + state.news(news) + self.grant(again)

    def _has_other(self, partition: Partition) -> bool:
        return any(copy.copy_id != partition.leader_copy for copy in partition.candidates)

    def _refused(self, partition: Partition, result: GrantResult, incarnation: int, now_ns: int) -> None:
        state, key = self._state, partition.key
        if result.error != FencedLeaderEpochError.code:
            state.holders.get(key, set()).discard(incarnation)
        state.refused.setdefault(key, set()).add(partition.leader_copy)
        self._fail(key, result.error or InvalidRequestError.code, result.message or "the copy is damaged", now_ns)
        if result.is_suspect:
            state.bar(partition, partition.leader_copy)
        others = [copy for copy in partition.candidates if copy.copy_id not in state.refused[key]]
        if any(state.live(copy.owner) for copy in others):
            state.want_election(key)

    def lead(self, partition: Partition) -> list[Effect]:
        """Its leader leads, and is shown."""
        key = partition.key
        self._state.set_leadership(key, LEADING)
        self._state.holders[key] = {partition.leader_incarnation}
        self._state.predecessors.pop(key, None)
        self._state.refused.pop(key, None)
        number, incarnation = partition.leader_number, partition.leader_incarnation
        leader = do.PublishLeader(*key, partition.leader_epoch, number, incarnation)
        return [leader, *self._leavings.succeeded(key)]

    def reported(self, incarnation: int, answers: list[tuple[PartitionGrant, GrantResult | None]], now_ns: int) -> None:
        """A process said how far copies are, or could not."""
        self._surveys.reported(incarnation, answers, now_ns)

    def force(self, partition: Partition, now_ns: int) -> None:
        """A person wants a leader, whatever is lost."""
        self._surveys.force(partition, now_ns)
        self._state.want_election(partition.key)

    def synced(self) -> list[Effect]:
        """Everything that was appended is on the disk: leaders whose election is may say so."""
        keys, self._state.undurable = sorted(self._state.undurable), set()
        found = [self._state.image.partition(*key) for key in keys]
        return self._state.news(partition for partition in found if partition is not None)

    def retry(self, now_ns: int) -> None:
        """What failed is due again when its wait is over; so is what waits for reports."""
        state = self._state
        for key in [*state.failed, *state.surveys]:
            if state.leadership(key).retry_ns <= now_ns:
                state.want_election(key)
        state.examine |= state.retry_examine
        state.retry_examine = set()
