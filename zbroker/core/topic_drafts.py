"""What a client wants of topics, checked and turned into entries; nothing is changed here.

Guarantees: what a draft gives can be applied to the image it was made from, in its order, as a whole; a topic that is
refused leaves no trace in the draft. Topic names become no paths. Every limit is checked before an entry exists.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from zbroker.clock import NS_PER_MS
from zbroker.config.schema import TopicConfig
from zbroker.config.topic import DOTTED, effective, parse_overrides
from zbroker.core.cluster_state import ClusterState, ProcessState, is_worker
from zbroker.core.entries import MEMORY_DISK, CopyPlaced, PartitionsAdded, Placement, TopicConfigured, TopicCreated
from zbroker.core.image import Topic
from zbroker.core.placement import choose_disks, choose_followers, choose_owners, lowest_free
from zbroker.errors import (
    InvalidConfigurationError,
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    PolicyViolationError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from zbroker.ids import check_topic_name, collision_key, worker_number
from zbroker.wire.messages import NewTopicSpec

PATIENCE_MS: Final = 2_000  # for so long a dead worker is expected back, and gets new partitions like the others


class Draft:
    """Topics and partitions to be made by one request."""

    def __init__(self, state: ClusterState, now_ns: int) -> None:
        image = state.image
        self._state = state
        self._now_ns = now_ns
        self._next_topic_id = image.next_topic_id
        self._next_copy_id = image.next_copy_id
        self._partition_count = image.partition_count()
        self._owner_loads = Counter(dict(image.owner_loads()))
        self._disk_loads = Counter(image.disk_loads)
        self._names: dict[str, str] = {}

    def new_topic(self, spec: NewTopicSpec) -> TopicCreated:
        """A topic. Raises the error that refuses it."""
        config, limits = self._state.config, self._state.config.limits
        check_topic_name(spec.name)
        self._check_name_is_free(spec.name)
        if len(self._state.image.topics) + len(self._names) >= limits.topics_max:
            raise PolicyViolationError(f"{limits.topics_max} topics exist already", hint="[limits] topics_max")
        count = config.broker.num_partitions if spec.num_partitions == -1 else spec.num_partitions
        if not 1 <= count <= limits.partitions_per_topic_max:
            most = limits.partitions_per_topic_max
            raise InvalidPartitionsError(f"{count} partitions; from 1 to {most} are allowed")
        factor = checked_factor(self._state, spec.replication_factor)
        overrides = parse_overrides(spec.config, config.topics, limits.message_max_bytes)
        check_min_in_sync(effective(config.topics, overrides), factor)
        placements = self._place(None, overrides, count, factor)
        created = TopicCreated(self._next_topic_id, spec.name, overrides, placements)
        self._names[collision_key(spec.name)] = spec.name
        self._next_topic_id += 1
        return created

    def _check_name_is_free(self, name: str) -> None:
        collision = self._state.image.collision_of(name) or self._names.get(collision_key(name))
        if collision is not None:
            detail = "" if collision == name else f" ('.' and '_' count as the same, and {collision!r} exists)"
            raise TopicAlreadyExistsError(f"topic {name!r} exists already{detail}")

    def more_partitions(self, topic: Topic, total: int) -> PartitionsAdded:
        """Further partitions of a topic. Raises InvalidPartitionsError, PolicyViolationError."""
        have, most = len(topic.partitions), self._state.config.limits.partitions_per_topic_max
        if not have < total <= most:
            raise InvalidPartitionsError(
                f"topic {topic.name!r} has {have} partitions; it can get up to {most}, never fewer"
            )
        # A move may be under way: the copies that go and those that come are one.
        factor = len(topic.partitions[0].copies) - len(topic.partitions[0].adding)
        return PartitionsAdded(topic.topic_id, self._place(topic, topic.config, total - have, factor))

    def _place(self, topic: Topic | None, overrides: dict[str, str], count: int, factor: int) -> list[Placement]:
        partitions_max = self._state.site.partitions_max
        if self._partition_count + count > partitions_max:
            text = f"{self._partition_count} partitions exist, and this broker can have {partitions_max}"
            raise PolicyViolationError(text, hint="fewer partitions; zbroker topics delete NAME")
        owners = self._owners(topic, count)
        in_memory = effective(self._state.config.topics, overrides).storage == "memory"
        loads = Counter(self._owner_loads)
        loads.update(owners)
        copies = [[owner, *self._followers(owner, factor - 1, loads)] for owner in owners]
        disks = choose_disks(count * factor, [MEMORY_DISK] if in_memory else self._state.site.disks, self._disk_loads)
        first = 0 if topic is None else len(topic.partitions)
        placements = []
        for index, numbers in enumerate(copies):
            copy_id = self._next_copy_id + index * factor
            placed = [CopyPlaced(copy_id + at, disks[index * factor + at], number) for at, number in enumerate(numbers)]
            one = placed[0]
            placements.append(Placement(first + index, one.copy_id, one.disk, one.owner, tuple(placed[1:])))
        self._next_copy_id += count * factor
        self._partition_count += count
        self._owner_loads = loads
        self._disk_loads.update(disks)
        return placements

    def _followers(self, preferred: int, count: int, loads: Counter[int]) -> list[int]:
        if not count:
            return []
        state = self._state
        workers = self._candidates() if state.fixed_workers else []
        if len({*workers, *state.replicas()} - {preferred}) < count:
            workers = state.wanted() if state.fixed_workers else []
        copies_max = state.config.limits.partitions_per_process_max
        return choose_followers(count, preferred, state.replicas(), workers, loads, copies_max)

    def _owners(self, topic: Topic | None, count: int) -> list[int]:
        state = self._state
        if not state.fixed_workers:
            taken = {number for number, load in self._owner_loads.items() if load}
            if len(taken) + count > state.site.processes_max:
                text = f"a process for each partition, and at most {state.site.processes_max} processes"
                raise PolicyViolationError(text, hint="[workers] count = 'auto'")
            indexes = lowest_free(count + len(taken), ())
            return [number for number in map(worker_number, indexes) if number not in taken][:count]
        of_topic = [] if topic is None else [partition.owner for partition in topic.partitions]
        copies_max = state.config.limits.partitions_per_process_max
        return choose_owners(count, self._candidates(), of_topic, self._owner_loads, copies_max)

    def _candidates(self) -> list[int]:
        """Workers that live or are expected back at once; those that are wanted, when there is none."""
        state = self._state
        wanted = state.wanted()
        here = []
        for process in state.processes.values():
            if not is_worker(process.number):
                continue
            is_fresh = self._now_ns - process.since_ns < PATIENCE_MS * NS_PER_MS
            is_expected = process.number in wanted and (process.state is not ProcessState.DEAD or is_fresh)
            if process.is_live or is_expected:
                here.append(process.number)
        return sorted(here) or wanted


def checked_factor(state: ClusterState, asked: int) -> int:
    """How many copies a topic gets; -1: the broker's default. Raises InvalidReplicationFactorError."""
    factor = state.config.broker.replication_factor if asked == -1 else asked
    if factor < 1:
        raise InvalidReplicationFactorError(f"replication factor {factor}; at least 1")
    most = state.copies_max()
    if factor > most:
        workers = str(state.fixed_workers) if state.fixed_workers else "one for each partition"
        raise InvalidReplicationFactorError(
            f"replication factor {factor}, and {most} processes can have a copy each: "
            f"workers: {workers}, replicas: {state.config.replicas.count}"
        )
    return factor


def check_min_in_sync(config: TopicConfig, factor: int) -> None:
    """Raise InvalidConfigurationError for a topic whose acks=all could never be answered."""
    if config.min_insync_replicas > factor:
        raise InvalidConfigurationError(
            f"min.insync.replicas {config.min_insync_replicas} is above the replication factor {factor}",
            hint="zbroker topics describe TOPIC shows the copies; zbroker cluster describe the processes",
        )


def known_topic(state: ClusterState, name: str) -> Topic:
    """The topic of a name. Raises UnknownTopicOrPartitionError, or InvalidTopicError for what is no name."""
    topic = state.image.by_name.get(name)
    if topic is None:
        check_topic_name(name)
        raise UnknownTopicOrPartitionError(f"topic {name!r} does not exist")
    return topic


def name_error(name: str) -> int:
    """The number of the error that stands in the place of a topic that is not there."""
    try:
        check_topic_name(name)
    except InvalidTopicError as error:
        return error.code
    return UnknownTopicOrPartitionError.code


def configured(state: ClusterState, topic: Topic, changes: dict[str, str], unset: list[str]) -> TopicConfigured:
    """A topic's settings after a change. Raises InvalidConfigurationError, PolicyViolationError."""
    config = state.config
    for name in unset:
        # Refuses unknown names, with the nearest known one; the value is any that is allowed.
        dotted = name.replace("_", ".")
        default = str(getattr(config.topics, DOTTED[dotted])) if dotted in DOTTED else ""
        parse_overrides({name: default}, config.topics, config.limits.message_max_bytes)
    after = {name: value for name, value in topic.config.items() if name in DOTTED}
    after.update({name.replace("_", "."): value for name, value in changes.items()})
    for name in unset:
        after.pop(name.replace("_", "."), None)
    overrides = parse_overrides(after, config.topics, config.limits.message_max_bytes)
    old, new = (effective(config.topics, found).storage for found in (topic.config, overrides))
    if old != new:
        raise PolicyViolationError("storage cannot be changed after a topic was created", hint="create another topic")
    factor = min(len(partition.copies) - len(partition.adding) for partition in topic.partitions)
    check_min_in_sync(effective(config.topics, overrides), factor)
    return TopicConfigured(topic.topic_id, overrides)
