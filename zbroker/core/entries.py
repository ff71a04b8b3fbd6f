"""Entries of the metadata log: every fact that the broker must not forget, in the order in which it became one.

An entry is a msgpack map with its `type`; how entries stand in the file is said in `workers/metadata_log.py`.

Fields are only ever added, with a default. An entry of an unknown type was written by a newer broker: the log is then
refused as a whole, because what would be missing cannot be guessed. Layout version: the first entry's `layout`.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

LAYOUT: Final = 1

DATA_DISK: Final = "data"
MEMORY_DISK: Final = "memory"


class Entry(msgspec.Struct, tag_field="type", tag=True, frozen=True):
    """Base of all entries."""


class ClusterCreated(Entry, frozen=True):
    """The first entry of every log."""

    cluster_id: str
    layout: int = LAYOUT


class Booted(Entry, frozen=True):
    """The host was started anew: every process of before is gone, and so is what was not synced then.

    An election reaches the disk at most a moment after its grant, so epochs above the last one in the log may have been
    used. They go on `EPOCHS_A_BOOT` higher, which nothing can have reached in that moment.
    """

    boot_id: str


EPOCHS_A_BOOT: Final = 100


class CopyPlaced(msgspec.Struct, frozen=True, omit_defaults=True):
    """A copy of a partition, as in `Placement`."""

    copy_id: int
    disk: str
    owner: int
    home: int = -1


class Placement(msgspec.Struct, frozen=True, omit_defaults=True):
    """A new partition: its preferred copy's permanent number, the disk it lies on, which process has it.

    `disk` is "data" (the data directory), "memory", or the path of a further data directory. The data directory itself
    is not named: it may be moved. `further` are the other copies, each of another process. All of them are in sync:
    they are empty. `home` is the process that a copy returns to when another has adopted it; -1: its owner.
    """

    partition: int
    copy_id: int
    disk: str
    owner: int
    further: tuple[CopyPlaced, ...] = ()
    home: int = -1


class TopicCreated(Entry, frozen=True):
    """A topic and its first partitions. Topic ids begin at 1 and are never used again; neither are copy ids."""

    topic_id: int
    name: str
    config: dict[str, str]
    placements: list[Placement]


class PartitionsAdded(Entry, frozen=True):
    """Further partitions of a topic."""

    topic_id: int
    placements: list[Placement]


class TopicConfigured(Entry, frozen=True):
    """The topic's own settings from now on, all of them."""

    topic_id: int
    config: dict[str, str]


class TopicDeleted(Entry, frozen=True):
    """The topic is gone; its files may still be on their way out."""

    topic_id: int


class InSync(msgspec.Struct, frozen=True):
    """Which copies of a partition are in sync (`isr`), and which others may lead all the same (`elr`, KIP-966).

    `partition_epoch` numbers these changes; it is higher than that of the change before.
    """

    topic_id: int
    partition: int
    partition_epoch: int
    isr: list[int]
    elr: list[int]


class IsrChanged(Entry, frozen=True):
    """Copies fell behind, or caught up, or their processes ended."""

    changes: list[InSync]


class Former(msgspec.Struct, frozen=True):
    """A live process that led a partition when another was elected, and may not know it yet."""

    topic_id: int
    partition: int
    incarnation: int


class Elected(Entry, frozen=True, omit_defaults=True):
    """A leader, before it is granted: (topic id, partition, leader epoch) for each partition, all of one process.

    `copy_ids` names the copy that leads, partition by partition (absent in old logs: the only one). `changes` are what
    becomes of the copies in sync with this election. `formers`: who must say first that it does not lead any more.
    """

    number: int
    incarnation: int
    partitions: list[tuple[int, int, int]]
    copy_ids: list[int] = []
    changes: list[InSync] = []
    formers: list[Former] = []


class Adopted(Entry, frozen=True):
    """Copies that another process has from now on: copy ids."""

    owner: int
    copy_ids: list[int]


class CopiesChanged(Entry, frozen=True):
    """All copies that a partition has from now on, the preferred one first.

    `adding` are those of them that are being filled, `removing` those that go when all of `adding` are in sync. A copy
    that is not named any more is neither in sync nor eligible, and its files are to be removed.
    """

    topic_id: int
    partition: int
    partition_epoch: int
    copies: list[CopyPlaced]
    adding: list[int]
    removing: list[int]


class ProducerIds(Entry, frozen=True):
    """Producer ids below `next_producer_id` may have been given out: they are given out in blocks."""

    next_producer_id: int


class TransactionalId(Entry, frozen=True):
    """A named producer's id, and its newest epoch, which fences the ones before."""

    name: str
    producer_id: int
    producer_epoch: int


class Continued(Entry, frozen=True):
    """The last entry of a snapshot: what the entries that it replaces had counted to."""

    version: int
    next_topic_id: int
    next_copy_id: int


AnyEntry: TypeAlias = (
    ClusterCreated
    | Booted
    | TopicCreated
    | PartitionsAdded
    | TopicConfigured
    | TopicDeleted
    | Elected
    | IsrChanged
    | Adopted
    | CopiesChanged
    | ProducerIds
    | TransactionalId
    | Continued
)
