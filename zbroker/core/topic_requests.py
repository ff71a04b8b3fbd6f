"""What clients ask of the coordinator: metadata, and creating, changing and deleting topics.

Each topic of a request is checked as a whole before anything of it is recorded, and succeeds or fails alone. A request
that makes partitions is answered when all of them have a leader, or with RequestTimedOutError's number when its time is
over: the topics exist then all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from zbroker import __version__
from zbroker.clock import NS_PER_MS
from zbroker.config.topic import DOTTED, effective, parse_overrides
from zbroker.core.cluster import Cluster, Standing
from zbroker.core.effects import (
    AppendEntries,
    DeleteFiles,
    Effect,
    ForgetPartition,
    PublishWanted,
    Reply,
    SendReconfigure,
    SendRevoke,
)
from zbroker.core.entries import AnyEntry, PartitionsAdded, Placement, TopicConfigured, TopicCreated, TopicDeleted
from zbroker.core.image import Partition, Topic
from zbroker.core.placement import choose_directories, choose_owners, lowest_free
from zbroker.errors import (
    BrokerError,
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    LeaderNotAvailableError,
    PolicyViolationError,
    RequestTimedOutError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from zbroker.ids import check_topic_name, partition_directory_name, worker_number
from zbroker.wire.messages import (
    AlterConfigs,
    ClusterInfo,
    ConfigEntries,
    ConfigEntry,
    CreatePartitions,
    CreateTopics,
    DeleteTopics,
    Done,
    Message,
    MetadataReply,
    MetadataRequest,
    NewTopicSpec,
    PartitionInfo,
    Revocation,
    TopicInfo,
    TopicResult,
    TopicResults,
)


class Places(Struct, frozen=True):
    """Where copies may lie, as the coordinator's process was told."""

    copies_dirs: list[str]
    memory_dir: str
    data_dir: str
    board: str


class _Waiting(Struct):
    request: object
    deadline_ns: int
    partitions: list[Partition]
    body: Message


class TopicRequests:
    """See the module. `request` is the caller's own and comes back in the Reply."""

    def __init__(self, cluster: Cluster, places: Places) -> None:
        self._cluster = cluster
        self._places = places
        self._waiting: list[_Waiting] = []

    def metadata(self, request: object, body: MetadataRequest, now_ns: int, timeout_ms: int) -> list[Effect]:
        """Answer what is known; with `auto_create`, make what is not, where the settings allow it."""
        image = self._cluster.image
        if body.topics is None:
            return [Reply(request, self._reply(list(image.topics.values()), []))]
        found = [image.by_name[name] for name in body.topics if name in image.by_name]
        absent = [name for name in body.topics if name not in image.by_name]
        if absent and body.auto_create and self._cluster.config.broker.auto_create_topics_enable:
            specs = [NewTopicSpec(name, -1, -1, {}) for name in absent]
            effects, results, partitions = self._create(specs, validate_only=False, now_ns=now_ns)
            failed = [TopicInfo(r.name, 0, r.error, {}, []) for r in results if r.error]
            names = [name for name in body.topics if name in image.by_name]
            if partitions:
                effects += self._answer_when_led(request, now_ns, timeout_ms, partitions, _Named(names, failed))
                return effects
            return [*effects, Reply(request, self._reply([image.by_name[name] for name in names], failed))]
        unknown = [TopicInfo(name, 0, _name_error(name), {}, []) for name in absent]
        return [Reply(request, self._reply(found, unknown))]

    def _reply(self, topics: Sequence[Topic], absent: list[TopicInfo]) -> MetadataReply:
        cluster = self._cluster
        return MetadataReply(
            version=cluster.image.version,
            cluster_id=cluster.image.cluster_id,
            coordinator_board=self._places.board,
            processes=[process.info() for process in cluster.processes.values() if process.alive],
            topics=[self._topic_info(topic) for topic in topics] + absent,
        )

    def _topic_info(self, topic: Topic) -> TopicInfo:
        return TopicInfo(
            topic.name, topic.topic_id, 0, topic.config, [self._partition_info(p) for p in topic.partitions]
        )

    def _partition_info(self, partition: Partition) -> PartitionInfo:
        leads = self._cluster.leadership(partition).standing is Standing.LEADING
        copies = [partition.copy_id]
        return PartitionInfo(
            partition=partition.partition,
            leader=partition.owner if leads else -1,
            leader_epoch=partition.leader_epoch,
            leader_incarnation=partition.leader_incarnation if leads else 0,
            replicas=copies,
            isr=copies,
            elr=[],
            directory=partition.directory,
            coordinator_cell=self._cluster.cells.get(partition.key, 0),
        )

    def create_topics(self, request: object, body: CreateTopics, now_ns: int, timeout_ms: int) -> list[Effect]:
        """Make topics."""
        effects, results, partitions = self._create(body.topics, body.validate_only, now_ns)
        answer = TopicResults(results)
        if not partitions:
            return [*effects, Reply(request, answer)]
        return effects + self._answer_when_led(request, now_ns, timeout_ms, partitions, answer)

    def _create(
        self, specs: Sequence[NewTopicSpec], validate_only: bool, now_ns: int
    ) -> tuple[list[Effect], list[TopicResult], list[Partition]]:
        image = self._cluster.image
        results: list[TopicResult] = []
        entries: list[AnyEntry] = []
        effects: list[Effect] = []
        made: list[str] = []
        for spec in specs:
            try:
                entry = self._new_topic(spec)
                if validate_only:
                    results.append(TopicResult(spec.name, 0, "", 0))
                    continue
                image.apply(entry)
                entries.append(entry)
                made.append(spec.name)
                results.append(TopicResult(spec.name, 0, "", entry.topic_id))
            except BrokerError as error:
                results.append(TopicResult(spec.name, error.code, error.message, 0))
        partitions = [p for name in made for p in image.by_name[name].partitions]
        if entries:
            effects.append(AppendEntries(entries, durable=True))
            effects += self._made(partitions, now_ns)
        return effects, results, partitions

    def _made(self, partitions: list[Partition], now_ns: int) -> list[Effect]:
        wanted: list[Effect] = [] if self._cluster.fixed_workers else [PublishWanted(self._cluster.wanted())]
        return wanted + self._cluster.elect(partitions, now_ns)

    def _new_topic(self, spec: NewTopicSpec) -> TopicCreated:
        config, image, limits = self._cluster.config, self._cluster.image, self._cluster.config.limits
        check_topic_name(spec.name)
        collision = image.collision_of(spec.name)
        if collision is not None:
            detail = "" if collision == spec.name else f" ('.' and '_' count as the same, and {collision!r} exists)"
            raise TopicAlreadyExistsError(f"topic {spec.name!r} exists already{detail}")
        if len(image.topics) >= limits.topics_max:
            raise PolicyViolationError(f"{limits.topics_max} topics exist already", hint="limits.topics_max")
        count = config.broker.num_partitions if spec.num_partitions == -1 else spec.num_partitions
        if not 1 <= count <= limits.partitions_per_topic_max:
            most = limits.partitions_per_topic_max
            raise InvalidPartitionsError(f"{count} partitions; from 1 to {most} are allowed")
        self._check_factor(spec.replication_factor)
        overrides = parse_overrides(spec.config, config.topics, limits.message_max_bytes)
        topic_id = image.next_topic_id
        return TopicCreated(topic_id, spec.name, overrides, self._place(topic_id, overrides, 0, count, []))

    def _check_factor(self, asked: int) -> None:
        factor = self._cluster.config.broker.replication_factor if asked == -1 else asked
        if factor < 1:
            raise InvalidReplicationFactorError(f"replication factor {factor}; at least 1")
        if factor > 1:
            raise InvalidReplicationFactorError(
                f"replication factor {factor}: this version keeps one copy of each partition",
                hint="replication_factor = 1; zbroker cluster describe lists the processes",
            )

    def _place(
        self, topic_id: int, overrides: dict[str, str], first: int, count: int, existing: list[Partition]
    ) -> list[Placement]:
        cluster, image = self._cluster, self._cluster.image
        everything = list(image.partitions())
        if cluster.fixed_workers:
            live = sorted(number for number, process in cluster.processes.items() if process.alive)
            candidates = live or cluster.wanted()
            owners = choose_owners(count, candidates, (p.owner for p in existing), (p.owner for p in everything))
        else:
            taken = {p.owner for p in everything}
            free = lowest_free(count + len(taken), ())
            owners = [number for number in map(worker_number, free) if number not in taken][:count]
        in_memory = effective(cluster.config.topics, overrides).storage == "memory"
        roots = [self._places.memory_dir] if in_memory else self._places.copies_dirs
        used = (root for p in everything for root in roots if p.directory.startswith(root + "/"))
        directories = choose_directories(count, roots, used)
        placements = []
        for index in range(count):
            copy_id, number = image.next_copy_id + index, first + index
            directory = f"{directories[index]}/{copy_id}/{partition_directory_name(topic_id, number)}"
            placements.append(Placement(number, copy_id, directory, owners[index]))
        return placements

    def create_partitions(self, request: object, body: CreatePartitions, now_ns: int, timeout_ms: int) -> list[Effect]:
        """Give a topic more partitions."""
        topic = self._known(body.name)
        have, most = len(topic.partitions), self._cluster.config.limits.partitions_per_topic_max
        if not have < body.total <= most:
            raise InvalidPartitionsError(
                f"topic {body.name!r} has {have} partitions; it can get up to {most}, never fewer"
            )
        placements = self._place(topic.topic_id, topic.config, have, body.total - have, topic.partitions)
        effects: list[Effect] = [self._cluster.record([PartitionsAdded(topic.topic_id, placements)], durable=True)]
        new = topic.partitions[have:]
        effects += self._made(new, now_ns)
        return effects + self._answer_when_led(request, now_ns, timeout_ms, new, Done())

    def delete_topics(self, request: object, body: DeleteTopics) -> list[Effect]:
        """Delete topics and their records."""
        results, effects = [], list[Effect]()
        for name in body.names:
            topic = self._cluster.image.by_name.get(name)
            if topic is None:
                error = UnknownTopicOrPartitionError(f"topic {name!r} does not exist")
                results.append(TopicResult(name, error.code, error.message, 0))
                continue
            effects.append(self._cluster.record([TopicDeleted(topic.topic_id)], durable=True))
            effects += self._unplace(topic.partitions)
            results.append(TopicResult(name, 0, "", topic.topic_id))
        if not self._cluster.fixed_workers:
            effects.append(PublishWanted(self._cluster.wanted()))
        return [*effects, Reply(request, TopicResults(results))]

    def _unplace(self, partitions: list[Partition]) -> list[Effect]:
        effects: list[Effect] = []
        by_owner: dict[int, list[Revocation]] = {}
        for partition in partitions:
            self._cluster.leaderships.pop(partition.key, None)
            self._cluster.cells.pop(partition.key, None)
            owner = self._cluster.processes.get(partition.owner)
            if owner is not None and owner.alive:
                by_owner.setdefault(partition.owner, []).append(Revocation(*partition.key, delete=True))
            else:
                effects.append(DeleteFiles(partition.directory))
            effects.append(ForgetPartition(*partition.key))
        effects.extend(SendRevoke(number, found) for number, found in by_owner.items())
        return effects

    def alter_configs(self, request: object, body: AlterConfigs) -> list[Effect]:
        """Change a topic's settings; they hold when this is answered, and reach its leaders right after."""
        topic = self._known(body.name)
        config = self._cluster.config
        changed = {name.replace("_", "."): value for name, value in topic.config.items()}
        changed.update({name.replace("_", "."): value for name, value in body.set.items()})
        for name in body.unset:
            changed.pop(name.replace("_", "."), None)
        overrides = parse_overrides(changed, config.topics, config.limits.message_max_bytes)
        before, after = (effective(config.topics, found).storage for found in (topic.config, overrides))
        if before != after:
            raise PolicyViolationError(
                "storage cannot be changed after a topic was created", hint="create another topic"
            )
        effects: list[Effect] = [self._cluster.record([TopicConfigured(topic.topic_id, overrides)], durable=True)]
        texts = self._cluster.grant_of(topic.partitions[0]).config
        for number in sorted({partition.owner for partition in topic.partitions}):
            effects.append(SendReconfigure(number, topic.topic_id, texts))
        return [*effects, Reply(request, Done())]

    def describe_configs(self, request: object, name: str) -> list[Effect]:
        """Every setting in force, and where it comes from."""
        topic = self._known(name)
        defaults = self._cluster.config.topics
        found = effective(defaults, topic.config)
        plain = type(defaults)()
        entries = []
        for dotted, field in DOTTED.items():
            is_broker = getattr(defaults, field) != getattr(plain, field)
            origin = "topic" if dotted in topic.config else "broker" if is_broker else "default"
            entries.append(ConfigEntry(dotted, str(getattr(found, field)), origin))  # type: ignore[arg-type]
        return [Reply(request, ConfigEntries(entries))]

    def describe_cluster(self, request: object) -> list[Effect]:
        """The broker as a whole."""
        cluster = self._cluster
        info = ClusterInfo(
            cluster_id=cluster.image.cluster_id,
            software=f"zbroker {__version__}",
            data_dir=self._places.data_dir,
            processes=[process.info() for process in cluster.processes.values() if process.incarnation],
            topic_count=len(cluster.image.topics),
            partition_count=cluster.image.partition_count(),
        )
        return [Reply(request, info)]

    def _known(self, name: str) -> Topic:
        topic = self._cluster.image.by_name.get(name)
        if topic is None:
            raise UnknownTopicOrPartitionError(f"topic {name!r} does not exist")
        return topic

    def _answer_when_led(
        self, request: object, now_ns: int, timeout_ms: int, partitions: list[Partition], body: Message
    ) -> list[Effect]:
        self._waiting.append(_Waiting(request, now_ns + timeout_ms * NS_PER_MS, partitions, body))
        return self.answer_waiting(now_ns)

    def answer_waiting(self, now_ns: int) -> list[Effect]:
        """Answer the requests whose partitions all have leaders, and those whose time is over."""
        effects: list[Effect] = []
        still = []
        for waiting in self._waiting:
            if all(self._cluster.is_settled(partition) for partition in waiting.partitions):
                effects.append(self._answer(waiting))
            elif waiting.deadline_ns <= now_ns:
                late = RequestTimedOutError("the topics exist, but not every partition has a leader yet")
                effects.append(Reply(waiting.request, None, late.code, late.message))
            else:
                still.append(waiting)
        self._waiting = still
        return effects

    def _answer(self, waiting: _Waiting) -> Effect:
        for partition in waiting.partitions:
            found = self._cluster.leadership(partition)
            if found.standing is Standing.FAILED:
                text = f"partition {partition.partition} has no leader: {found.message}"
                return Reply(waiting.request, None, found.error or LeaderNotAvailableError.code, text)
        if isinstance(waiting.body, _Named):
            by_name = self._cluster.image.by_name
            topics = [by_name[name] for name in waiting.body.names if name in by_name]
            return Reply(waiting.request, self._reply(topics, waiting.body.failed))
        return Reply(waiting.request, waiting.body)


class _Named(Message, frozen=True):
    """A metadata answer that is made when it is sent: leaders are known only then."""

    names: list[str]
    failed: list[TopicInfo]


def _name_error(name: str) -> int:
    try:
        check_topic_name(name)
    except BrokerError as error:
        return error.code
    return UnknownTopicOrPartitionError.code
