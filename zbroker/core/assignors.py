"""Who of a group reads which partition: range, roundrobin, sticky, single-active.

Guarantees, for each of them: every partition of every topic that anybody subscribes to is given to exactly one member,
who subscribes to its topic; the same input gives the same result, whatever the order of partitions in `owned`.

`members` come in the order in which they joined. Range and roundrobin order them by instance id where they have one,
else by member id, as Kafka does, so that a static member keeps its place. Sticky stands in `sticky`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from zbroker.core.sticky import Key, sticky

Target: TypeAlias = dict[str, list[Key]]


class Candidate(NamedTuple):
    """A member: the ids of the topics that it subscribes to, and what it owns, (topic id, partition)."""

    member_id: str
    instance_id: str
    topics: frozenset[int]
    owned: frozenset[Key]


Assignor: TypeAlias = Callable[[Sequence[Candidate], Mapping[int, int]], Target]


def _in_order(members: Sequence[Candidate]) -> list[Candidate]:
    return sorted(members, key=lambda one: (one.instance_id == "", one.instance_id or one.member_id, one.member_id))


def assign_range(members: Sequence[Candidate], partition_counts: Mapping[int, int]) -> Target:
    """Topic by topic, a stretch of neighbouring partitions for each member; the first ones get one more."""
    target: Target = {one.member_id: [] for one in members}
    ordered = _in_order(members)
    for topic_id, count in sorted(partition_counts.items()):
        readers = [one for one in ordered if topic_id in one.topics]
        if not readers:
            continue
        share, rest = divmod(count, len(readers))
        first = 0
        for index, one in enumerate(readers):
            end = first + share + (index < rest)
            target[one.member_id].extend((topic_id, number) for number in range(first, end))
            first = end
    return target


def assign_roundrobin(members: Sequence[Candidate], partition_counts: Mapping[int, int]) -> Target:
    """All partitions of all topics in a row, dealt out like cards to those who subscribe."""
    target: Target = {one.member_id: [] for one in members}
    ordered = _in_order(members)
    turn = 0
    for topic_id, count in sorted(partition_counts.items()):
        if not any(topic_id in one.topics for one in ordered):
            continue
        for number in range(count):
            while topic_id not in ordered[turn % len(ordered)].topics:
                turn += 1
            target[ordered[turn % len(ordered)].member_id].append((topic_id, number))
            turn += 1
    return target


def assign_sticky(members: Sequence[Candidate], partition_counts: Mapping[int, int]) -> Target:
    """Balanced, and among all balanced ones the fewest partitions change hands: see `sticky`."""
    topics = {one.member_id: one.topics for one in members}
    owned = {one.member_id: one.owned for one in members}
    return sticky(topics, owned, partition_counts)


def assign_single_active(members: Sequence[Candidate], partition_counts: Mapping[int, int]) -> Target:
    """Each topic whole to one member: who owns most of it, else who joined first. The others stand by."""
    target: Target = {one.member_id: [] for one in members}
    for topic_id, count in sorted(partition_counts.items()):
        readers = [one for one in members if topic_id in one.topics]
        if not readers:
            continue
        active = max(readers, key=lambda one: sum(key[0] == topic_id for key in one.owned))
        target[active.member_id].extend((topic_id, number) for number in range(count))
    return target


ASSIGNORS: Final[dict[str, Assignor]] = {
    "sticky": assign_sticky,
    "range": assign_range,
    "roundrobin": assign_roundrobin,
    "single-active": assign_single_active,
}


def check_target(
    target: Mapping[str, Sequence[Key]], members: Sequence[Candidate], partition_counts: Mapping[int, int]
) -> str:
    """What is wrong with an assignment that somebody else has made; "" when nothing is."""
    subscribed = {one.member_id: one.topics for one in members}
    given: set[Key] = set()
    for member_id, keys in target.items():
        if member_id not in subscribed:
            return f"it names {member_id!r}, who is no member"
        for topic_id, number in keys:
            if not 0 <= number < partition_counts.get(topic_id, 0):
                return f"it names partition {number} of topic {topic_id}, which is not there"
            if topic_id not in subscribed[member_id]:
                return f"it gives topic {topic_id} to {member_id!r}, who does not subscribe to it"
            if (topic_id, number) in given:
                return f"it gives partition {number} of topic {topic_id} twice"
            given.add((topic_id, number))
    wanted = {topic_id for topics in subscribed.values() for topic_id in topics}
    missing = sum(count for topic_id, count in partition_counts.items() if topic_id in wanted) - len(given)
    return f"it leaves {missing} partitions without a reader" if missing else ""
