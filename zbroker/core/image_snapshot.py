"""The entries that give an image from nothing: what a metadata log is written anew with.

Each fact is put into the entry that live events would have used for it, so `Image.apply` knows no second form of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from zbroker.core.entries import (
    AnyEntry,
    Booted,
    ClusterCreated,
    CopiesChanged,
    CopyPlaced,
    Elected,
    Former,
    InSync,
    IsrChanged,
    Placement,
    TopicConfigured,
    TopicCreated,
)
from zbroker.core.image_facts import Partition, Topic


def snapshot_of(cluster_id: str, boot_id: str, topics: Iterable[Topic]) -> list[AnyEntry]:
    """Entries of a cluster and its topics."""
    entries: list[AnyEntry] = [ClusterCreated(cluster_id)]
    if boot_id:
        entries.append(Booted(boot_id))
    known = list(topics)
    for topic in known:
        placements = [_placement(partition) for partition in topic.partitions]
        entries.append(TopicCreated(topic.topic_id, topic.name, topic.config, placements))
        if topic.is_altered:
            entries.append(TopicConfigured(topic.topic_id, topic.config))
    partitions = [partition for topic in known for partition in topic.partitions]
    entries += [
        CopiesChanged(p.topic_id, p.partition, 0, _placed(p), p.adding, p.removing)
        for p in partitions
        if p.adding or p.removing
    ]
    entries += _elections(partitions)
    changes = [
        InSync(p.topic_id, p.partition, p.partition_epoch, p.isr, p.elr)
        for p in partitions
        if p.partition_epoch or p.elr or p.isr != [copy.copy_id for copy in p.copies]
    ]
    if changes:
        entries.append(IsrChanged(changes))
    return entries


def _placed(partition: Partition) -> list[CopyPlaced]:
    return [
        CopyPlaced(copy.copy_id, copy.disk, copy.owner, -1 if copy.home == copy.owner else copy.home)
        for copy in partition.copies
    ]


def _placement(partition: Partition) -> Placement:
    first, *further = _placed(partition)
    return Placement(partition.partition, first.copy_id, first.disk, first.owner, tuple(further), first.home)


def _elections(partitions: list[Partition]) -> list[AnyEntry]:
    elected: dict[tuple[int, int], list[Partition]] = {}
    for partition in partitions:
        if partition.leader_epoch >= 0:
            elected.setdefault((partition.leader_number, partition.leader_incarnation), []).append(partition)
    return [
        Elected(
            number,
            incarnation,
            [(p.topic_id, p.partition, p.leader_epoch) for p in found],
            copy_ids=[p.leader_copy for p in found],
            formers=[Former(p.topic_id, p.partition, incarnation) for p in found for incarnation in p.formers],
        )
        for (number, incarnation), found in elected.items()
    ]
