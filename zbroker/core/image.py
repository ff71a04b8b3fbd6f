"""What the metadata log adds up to: topics, partitions, copies, epochs.

Guarantees: `apply` is the only way to change an image, takes only entries, and depends on nothing else, so replaying a
log gives the image that wrote it. Entries are checked before they are made; `apply` asserts what must hold.
"""

from __future__ import annotations

from collections.abc import Iterator

from zbroker.core.entries import (
    Adopted,
    AnyEntry,
    ClusterCreated,
    Elected,
    Entry,
    PartitionsAdded,
    Placement,
    TopicConfigured,
    TopicCreated,
    TopicDeleted,
)
from zbroker.ids import collision_key


class Partition:
    """A partition's facts: its one copy and who has it, its newest leader epoch and who was granted that."""

    __slots__ = ("copy_id", "directory", "leader_epoch", "leader_incarnation", "owner", "partition", "topic_id")

    def __init__(self, topic_id: int, placement: Placement) -> None:
        self.topic_id = topic_id
        self.partition = placement.partition
        self.copy_id = placement.copy_id
        self.directory = placement.directory
        self.owner = placement.owner
        self.leader_epoch = -1
        self.leader_incarnation = 0

    @property
    def key(self) -> tuple[int, int]:
        """(topic id, partition)."""
        return (self.topic_id, self.partition)


class Topic:
    """A topic's facts. Partitions are numbered from 0 without gaps."""

    __slots__ = ("config", "name", "partitions", "topic_id")

    def __init__(self, topic_id: int, name: str, config: dict[str, str]) -> None:
        self.topic_id = topic_id
        self.name = name
        self.config = config
        self.partitions: list[Partition] = []


class Image:
    """See the module."""

    def __init__(self) -> None:
        self.cluster_id = ""
        self.version = 0
        self.topics: dict[int, Topic] = {}
        self.by_name: dict[str, Topic] = {}
        self.next_topic_id = 1
        self.next_copy_id = 1
        self._by_copy: dict[int, Partition] = {}
        self._collisions: dict[str, str] = {}

    def apply(self, entry: Entry) -> None:
        """Take one entry in."""
        self.version += 1
        match entry:
            case ClusterCreated():
                self.cluster_id = entry.cluster_id
            case TopicCreated():
                assert entry.topic_id >= self.next_topic_id, f"topic id {entry.topic_id} a second time"
                assert entry.name not in self.by_name, f"topic {entry.name} a second time"
                topic = Topic(entry.topic_id, entry.name, dict(entry.config))
                self.topics[entry.topic_id] = self.by_name[entry.name] = topic
                self._collisions[collision_key(entry.name)] = entry.name
                self.next_topic_id = entry.topic_id + 1
                self._add(topic, entry.placements)
            case PartitionsAdded():
                self._add(self.topics[entry.topic_id], entry.placements)
            case TopicConfigured():
                self.topics[entry.topic_id].config = dict(entry.config)
            case TopicDeleted():
                topic = self.topics.pop(entry.topic_id)
                del self.by_name[topic.name]
                del self._collisions[collision_key(topic.name)]
                for partition in topic.partitions:
                    del self._by_copy[partition.copy_id]
            case Elected():
                for topic_id, number, epoch in entry.partitions:
                    found = self.topics[topic_id].partitions[number]
                    assert epoch > found.leader_epoch, f"epoch {epoch} after {found.leader_epoch}"
                    found.leader_epoch = epoch
                    found.leader_incarnation = entry.incarnation
            case Adopted():
                for copy_id in entry.copy_ids:
                    self._by_copy[copy_id].owner = entry.owner
            case _:
                raise AssertionError(f"an entry that nobody applies: {entry}")

    def _add(self, topic: Topic, placements: list[Placement]) -> None:
        for placement in placements:
            assert placement.partition == len(topic.partitions), "partitions have no gaps"
            assert placement.copy_id >= self.next_copy_id, f"copy id {placement.copy_id} a second time"
            partition = Partition(topic.topic_id, placement)
            topic.partitions.append(partition)
            self._by_copy[placement.copy_id] = partition
            self.next_copy_id = placement.copy_id + 1

    def partition(self, topic_id: int, number: int) -> Partition | None:
        """A partition, or None when there is none of that name."""
        topic = self.topics.get(topic_id)
        return topic.partitions[number] if topic is not None and 0 <= number < len(topic.partitions) else None

    def partitions(self) -> Iterator[Partition]:
        """Every partition, by topic id and number."""
        for topic in self.topics.values():
            yield from topic.partitions

    def partition_count(self) -> int:
        """How many partitions there are."""
        return len(self._by_copy)

    def copy_ids(self) -> set[int]:
        """The copies that exist; a copy's directory of any other number is left over from a deleted topic."""
        return set(self._by_copy)

    def collision_of(self, name: str) -> str | None:
        """The topic, if any, that a new topic of this name would collide with."""
        return self._collisions.get(collision_key(name))

    def snapshot(self) -> list[AnyEntry]:
        """Entries that give this image from nothing, but for its version."""
        entries: list[AnyEntry] = [ClusterCreated(self.cluster_id)]
        elections: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for topic in self.topics.values():
            placements = [Placement(p.partition, p.copy_id, p.directory, p.owner) for p in topic.partitions]
            entries.append(TopicCreated(topic.topic_id, topic.name, topic.config, placements))
            for p in topic.partitions:
                if p.leader_epoch >= 0:
                    by = elections.setdefault((p.owner, p.leader_incarnation), [])
                    by.append((p.topic_id, p.partition, p.leader_epoch))
        entries.extend(Elected(number, incarnation, found) for (number, incarnation), found in elections.items())
        return entries
