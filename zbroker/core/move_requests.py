"""What people ask of copies and leaders: elect, move, drain. Checked as a whole before anything is changed."""

from __future__ import annotations

from collections import Counter

from zbroker import ids
from zbroker.clock import NS_PER_MS
from zbroker.core import cluster_events as ev
from zbroker.core import effects as do
from zbroker.core.cluster_state import ClusterState, Standing, is_worker
from zbroker.core.effects import Effect
from zbroker.core.elections import Elections
from zbroker.core.entries import MEMORY_DISK
from zbroker.core.image import Copy, Key, Partition
from zbroker.core.moves import Moves
from zbroker.core.placement import choose_disks
from zbroker.core.topic_changes import refuse
from zbroker.core.topic_drafts import known_topic
from zbroker.errors import (
    BrokerError,
    InvalidReplicationFactorError,
    InvalidRequestError,
    LeaderNotAvailableError,
    UnknownTopicOrPartitionError,
)
from zbroker.wire.copy_messages import (
    DrainProcess,
    ElectLeaders,
    MoveCopy,
    PartitionResult,
    PartitionResults,
)

_SHOWS_PROCESSES = "zbroker cluster describe shows the processes"


class MoveRequests:
    """See the module."""

    def __init__(self, state: ClusterState, moves: Moves, elections: Elections) -> None:
        self._state = state
        self._moves = moves
        self._elections = elections

    def elect_leaders(self, event: ev.Asked, body: ElectLeaders, now_ns: int) -> list[Effect]:
        """Have preferred copies lead, or, `unclean`, have whatever copy there is lead where nobody does."""
        keys: dict[Key, tuple[str, int]] = {}
        results: list[PartitionResult] = []
        for topic, number in body.partitions or self._everything():
            try:
                partition = self._partition(topic, number)
                is_begun = self._force(partition, now_ns) if body.unclean else self._prefer(partition)
            except BrokerError as error:
                results.append(PartitionResult(topic, number, error.code, error.wire_text))
                continue
            if is_begun:
                keys[partition.key] = (topic, number)
            else:
                results.append(PartitionResult(topic, number, 0, ""))
        return self._begun(event, keys, results, now_ns, is_forced=body.unclean)

    def _everything(self) -> list[tuple[str, int]]:
        return [
            (topic.name, partition.partition)
            for topic in self._state.image.topics.values()
            for partition in topic.partitions
        ]

    def _partition(self, topic: str, number: int) -> Partition:
        found = self._state.image.partition(known_topic(self._state, topic).topic_id, number)
        if found is None:
            raise UnknownTopicOrPartitionError(f"{topic!r} has no partition {number}")
        return found

    def _prefer(self, partition: Partition) -> bool:
        preferred = partition.copies[0]
        if self._state.leadership(partition.key).standing is not Standing.LEADING:
            raise LeaderNotAvailableError(
                f"copies {partition.isr} are in sync, and none of their processes runs; "
                "zbroker cluster elect-leaders --unclean takes another, and loses what that does not have"
            )
        if partition.leader_copy == preferred.copy_id:
            return False
        if not self._moves.can_lead(partition, preferred):
            name = ids.process_name(preferred.owner)
            raise LeaderNotAvailableError(f"the preferred copy, {name}'s, is not in sync")
        self._moves.hand_over(partition, preferred)
        return True

    def _force(self, partition: Partition, now_ns: int) -> bool:
        if self._state.leadership(partition.key).standing is Standing.LEADING:
            return False
        if not self._state.live_owners(partition):
            raise LeaderNotAvailableError("no process that has a copy runs")
        if any(self._state.live(copy.owner) for copy in partition.candidates) and not partition.is_unsure:
            self._state.want_election(partition.key)
        else:
            self._elections.force(partition, now_ns)
        return True

    def _begun(
        self,
        event: ev.Asked,
        keys: dict[Key, tuple[str, int]],
        results: list[PartitionResult],
        now_ns: int,
        *,
        is_forced: bool = False,
    ) -> list[Effect]:
        if not keys:
            return [do.Reply(event.request, PartitionResults(results))]
        deadline_ns = now_ns + event.timeout_ms * NS_PER_MS
        self._moves.wait(event.request, deadline_ns, keys, results, is_forced=is_forced)
        return []

    def move(self, event: ev.Asked, body: MoveCopy, now_ns: int) -> list[Effect]:
        """Move one copy to another process."""
        partition = self._partition(body.topic, body.partition)
        name = f"{body.topic}:{body.partition}"
        source = partition.leader if body.source == -1 else partition.copy_at(body.source)
        if source is None:
            raise InvalidRequestError(
                f"{_name(body.source)} has no copy of {name}", hint=f"zbroker topics describe {body.topic}"
            )
        self._check_target(partition, name, body.target)
        self._check_at_rest(partition, name)
        keys = {partition.key: (body.topic, body.partition)}
        return self._begin(event, [(partition, source, body.target, self._disk(source))], keys, now_ns)

    def _begin(
        self,
        event: ev.Asked,
        moves: list[tuple[Partition, Copy, int, str]],
        keys: dict[Key, tuple[str, int]],
        now_ns: int,
    ) -> list[Effect]:
        deadline_ns = now_ns + event.timeout_ms * NS_PER_MS

        def begun() -> None:
            self._moves.wait(event.request, deadline_ns, keys, [])

        return self._moves.begin(moves, begun, refuse(event))

    def _check_target(self, partition: Partition, name: str, target: int) -> None:
        if self._state.live(target) is None:
            raise InvalidRequestError(f"{_name(target)} does not run", hint=_SHOWS_PROCESSES)
        if partition.copy_at(target) is not None:
            topic = name.rpartition(":")[0]
            hint = f"zbroker topics describe {topic}"
            raise InvalidRequestError(f"{_name(target)} has a copy of {name} already", hint=hint)
        if not self._state.fixed_workers and is_worker(target):
            raise InvalidRequestError(
                f"{_name(target)} has a partition of its own", hint="[workers] count; replicas take copies"
            )

    def _check_at_rest(self, partition: Partition, name: str) -> None:
        if partition.adding or partition.removing:
            raise InvalidRequestError(f"{name} is being moved already", hint="zbroker topics describe shows its copies")

    def _disk(self, source: Copy) -> str:
        if source.disk == MEMORY_DISK:
            return MEMORY_DISK
        return choose_disks(1, self._state.site.disks, self._state.image.disk_loads)[0]

    def drain(self, event: ev.Asked, body: DrainProcess, now_ns: int) -> list[Effect]:
        """Move every copy of a process to others."""
        state, number = self._state, body.number
        if number not in state.processes or not (is_worker(number) or number in state.replicas()):
            raise InvalidRequestError(f"{_name(number)} is no process with copies", hint=_SHOWS_PROCESSES)
        others = sorted(one for one in state.processes if one != number and state.live(one) is not None)
        if not others:
            raise InvalidRequestError(f"{_name(number)} is the last process", hint=_SHOWS_PROCESSES)
        loads = Counter(dict(state.image.owner_loads()))
        moves: list[tuple[Partition, Copy, int, str]] = []
        keys: dict[Key, tuple[str, int]] = {}
        for partition in state.image.of_owner(number):
            copy = partition.copy_at(number)
            assert copy is not None
            topic = state.image.topics[partition.topic_id].name
            keys[partition.key] = (topic, partition.partition)
            if copy.copy_id in partition.removing:
                continue  # it is on its way already
            self._check_at_rest(partition, f"{topic}:{partition.partition}")
            target = self._target(partition, copy, others, loads)
            if target is None:
                raise InvalidReplicationFactorError(
                    f"every other process has a copy of {topic}:{partition.partition} already, or no room: "
                    f"{_name(number)} cannot be drained"
                )
            loads[target] += 1
            moves.append((partition, copy, target, self._disk(copy)))
        return self._begin(event, moves, keys, now_ns) if moves else self._begun(event, keys, [], now_ns)

    def _target(self, partition: Partition, copy: Copy, others: list[int], loads: Counter[int]) -> int | None:
        copies_max = self._state.config.limits.partitions_per_process_max
        is_preferred = copy is partition.copies[0]
        free = [
            number
            for number in others
            if partition.copy_at(number) is None
            and loads[number] < copies_max
            and (self._state.fixed_workers or not is_worker(number))
        ]
        return min(free, key=lambda one: (is_worker(one) is not is_preferred, loads[one], one), default=None)


def _name(number: int) -> str:
    is_named = number in (ids.COORDINATOR, ids.ROUTER) or number >= ids.worker_number(0)
    return ids.process_name(number) if is_named else f"process {number}"
