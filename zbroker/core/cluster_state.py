"""What the coordinator knows: the image that the log gives, and beside it what only this run has learned.

It decides nothing: `processes`, `elections`, `followings`, `in_sync`, `moves` and `topic_changes` do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Final

from msgspec import Struct

from zbroker.config.schema import ServerConfig, TopicConfig
from zbroker.config.topic import effective, to_texts
from zbroker.core.effects import Effect, SendGrant
from zbroker.core.entries import DATA_DISK, MEMORY_DISK
from zbroker.core.image import Copy, Image, Key, Partition, Topic
from zbroker.ids import partition_directory_name, process_name, replica_number, worker_number
from zbroker.wire.inner_messages import CopyPlace, PartitionGrant
from zbroker.wire.messages import ProcessInfo

GRANTS_PER_MESSAGE_MAX: Final = 64
COPIES: Final = "copies"


class ProcessState(Enum):
    """How a process stands."""

    AWAY = "away"  # it may live, and has not registered with this coordinator
    LIVE = "running"  # registered
    DEAD = "dead"  # its pidfd says so, or there never was one


class Process(Struct):
    """The newest incarnation known under a process number. `since_ns`: in this state since then."""

    number: int
    incarnation: int
    board: str
    lane_socket: str
    state: ProcessState
    since_ns: int

    @property
    def is_live(self) -> bool:
        """Whether it is registered and lives."""
        return self.state is ProcessState.LIVE

    def info(self) -> ProcessInfo:
        """What metadata says of it."""
        name, state = process_name(self.number), self.state.value
        return ProcessInfo(self.number, name, self.incarnation, self.board, self.lane_socket, state)


class Standing(Enum):
    """How a partition's leadership stands."""

    VACANT = "vacant"  # nobody was granted it since its last leader died
    DEPOSING = "deposing"  # elected, not granted: who led before lives, and has not said that it follows
    ASKED = "asked"  # granted, not answered
    LEADING = "leading"  # the process answered that it leads
    FAILED = "failed"  # the process answered that it cannot; it is asked again later


class Leadership(Struct, frozen=True):
    """What is known of a partition's leader beyond the log."""

    standing: Standing = Standing.VACANT
    error: int = 0
    message: str = ""
    attempts: int = 0
    retry_ns: int = 0


class Predecessor(Struct, frozen=True):
    """Who led a partition last: a new leader completes the tail from its files. `copy_id` -1: they cannot be read."""

    copy_id: int
    board: str


class Pursuit(Enum):
    """How a process stands that is to follow."""

    ASKED = "asked"
    FOLLOWING = "following"
    FAILED = "failed"  # it could not; it is asked again later


class Following(Struct, frozen=True):
    """What is known of a process that is to follow: whom it was told to follow, and whether it does."""

    incarnation: int
    leader_epoch: int
    pursuit: Pursuit = Pursuit.ASKED
    attempts: int = 0
    retry_ns: int = 0


class Report(Struct, frozen=True):
    """What a process said of its copy, when it was opened for nothing but that."""

    incarnation: int
    last_epoch: int
    log_end: int


class Survey(Struct):
    """The copies of a partition that were asked how far they are, and what they said."""

    since_ns: int
    is_forced: bool
    asked: dict[int, int] = {}  # copy id -> incarnation
    reports: dict[int, Report] = {}  # by copy id
    not_before_ns: dict[int, int] = {}  # by copy id: when one that could not be opened may be asked for again
    is_told: bool = False  # a person was told what it waits for


VACANT: Final = Leadership()
LEADING: Final = Leadership(Standing.LEADING)


class Site(Struct, frozen=True):
    """What the coordinator's process knows of its host and of itself."""

    data_dir: str
    memory_dir: str
    further_data_dirs: list[str]
    board: str
    incarnation: int
    partitions_max: int
    processes_max: int
    boards_dir: str = ""

    @property
    def disks(self) -> list[str]:
        """The disks for new copies that are to be kept."""
        return [DATA_DISK, *self.further_data_dirs]

    def root_of(self, disk: str) -> str:
        """The directory in which a disk's copies lie."""
        if disk == MEMORY_DISK:
            return self.memory_dir
        return f"{self.data_dir if disk == DATA_DISK else disk}/{COPIES}"


class ClusterState:
    """See the module."""

    def __init__(
        self, config: ServerConfig, site: Site, fixed_workers: int, cell_of: Callable[[int, int], int], image: Image
    ) -> None:
        """`fixed_workers`: how many workers the settings want; 0: one for each partition. `cell_of` gives the place of
        a partition on the coordinator's board, always the same while the partition exists."""
        self.config = config
        self.site = site
        self.fixed_workers = fixed_workers
        self.cell_of = cell_of
        self.image = image
        self.processes: dict[int, Process] = {}
        self.watched: dict[int, int] = {}  # incarnation, not known to be dead -> process number
        self.stuck: set[int] = set()  # incarnations that were killed and hang in the kernel: they act no more
        self.leaderships: dict[Key, Leadership] = {}
        self._led_count = 0
        self.failed: set[Key] = set()
        self.holders: dict[Key, set[int]] = {}  # incarnations that may believe that they lead, unless they are dead
        self.predecessors: dict[Key, Predecessor] = {}  # of partitions whose new leader has not answered
        self.undurable: set[Key] = set()  # partitions whose newest election may not be on the disk
        self.unclean: set[Key] = set()  # partitions whose newest election was forced
        self.followings: dict[tuple[Key, int], Following] = {}  # by partition and process number
        self.surveys: dict[Key, Survey] = {}
        self.suspects: dict[Key, set[int]] = {}  # damaged copies, until the log says that they are out
        self.refused: dict[Key, set[int]] = {}  # copies whose processes could not lead them when they were asked
        self.handovers: dict[Key, int] = {}  # copies that are to lead in the place of those that do
        self.due: dict[Key, int] = {}  # partitions that may need an election, and the highest epoch seen of each
        self.examine: set[Key] = set()  # partitions whose copies in sync may have to change
        self.retry_examine: set[Key] = set()  # those whose change the log did not take
        self.answers_due: list[Effect] = []  # given when what is due and to be examined is in the log
        self._topic_configs: dict[int, tuple[dict[str, str], TopicConfig]] = {}

    def wanted(self) -> list[int]:
        """The worker processes that should run."""
        if self.fixed_workers:
            return [worker_number(index) for index in range(self.fixed_workers)]
        return sorted(number for number in self.image.owner_loads() if is_worker(number))

    def replicas(self) -> list[int]:
        """The replica processes that should run."""
        return [replica_number(index) for index in range(self.config.replicas.count)]

    def copies_max(self) -> int:
        """How many copies a partition can have: each of another process."""
        return (self.fixed_workers or 1) + self.config.replicas.count

    def live(self, number: int) -> Process | None:
        """The process of this number, if it is registered and lives."""
        found = self.processes.get(number)
        return found if found is not None and found.is_live and found.incarnation not in self.stuck else None

    def live_owners(self, partition: Partition) -> list[Process]:
        """The live processes that have copies of a partition."""
        found = [self.live(copy.owner) for copy in partition.copies]
        return [process for process in found if process is not None]

    def want_election(self, key: Key, epoch_seen: int = -1) -> None:
        """Have a partition looked at when the event is dealt with. `epoch_seen`: an epoch that was used for sure."""
        self.due[key] = max(self.due.get(key, -1), epoch_seen)

    def bar(self, partition: Partition, copy_id: int) -> None:
        """Have a damaged copy leave the sets when the event is dealt with, and be followed by another if it leads.

        The last one stays: a damaged copy is better than none, and only a person may decide otherwise.
        """
        others = [copy for copy in partition.candidates if copy.copy_id != copy_id]
        if not others and copy_id in (*partition.isr, *partition.elr):
            return
        self.suspects.setdefault(partition.key, set()).add(copy_id)
        self.examine.add(partition.key)
        if partition.leader_copy == copy_id:
            heir = next((copy for copy in others if self.live(copy.owner) is not None), None)
            if heir is not None:
                self.handovers[partition.key] = heir.copy_id
                self.want_election(partition.key)

    def leadership(self, key: Key) -> Leadership:
        """How a partition's leadership stands."""
        return self.leaderships.get(key, VACANT)

    def are_all_led(self) -> bool:
        """Whether every partition has a leader that has answered."""
        known = self.leaderships
        return self._led_count == len(known) == self.image.partition_count()

    def set_leadership(self, key: Key, leadership: Leadership) -> None:
        """Note how it stands from now on."""
        self._led_count += _is_led(leadership) - _is_led(self.leaderships.get(key))
        self.leaderships[key] = leadership
        if leadership.standing is Standing.FAILED:
            self.failed.add(key)
        else:
            self.failed.discard(key)

    def forget(self, key: Key) -> None:
        """The partition is gone."""
        self._led_count -= _is_led(self.leaderships.pop(key, None))
        self.failed.discard(key)
        for known in (self.holders, self.predecessors, self.surveys, self.suspects, self.refused, self.handovers):
            known.pop(key, None)
        for keys in (self.undurable, self.unclean, self.examine):
            keys.discard(key)
        self.due.pop(key, None)
        for number in [number for found, number in self.followings if found == key]:
            del self.followings[key, number]

    def is_settled(self, key: Key) -> bool:
        """Whether nothing more will happen to a partition's leadership soon. True of a partition that is gone."""
        if self.image.partition(*key) is None:
            return True
        return self.leadership(key).standing in (Standing.LEADING, Standing.FAILED)

    def holders_alive(self, partition: Partition, *, but: int = 0) -> list[int]:
        """The incarnations, other than `but`, that may still lead a partition: proof of death counts, not silence."""
        found = self.holders.get(partition.key, ())
        return [one for one in sorted(found) if one != but and one in self.watched and one not in self.stuck]

    def is_leader_alive(self, partition: Partition) -> bool:
        """Whether who was elected last may be leading."""
        return partition.leader_incarnation in self.holders_alive(partition)

    def is_dead(self, number: int) -> bool:
        """Whether it is proven that no process of this number runs."""
        process = self.processes.get(number)
        if process is None:
            return False
        return process.state is ProcessState.DEAD or process.incarnation in self.stuck

    def min_in_sync(self, partition: Partition) -> int:
        """How many copies must be in sync for acks=all."""
        return self.topic_config(self.image.topics[partition.topic_id]).min_insync_replicas

    def topic_config(self, topic: Topic) -> TopicConfig:
        """A topic's settings in force."""
        known = self._topic_configs.get(topic.topic_id)
        if known is None or known[0] is not topic.config:
            known = (topic.config, effective(self.config.topics, topic.config))
            self._topic_configs[topic.topic_id] = known
        return known[1]

    def settings_of(self, topic: Topic) -> dict[str, str]:
        """A topic's settings in force, as a grant carries them."""
        return to_texts(self.topic_config(topic))

    def directory_of(self, partition: Partition, copy: Copy) -> str:
        """Where a copy's files lie. Made of numbers and of directories from the settings only."""
        name = partition_directory_name(partition.topic_id, partition.partition)
        return f"{self.site.root_of(copy.disk)}/{copy.copy_id}/{name}"

    def board_of(self, number: int, incarnation: int) -> str:
        """Where the board of a process lies, or lay."""
        process = self.processes.get(number)
        if process is not None and process.incarnation == incarnation and process.board:
            return process.board
        return f"{self.site.boards_dir}/{process_name(number)}.{incarnation:016x}.board" if self.site.boards_dir else ""

    def grant_of(self, partition: Partition, copy: Copy, leader: int, *, settings: dict[str, str]) -> PartitionGrant:
        """A grant of the newest epoch for the process that has `copy`: to lead, when it is `leader`, else to follow."""
        key = partition.key
        predecessor = self.predecessors.get(key) if leader == copy.owner else None
        tail = predecessor.copy_id if predecessor is not None else -1
        return PartitionGrant(
            topic_id=partition.topic_id,
            partition=partition.partition,
            topic=self.image.topics[partition.topic_id].name,
            copy_id=copy.copy_id,
            directory=self.directory_of(partition, copy),
            leader_epoch=partition.leader_epoch,
            coordinator_cell=self.cell_of(*key),
            config=settings,
            leader=leader,
            leader_incarnation=partition.leader_incarnation if leader >= 0 else 0,
            copies=tuple(
                CopyPlace(one.copy_id, one.owner, self.directory_of(partition, one)) for one in partition.copies
            ),
            isr=tuple(partition.isr),
            elr=tuple(partition.elr),
            partition_epoch=partition.partition_epoch,
            predecessor=tail if tail != copy.copy_id and partition.copy(tail) is not None else -1,
            predecessor_board=predecessor.board if predecessor is not None else "",
            is_epoch_durable=key not in self.undurable,
            is_unclean=key in self.unclean,
        )

    def news(self, partitions: Iterable[Partition]) -> list[Effect]:
        """Tell those who lead what changed of their partitions."""
        return self.send(
            (partition, partition.leader, partition.leader_number)
            for partition in partitions
            if self.leadership(partition.key).standing is Standing.LEADING
            and self.live(partition.leader_number) is not None
            and partition.leader.owner == partition.leader_number
        )

    def send(self, asked: Iterable[tuple[Partition, Copy, int]]) -> list[Effect]:
        """Effects that send grants, (partition, copy, leader) each, to the copies' owners; a message holds so many."""
        settings: dict[int, dict[str, str]] = {}
        by_owner: dict[int, list[PartitionGrant]] = {}
        for partition, copy, leader in asked:
            if partition.topic_id not in settings:
                settings[partition.topic_id] = self.settings_of(self.image.topics[partition.topic_id])
            grant = self.grant_of(partition, copy, leader, settings=settings[partition.topic_id])
            by_owner.setdefault(copy.owner, []).append(grant)
        step = GRANTS_PER_MESSAGE_MAX
        return [
            SendGrant(number, self.processes[number].incarnation, grants[first : first + step])
            for number, grants in by_owner.items()
            for first in range(0, len(grants), step)
        ]


def _is_led(leadership: Leadership | None) -> bool:
    return leadership is not None and leadership.standing is Standing.LEADING


def is_worker(number: int) -> bool:
    """Whether the number is a worker's: workers are preferred for leading, replicas for following."""
    return process_name(number).startswith("worker-")
