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


class Placement(msgspec.Struct, frozen=True):
    """A new copy of a partition: its permanent number, the disk it lies on, which process has it.

    `disk` is "data" (the data directory), "memory", or the path of a further data directory. The data directory itself
    is not named: it may be moved.
    """

    partition: int
    copy_id: int
    disk: str
    owner: int


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


class Elected(Entry, frozen=True):
    """A leader, before it is granted: (topic id, partition, leader epoch) for each partition, all of one process."""

    number: int
    incarnation: int
    partitions: list[tuple[int, int, int]]


class Adopted(Entry, frozen=True):
    """Copies that another process has from now on: copy ids."""

    owner: int
    copy_ids: list[int]


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
    | Adopted
    | Continued
)
