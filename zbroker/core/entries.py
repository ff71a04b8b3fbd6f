"""Entries of the metadata log: every fact that the broker must not forget, in the order in which it became one.

    frame in the file: length u32 | CRC-32C of the body u32 | body: msgpack map with its `type`            little-endian

Fields are only ever added, with a default. An entry of an unknown type is written by a newer broker: the log is then
refused as a whole, because what would be missing cannot be guessed. Layout version: the first entry's `layout`.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

LAYOUT = 1


class Entry(msgspec.Struct, tag_field="type", tag=True, frozen=True):
    """Base of all entries."""


class ClusterCreated(Entry, frozen=True):
    """The first entry of every log."""

    cluster_id: str
    layout: int = LAYOUT


class Placement(msgspec.Struct, frozen=True):
    """A new copy of a partition: its permanent number, where its files are, which process has it."""

    partition: int
    copy_id: int
    directory: str
    owner: int


class TopicCreated(Entry, frozen=True):
    """A topic and its first partitions. Topic ids begin at 1 and are never used again."""

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


AnyEntry: TypeAlias = (
    ClusterCreated | TopicCreated | PartitionsAdded | TopicConfigured | TopicDeleted | Elected | Adopted
)
