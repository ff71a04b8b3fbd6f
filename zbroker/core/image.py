"""What the metadata log adds up to: topics, partitions, copies, epochs.

Guarantees: `apply` is the only way to change an image, takes only entries, and depends on nothing else, so replaying a
log gives the image that wrote it, and so does replaying its `snapshot`. Entries are checked before they are made;
`apply` asserts what must hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct

from zbroker.core.entries import (
    EPOCHS_A_BOOT,
    Adopted,
    AnyEntry,
    Booted,
    ClusterCreated,
    Continued,
    Elected,
    Entry,
    PartitionsAdded,
    Placement,
    TopicConfigured,
    TopicCreated,
    TopicDeleted,
)
from zbroker.ids import collision_key

Key = tuple[int, int]
NOBODY = -1


class Partition(Struct):
    """A partition's facts: its one copy and who has it, its newest leader epoch and who was granted that.

    Invariant: leader epochs grow. `leader_incarnation` is 0 when no process can have been granted `leader_epoch`.
    """

    topic_id: int
    partition: int
    copy_id: int
    disk: str
    owner: int
    leader_epoch: int = -1
    leader_number: int = NOBODY
    leader_incarnation: int = 0

    @property
    def key(self) -> Key:
        """(topic id, partition)."""
        return (self.topic_id, self.partition)


class Topic(Struct):
    """A topic's facts. Partitions are numbered from 0 without gaps."""

    topic_id: int
    name: str
    config: dict[str, str]
    partitions: list[Partition]
    is_altered: bool = False  # its settings are not those it was created with


class Image:
    """See the module."""

    def __init__(self) -> None:
        self.cluster_id = ""
        self.boot_id = ""
        self.version = 0
        self.topics: dict[int, Topic] = {}
        self.by_name: dict[str, Topic] = {}
        self.next_topic_id = 1
        self.next_copy_id = 1
        self.disk_loads: Counter[str] = Counter()
        self._by_copy: dict[int, Partition] = {}
        self._by_owner: dict[int, dict[Key, Partition]] = {}
        self._collisions: dict[str, str] = {}

    @classmethod
    def replayed(cls, entries: Iterable[Entry]) -> Image:
        """The image that these entries give."""
        image = cls()
        for entry in entries:
            image.apply(entry)
        return image

    def apply(self, entry: Entry) -> None:
        """Take one entry in."""
        self.version += 1
        match entry:
            case ClusterCreated():
                self.cluster_id = entry.cluster_id
            case Booted():
                self._boot(entry)
            case TopicCreated():
                self._create(entry)
            case PartitionsAdded():
                self._place(self.topics[entry.topic_id], entry.placements)
            case TopicConfigured():
                topic = self.topics[entry.topic_id]
                topic.config, topic.is_altered = dict(entry.config), True
            case TopicDeleted():
                self._delete(entry.topic_id)
            case Elected():
                self._elect(entry)
            case Adopted():
                for copy_id in entry.copy_ids:
                    self._give(self._by_copy[copy_id], entry.owner)
            case Continued():
                assert entry.next_topic_id >= self.next_topic_id, "topic ids go back"
                assert entry.next_copy_id >= self.next_copy_id, "copy ids go back"
                self.version = entry.version
                self.next_topic_id, self.next_copy_id = entry.next_topic_id, entry.next_copy_id
            case _:
                raise AssertionError(f"an entry that nobody applies: {entry}")

    def _boot(self, entry: Booted) -> None:
        assert entry.boot_id != self.boot_id, "the same boot twice"
        self.boot_id = entry.boot_id
        for partition in self.partitions():
            partition.leader_epoch += EPOCHS_A_BOOT
            partition.leader_number, partition.leader_incarnation = NOBODY, 0

    def _create(self, entry: TopicCreated) -> None:
        assert entry.topic_id >= self.next_topic_id, f"topic id {entry.topic_id} a second time"
        assert entry.name not in self.by_name, f"topic {entry.name} a second time"
        assert collision_key(entry.name) not in self._collisions, f"topic {entry.name} collides"
        topic = Topic(entry.topic_id, entry.name, dict(entry.config), [])
        self.topics[entry.topic_id] = self.by_name[entry.name] = topic
        self._collisions[collision_key(entry.name)] = entry.name
        self.next_topic_id = entry.topic_id + 1
        self._place(topic, entry.placements)

    def _place(self, topic: Topic, placements: list[Placement]) -> None:
        for placement in placements:
            assert placement.partition == len(topic.partitions), "partitions have gaps"
            assert placement.copy_id not in self._by_copy, f"copy id {placement.copy_id} a second time"
            partition = Partition(
                topic.topic_id, placement.partition, placement.copy_id, placement.disk, placement.owner
            )
            topic.partitions.append(partition)
            self._by_copy[placement.copy_id] = partition
            self._by_owner.setdefault(placement.owner, {})[partition.key] = partition
            self.disk_loads[placement.disk] += 1
            self.next_copy_id = max(self.next_copy_id, placement.copy_id + 1)

    def _delete(self, topic_id: int) -> None:
        topic = self.topics.pop(topic_id)
        del self.by_name[topic.name]
        del self._collisions[collision_key(topic.name)]
        for partition in topic.partitions:
            del self._by_copy[partition.copy_id]
            self._take(partition)
            self.disk_loads[partition.disk] -= 1

    def _elect(self, entry: Elected) -> None:
        for topic_id, number, epoch in entry.partitions:
            found = self.topics[topic_id].partitions[number]
            assert epoch > found.leader_epoch, f"epoch {epoch} after {found.leader_epoch}"
            found.leader_epoch = epoch
            found.leader_number, found.leader_incarnation = entry.number, entry.incarnation

    def _take(self, partition: Partition) -> None:
        owned = self._by_owner[partition.owner]
        del owned[partition.key]
        if not owned:
            del self._by_owner[partition.owner]

    def _give(self, partition: Partition, owner: int) -> None:
        self._take(partition)
        partition.owner = owner
        self._by_owner.setdefault(owner, {})[partition.key] = partition

    def partition(self, topic_id: int, number: int) -> Partition | None:
        """A partition, or None when there is none of that name."""
        topic = self.topics.get(topic_id)
        return topic.partitions[number] if topic is not None and 0 <= number < len(topic.partitions) else None

    def partitions(self) -> Iterator[Partition]:
        """Every partition, by topic id and number."""
        for topic in self.topics.values():
            yield from topic.partitions

    def of_owner(self, number: int) -> list[Partition]:
        """The partitions whose copy a process has."""
        return list(self._by_owner.get(number, {}).values())

    def owner_loads(self) -> Mapping[int, int]:
        """How many copies each process has, for those that have any."""
        return {number: len(owned) for number, owned in self._by_owner.items()}

    def partition_count(self) -> int:
        """How many partitions there are."""
        return len(self._by_copy)

    def copy_ids(self) -> set[int]:
        """The copies that exist; a copy's directory of any lower number is left over from a deleted topic."""
        return set(self._by_copy)

    def collision_of(self, name: str) -> str | None:
        """The topic, if any, that a new topic of this name would collide with."""
        return self._collisions.get(collision_key(name))

    def snapshot(self) -> list[AnyEntry]:
        """Entries that give this image from nothing."""
        entries: list[AnyEntry] = [ClusterCreated(self.cluster_id)]
        if self.boot_id:
            entries.append(Booted(self.boot_id))
        elections: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for topic in self.topics.values():
            placements = [Placement(p.partition, p.copy_id, p.disk, p.owner) for p in topic.partitions]
            entries.append(TopicCreated(topic.topic_id, topic.name, topic.config, placements))
            if topic.is_altered:
                entries.append(TopicConfigured(topic.topic_id, topic.config))
            for p in topic.partitions:
                if p.leader_epoch >= 0:
                    by = elections.setdefault((p.leader_number, p.leader_incarnation), [])
                    by.append((p.topic_id, p.partition, p.leader_epoch))
        entries.extend(Elected(number, incarnation, found) for (number, incarnation), found in elections.items())
        entries.append(Continued(self.version, self.next_topic_id, self.next_copy_id))
        return entries

    def facts(self) -> dict[str, object]:
        """Everything that two equal images have in common, for comparing them."""
        return {
            "cluster_id": self.cluster_id,
            "boot_id": self.boot_id,
            "version": self.version,
            "next_topic_id": self.next_topic_id,
            "next_copy_id": self.next_copy_id,
            "topics": self.topics,
            "names": sorted(self.by_name),
            "collisions": self._collisions,
            "owners": self._by_owner,
            "disks": self.disk_loads,
        }
