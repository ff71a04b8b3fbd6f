"""Which copies are in sync: KIP-497 (who may change it), KIP-966 (who stays eligible), KIP-903 (whose word is old).

Guarantees: only the coordinator changes the set, one version after the other. A copy leaves it while a leader lives
that would go on without it: when its process is proven dead, when it is damaged, when its leader says it is behind.
While nobody leads nobody can go on, and the set stays. The last one never leaves. Who leaves a set that falls below
min.insync.replicas stays eligible: the high watermark does not move until there are as many again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from zbroker.core import cluster_events as ev
from zbroker.core import effects as do
from zbroker.core.cluster_state import ClusterState, Standing
from zbroker.core.effects import Effect
from zbroker.core.entries import AnyEntry, InSync, IsrChanged
from zbroker.core.image import Copy, Partition
from zbroker.core.journal import Journal
from zbroker.errors import (
    BrokerError,
    FencedLeaderEpochError,
    InvalidRequestError,
    InvalidUpdateVersionError,
    LeaderNotAvailableError,
    StaleIncarnationError,
    UnknownTopicOrPartitionError,
)
from zbroker.wire.inner_messages import IsrAltered
from zbroker.wire.messages import Done

UNKNOWN = 0  # in the place of an incarnation: the leader vouches for a copy that was in sync already


class Sets(NamedTuple):
    """Copies in sync, and copies that are eligible although they are not."""

    isr: list[int]
    elr: list[int]


def changed(before: Sets, isr: list[int], min_in_sync: int, barred: Collection[int] = ()) -> Sets:
    """The sets after `isr` was decided. `barred` copies have damage: they are not eligible, whatever they were."""
    if len(isr) >= min_in_sync:
        return Sets(isr, [])
    left = [one for one in (*before.isr, *before.elr) if one not in isr and one not in barred]
    return Sets(isr, list(dict.fromkeys(left)))


def sets_of(partition: Partition) -> Sets:
    """The sets as they are."""
    return Sets(partition.isr, partition.elr)


def change_of(partition: Partition, after: Sets) -> InSync | None:
    """What to write down, or None when nothing changes."""
    if sorted(after.isr) == sorted(partition.isr) and sorted(after.elr) == sorted(partition.elr):
        return None
    return InSync(partition.topic_id, partition.partition, partition.partition_epoch + 1, after.isr, after.elr)


def shrunk(state: ClusterState, partition: Partition) -> Sets:
    """The sets without copies whose processes are dead, and without damaged ones, while somebody leads."""
    barred = state.suspects.get(partition.key, set())
    gone = {copy.copy_id for copy in partition.copies if state.is_dead(copy.owner)} | barred
    gone.discard(partition.leader_copy)
    if partition.leader_copy in barred:
        gone |= {partition.leader_copy}
    isr = [one for one in partition.isr if one not in gone]
    if not isr:
        isr = [partition.leader_copy if partition.leader_copy in partition.isr else partition.isr[0]]
    return changed(sets_of(partition), isr, state.min_in_sync(partition), barred)


def elected(state: ClusterState, partition: Partition, chosen: Copy) -> Sets:
    """The sets with which a copy begins to lead: those of before, without the dead and the damaged."""
    barred = state.suspects.get(partition.key, set())
    gone = {copy.copy_id for copy in partition.copies if state.is_dead(copy.owner)} | barred
    isr = [one for one in partition.isr if one == chosen.copy_id or one not in gone]
    if chosen.copy_id not in partition.isr:
        isr = [chosen.copy_id]
    return changed(sets_of(partition), isr, state.min_in_sync(partition), barred)


class InSyncCopies:
    """Changes that processes ask for."""

    def __init__(self, state: ClusterState, journal: Journal) -> None:
        self._state = state
        self._journal = journal

    def alter(self, event: ev.IsrAlterationAsked) -> list[Effect]:
        """A leader's proposal: written down and answered, or refused. A leader that is behind gets the news."""
        try:
            partition, after = self._checked(event)
        except InvalidUpdateVersionError as error:
            found = self._state.image.partition(event.wanted.topic_id, event.wanted.partition)
            assert found is not None
            return [do.Reply(event.request, None, error.code, error.wire_text), *self._state.news([found])]
        except BrokerError as error:
            return [do.Reply(event.request, None, error.code, error.wire_text)]
        change = change_of(partition, after)
        if change is None:
            return [self._altered(event, partition)]
        # What a leader goes on without must be known after a power cut; that it waits for more copies need not be.
        is_smaller = not set(partition.isr) <= set(after.isr)
        entries: list[AnyEntry] = [IsrChanged([change])]
        return self._journal.append(
            entries,
            durable=is_smaller,
            then=lambda _: [self._altered(event, partition)],
            otherwise=lambda error, _: [do.Reply(event.request, None, error.code, error.wire_text)],
        )

    def _altered(self, event: ev.IsrAlterationAsked, partition: Partition) -> Effect:
        return do.Reply(event.request, IsrAltered(partition.partition_epoch, partition.isr, partition.elr))

    def _checked(self, event: ev.IsrAlterationAsked) -> tuple[Partition, Sets]:
        state, wanted = self._state, event.wanted
        partition = state.image.partition(wanted.topic_id, wanted.partition)
        if partition is None:
            raise UnknownTopicOrPartitionError(f"no partition {wanted.topic_id}/{wanted.partition}")
        if wanted.leader_epoch != partition.leader_epoch:
            raise FencedLeaderEpochError(f"epoch {wanted.leader_epoch}; the newest is {partition.leader_epoch}")
        if state.leadership(partition.key).standing not in (Standing.LEADING, Standing.ASKED):
            # It may be the leader all the same, and not have registered with this coordinator yet: it asks again.
            raise LeaderNotAvailableError(f"the leader of epoch {wanted.leader_epoch} has not registered")
        if wanted.partition_epoch != partition.partition_epoch:
            raise InvalidUpdateVersionError(
                f"partition epoch {wanted.partition_epoch}; it is {partition.partition_epoch} by now"
            )
        isr = list(dict.fromkeys(wanted.isr))
        if len(isr) != len(wanted.isr) or len(wanted.incarnations) != len(isr) or partition.leader_copy not in isr:
            raise InvalidRequestError("each copy once, with its process's incarnation, and the leader's among them")
        for copy_id, incarnation in zip(isr, wanted.incarnations, strict=True):
            self._check_joins(partition, copy_id, incarnation)
        ordered = [copy.copy_id for copy in partition.copies if copy.copy_id in isr]
        return partition, changed(sets_of(partition), ordered, state.min_in_sync(partition))

    def _check_joins(self, partition: Partition, copy_id: int, incarnation: int) -> None:
        copy = partition.copy(copy_id)
        if copy is None:
            raise InvalidRequestError(f"copy {copy_id} is none of {partition.topic_id}/{partition.partition}")
        if copy_id in partition.isr and incarnation == UNKNOWN:
            return
        process = self._state.live(copy.owner)
        if process is None or process.incarnation != incarnation:
            raise StaleIncarnationError(f"the process of copy {copy_id} is not the one whose log end was reported")
        if copy_id in self._state.suspects.get(partition.key, ()):
            raise StaleIncarnationError(f"copy {copy_id} is damaged, and was not fetched again since")

    def suspect(self, event: ev.CopyIsSuspect) -> list[Effect]:
        """A damaged copy: not in sync from now on, not eligible, and not the leader, where there is another."""
        state, found = self._state, event.found
        partition = state.image.partition(found.topic_id, found.partition)
        if partition is None or partition.copy(found.copy_id) is None:
            return [do.Reply(event.request, Done())]
        fields = {"topic": state.image.topics[partition.topic_id].name, "partition": partition.partition}
        state.bar(partition, found.copy_id)
        state.answers_due.append(do.Reply(event.request, Done()))
        return [do.Warn("a copy is damaged", {**fields, "copy": found.copy_id, "error": found.message})]
