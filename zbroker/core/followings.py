"""Telling processes whom to follow: after a leader has answered, or when one must stop leading.

Guarantees: a process is told the newest epoch only, again until it answers, and again later when it could not. What it
answers to a newer epoch proves that it does not lead an older one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from zbroker.clock import NS_PER_MS
from zbroker.core.cluster_state import ClusterState, Following, Pursuit, Standing
from zbroker.core.effects import Effect
from zbroker.core.image import Copy, Key, Partition
from zbroker.errors import FencedLeaderEpochError
from zbroker.wire.inner_messages import GrantResult, PartitionGrant

RETRY_MS: Final = 200
RETRY_MAX_MS: Final = 5_000


class Followings:
    """See the module."""

    def __init__(self, state: ClusterState) -> None:
        self._state = state

    def invite(self, partitions: Iterable[Partition]) -> list[Effect]:
        """Have every live process with another copy follow the leaders of these partitions, if it does not yet."""
        asked = []
        for partition in partitions:
            if self._state.leadership(partition.key).standing is Standing.LEADING:
                asked += [self._ask(partition, copy) for copy in self._strays(partition)]
        return self._state.send(asked)

    def depose(self, partition: Partition) -> list[Effect]:
        """Have the live processes that may still lead an older epoch follow."""
        state = self._state
        blockers = state.holders_alive(partition, but=partition.leader_incarnation)
        asked = []
        for copy in partition.copies:
            process = state.live(copy.owner)
            if process is not None and process.incarnation in blockers and self._is_stray(partition, copy):
                asked.append(self._ask(partition, copy))
        return state.send(asked)

    def is_following(self, partition: Partition, copy: Copy) -> bool:
        """Whether a copy's process has said that it follows the newest leader."""
        found = self._state.followings.get((partition.key, copy.owner))
        process = self._state.live(copy.owner)
        return (
            found is not None
            and process is not None
            and found.pursuit is Pursuit.FOLLOWING
            and (found.incarnation, found.leader_epoch) == (process.incarnation, partition.leader_epoch)
        )

    def confirm(self, partition: Partition, number: int, incarnation: int) -> None:
        """A process has registered as a follower of the newest leader."""
        following = Following(incarnation, partition.leader_epoch, Pursuit.FOLLOWING)
        self._state.followings[partition.key, number] = following

    def _strays(self, partition: Partition) -> list[Copy]:
        return [copy for copy in partition.copies if self._is_stray(partition, copy)]

    def _is_stray(self, partition: Partition, copy: Copy) -> bool:
        process = self._state.live(copy.owner)
        if process is None or copy.copy_id == partition.leader_copy:
            return False
        found = self._state.followings.get((partition.key, copy.owner))
        wanted = (process.incarnation, partition.leader_epoch)
        return found is None or (found.incarnation, found.leader_epoch) != wanted

    def _ask(self, partition: Partition, copy: Copy, attempts: int = 0) -> tuple[Partition, Copy, int]:
        process = self._state.processes[copy.owner]
        asked = Following(process.incarnation, partition.leader_epoch, Pursuit.ASKED, attempts)
        self._state.followings[partition.key, copy.owner] = asked
        return (partition, copy, partition.leader_number)

    def answered(
        self, number: int, incarnation: int, answers: list[tuple[PartitionGrant, GrantResult | None]], now_ns: int
    ) -> list[Effect]:
        """A process follows, cannot, or did not say: then it is asked again, if it still is to follow."""
        again = []
        for grant, result in answers:
            key = (grant.topic_id, grant.partition)
            found = self._state.followings.get((key, number))
            partition = self._state.image.partition(*key)
            if found is None or partition is None or found.incarnation != incarnation:
                continue
            copy = partition.copy(grant.copy_id)
            if found.leader_epoch != grant.leader_epoch or found.pursuit is not Pursuit.ASKED or copy is None:
                continue
            if result is None:
                again.append(self._ask(partition, copy, found.attempts))
            else:
                self._note(key, number, found, result, now_ns)
                if result.is_suspect:
                    self._state.bar(partition, copy.copy_id)
        return self._state.send(again)

    def _note(self, key: Key, number: int, found: Following, result: GrantResult, now_ns: int) -> None:
        if result.error != FencedLeaderEpochError.code:
            self._state.holders.get(key, set()).discard(found.incarnation)
        if not result.error:
            pursuit, retry_ns = Pursuit.FOLLOWING, 0
        else:
            wait_ms = min(RETRY_MS << min(found.attempts, 16), RETRY_MAX_MS)
            pursuit, retry_ns = Pursuit.FAILED, now_ns + wait_ms * NS_PER_MS
        noted = Following(found.incarnation, found.leader_epoch, pursuit, found.attempts + 1, retry_ns)
        self._state.followings[key, number] = noted

    def retry(self, now_ns: int) -> list[Effect]:
        """Ask those again who could not, when their wait is over."""
        again = []
        for (key, number), found in list(self._state.followings.items()):
            if found.pursuit is not Pursuit.FAILED or found.retry_ns > now_ns:
                continue
            partition, process = self._state.image.partition(*key), self._state.live(number)
            copy = partition.copy_at(number) if partition is not None else None
            if partition is None or process is None or copy is None:
                del self._state.followings[key, number]
            elif (found.incarnation, found.leader_epoch) == (process.incarnation, partition.leader_epoch):
                again.append(self._ask(partition, copy, found.attempts))
        return self._state.send(again)

    def died(self, number: int, partitions: Iterable[Partition]) -> None:
        """What a dead process was told is worth nothing."""
        for partition in partitions:
            self._state.followings.pop((partition.key, number), None)
