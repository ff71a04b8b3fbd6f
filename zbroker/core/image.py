"""What the metadata log adds up to: topics, partitions, copies, who is in sync, epochs, producers' ids.

Guarantees: `apply` is the only way to change an image, takes only entries, and depends on nothing else, so replaying a
log gives the image that wrote it, and so does replaying its `snapshot` (`image_snapshot`). Entries are checked before
they are made; `apply` asserts what must hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from zbroker.core.entries import (
    EPOCHS_A_BOOT,
    Adopted,
    AnyEntry,
    Booted,
    ClusterCreated,
    Continued,
    CopiesChanged,
    CopyPlaced,
    Elected,
    Entry,
    InSync,
    IsrChanged,
    PartitionsAdded,
    Placement,
    ProducerIds,
    TopicConfigured,
    TopicCreated,
    TopicDeleted,
    TransactionalId,
)
from zbroker.core.image_facts import NOBODY, Copy, Key, Partition, Topic
from zbroker.core.image_snapshot import snapshot_of
from zbroker.ids import collision_key


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
        self.next_producer_id = 0
        self.producers: dict[str, tuple[int, int]] = {}  # transactional id -> (producer id, epoch)
        self.disk_loads: Counter[str] = Counter()
        self.in_transit: dict[Key, Partition] = {}  # partitions that get or lose copies
        self._by_copy: dict[int, Partition] = {}
        self._by_owner: dict[int, dict[Key, Partition]] = {}
        self._collisions: dict[str, str] = {}
        self._partition_count = 0

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
            case IsrChanged():
                self._sync(entry.changes)
            case Adopted():
                for copy_id in entry.copy_ids:
                    self._give(self._by_copy[copy_id], copy_id, entry.owner)
            case CopiesChanged():
                self._change_copies(entry)
            case ProducerIds():
                assert entry.next_producer_id > self.next_producer_id, "producer ids go back"
                self.next_producer_id = entry.next_producer_id
            case TransactionalId():
                self.producers[entry.name] = (entry.producer_id, entry.producer_epoch)
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
            partition.formers = []

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
            copies = [_copy(placement), *map(_copy, placement.further)]
            isr = [copy.copy_id for copy in copies]
            partition = Partition(topic.topic_id, placement.partition, copies, isr)
            topic.partitions.append(partition)
            self._partition_count += 1
            for copy in copies:
                self._take_in(partition, copy)

    def _take_in(self, partition: Partition, copy: Copy) -> None:
        assert copy.copy_id not in self._by_copy, f"copy id {copy.copy_id} a second time"
        self._by_copy[copy.copy_id] = partition
        self._own(partition, copy.owner)
        self.disk_loads[copy.disk] += 1
        self.next_copy_id = max(self.next_copy_id, copy.copy_id + 1)

    def _put_out(self, partition: Partition, copy: Copy) -> None:
        del self._by_copy[copy.copy_id]
        self._disown(partition, copy.owner)
        self.disk_loads[copy.disk] -= 1

    def _delete(self, topic_id: int) -> None:
        topic = self.topics.pop(topic_id)
        del self.by_name[topic.name]
        del self._collisions[collision_key(topic.name)]
        for partition in topic.partitions:
            for copy in partition.copies:
                self._put_out(partition, copy)
            self.in_transit.pop(partition.key, None)
            self._partition_count -= 1

    def _elect(self, entry: Elected) -> None:
        copy_ids = entry.copy_ids or [self.topics[one[0]].partitions[one[1]].copy_id for one in entry.partitions]
        for (topic_id, number, epoch), copy_id in zip(entry.partitions, copy_ids, strict=True):
            found = self.topics[topic_id].partitions[number]
            assert epoch > found.leader_epoch, f"epoch {epoch} after {found.leader_epoch}"
            found.leader_epoch = epoch
            found.leader_number, found.leader_incarnation = entry.number, entry.incarnation
            found.leader_copy = copy_id
            found.formers = []
        for former in entry.formers:
            self.topics[former.topic_id].partitions[former.partition].formers.append(former.incarnation)
        self._sync(entry.changes)

    def _sync(self, changes: Iterable[InSync]) -> None:
        for change in changes:
            found = self.topics[change.topic_id].partitions[change.partition]
            assert change.partition_epoch >= found.partition_epoch, "partition epochs go back"
            assert change.isr, "nobody is in sync"
            assert not set(change.isr) & set(change.elr), "in sync and eligible at once"
            assert {*change.isr, *change.elr} <= {copy.copy_id for copy in found.copies}, "a copy of another partition"
            found.partition_epoch = change.partition_epoch
            found.isr, found.elr = list(change.isr), list(change.elr)

    def _change_copies(self, entry: CopiesChanged) -> None:
        partition = self.topics[entry.topic_id].partitions[entry.partition]
        before = {copy.copy_id: copy for copy in partition.copies}
        for copy in partition.copies:
            if all(placed.copy_id != copy.copy_id for placed in entry.copies):
                self._put_out(partition, copy)
        partition.copies = []
        for placed in entry.copies:
            copy = before.get(placed.copy_id) or _copy(placed)
            if placed.copy_id not in before:
                self._take_in(partition, copy)
            partition.copies.append(copy)
        kept = [copy.copy_id for copy in partition.copies]
        partition.isr = [copy_id for copy_id in partition.isr if copy_id in kept]
        partition.elr = [copy_id for copy_id in partition.elr if copy_id in kept]
        assert partition.isr, "the last copy in sync was removed"
        assert entry.partition_epoch >= partition.partition_epoch, "partition epochs go back"
        partition.partition_epoch = entry.partition_epoch
        partition.adding, partition.removing = list(entry.adding), list(entry.removing)
        if partition.adding or partition.removing:
            self.in_transit[partition.key] = partition
        else:
            self.in_transit.pop(partition.key, None)

    def _own(self, partition: Partition, owner: int) -> None:
        owned = self._by_owner.setdefault(owner, {})
        assert partition.key not in owned, f"process {owner} has two copies of {partition.key}"
        owned[partition.key] = partition

    def _disown(self, partition: Partition, owner: int) -> None:
        owned = self._by_owner[owner]
        del owned[partition.key]
        if not owned:
            del self._by_owner[owner]

    def _give(self, partition: Partition, copy_id: int, owner: int) -> None:
        copy = partition.copy(copy_id)
        assert copy is not None
        self._disown(partition, copy.owner)
        copy.owner = owner
        self._own(partition, owner)

    def partition(self, topic_id: int, number: int) -> Partition | None:
        """A partition, or None when there is none of that name."""
        topic = self.topics.get(topic_id)
        return topic.partitions[number] if topic is not None and 0 <= number < len(topic.partitions) else None

    def partitions(self) -> Iterator[Partition]:
        """Every partition, by topic id and number."""
        for topic in self.topics.values():
            yield from topic.partitions

    def of_owner(self, number: int) -> list[Partition]:
        """The partitions that a process has a copy of."""
        return list(self._by_owner.get(number, {}).values())

    def owner_loads(self) -> Mapping[int, int]:
        """How many copies each process has, for those that have any."""
        return {number: len(owned) for number, owned in self._by_owner.items()}

    def partition_count(self) -> int:
        """How many partitions there are."""
        return self._partition_count

    def copy_ids(self) -> set[int]:
        """The copies that exist; a copy's directory of any lower number is left over from a deleted topic."""
        return set(self._by_copy)

    def collision_of(self, name: str) -> str | None:
        """The topic, if any, that a new topic of this name would collide with."""
        return self._collisions.get(collision_key(name))

    def snapshot(self) -> list[AnyEntry]:
        """Entries that give this image from nothing."""
        entries = snapshot_of(self.cluster_id, self.boot_id, self.topics.values())
        if self.next_producer_id:
            entries.append(ProducerIds(self.next_producer_id))
        entries.extend(TransactionalId(name, *found) for name, found in self.producers.items())
        entries.append(Continued(self.version, self.next_topic_id, self.next_copy_id))
        return entries

    def facts(self) -> dict[str, Any]:
        """Everything that two equal images have in common, for comparing them."""
        return {
            "cluster_id": self.cluster_id,
            "boot_id": self.boot_id,
            "version": self.version,
            "next_topic_id": self.next_topic_id,
            "next_copy_id": self.next_copy_id,
            "next_producer_id": self.next_producer_id,
            "producers": self.producers,
            "topics": self.topics,
            "names": sorted(self.by_name),
            "collisions": self._collisions,
            "owners": self._by_owner,
            "disks": self.disk_loads,
            "in_transit": sorted(self.in_transit),
        }


def _copy(placed: Placement | CopyPlaced) -> Copy:
    return Copy(placed.copy_id, placed.disk, placed.owner, placed.owner if placed.home < 0 else placed.home)


__all__ = ["NOBODY", "Copy", "Image", "Key", "Partition", "Topic"]
