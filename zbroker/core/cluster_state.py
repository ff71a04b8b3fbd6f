"""What the coordinator knows: the image that the log gives, and beside it what only this run has learned.

It decides nothing: `elections` and `topic_changes` do, and nobody else changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Final

from msgspec import Struct

from zbroker.config.schema import ServerConfig
from zbroker.config.topic import effective, to_texts
from zbroker.core.entries import DATA_DISK, MEMORY_DISK
from zbroker.core.image import Image, Key, Partition, Topic
from zbroker.ids import partition_directory_name, process_name, worker_number
from zbroker.wire.inner_messages import PartitionGrant
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
        self.leaderships: dict[Key, Leadership] = {}
        self.failed: set[Key] = set()

    def wanted(self) -> list[int]:
        """The worker processes that should run."""
        if self.fixed_workers:
            return [worker_number(index) for index in range(self.fixed_workers)]
        return sorted(self.image.owner_loads())

    def live(self, number: int) -> Process | None:
        """The process of this number, if it is registered and lives."""
        found = self.processes.get(number)
        return found if found is not None and found.is_live else None

    def leadership(self, key: Key) -> Leadership:
        """How a partition's leadership stands."""
        return self.leaderships.get(key, VACANT)

    def set_leadership(self, key: Key, leadership: Leadership) -> None:
        """Note how it stands from now on."""
        self.leaderships[key] = leadership
        if leadership.standing is Standing.FAILED:
            self.failed.add(key)
        else:
            self.failed.discard(key)

    def forget(self, key: Key) -> None:
        """The partition is gone."""
        self.leaderships.pop(key, None)
        self.failed.discard(key)

    def is_settled(self, key: Key) -> bool:
        """Whether nothing more will happen to a partition's leadership soon. True of a partition that is gone."""
        if self.image.partition(*key) is None:
            return True
        return self.leadership(key).standing in (Standing.LEADING, Standing.FAILED)

    def is_free(self, partition: Partition) -> bool:
        """Whether no process but its owner can still hold a partition: proof of death, not silence."""
        held_by = partition.leader_incarnation
        if held_by not in self.watched:
            return True
        owner = self.processes.get(partition.owner)
        return owner is not None and owner.incarnation == held_by

    def directory_of(self, partition: Partition) -> str:
        """Where a partition's files lie. Made of numbers and of directories from the settings only."""
        name = partition_directory_name(partition.topic_id, partition.partition)
        return f"{self.site.root_of(partition.disk)}/{partition.copy_id}/{name}"

    def settings_of(self, topic: Topic) -> dict[str, str]:
        """A topic's settings in force, as a grant carries them."""
        return to_texts(effective(self.config.topics, topic.config))

    def grants_of(self, partitions: Iterable[Partition]) -> list[list[PartitionGrant]]:
        """The grants of partitions' newest epochs, in portions of a message each."""
        grants: list[PartitionGrant] = []
        settings: dict[int, dict[str, str]] = {}
        for partition in partitions:
            topic = self.image.topics[partition.topic_id]
            if topic.topic_id not in settings:
                settings[topic.topic_id] = self.settings_of(topic)
            grants.append(
                PartitionGrant(
                    topic_id=partition.topic_id,
                    partition=partition.partition,
                    topic=topic.name,
                    copy_id=partition.copy_id,
                    directory=self.directory_of(partition),
                    leader_epoch=partition.leader_epoch,
                    coordinator_cell=self.cell_of(*partition.key),
                    config=settings[topic.topic_id],
                )
            )
        step = GRANTS_PER_MESSAGE_MAX
        return [grants[first : first + step] for first in range(0, len(grants), step)]
