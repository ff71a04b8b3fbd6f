"""What members and people are told of a group, from memory. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Mapping

from zbroker import ids
from zbroker.clock import NS_PER_MS
from zbroker.core.group import Group, Surroundings
from zbroker.core.group_member import NO_FILE, Member
from zbroker.core.group_offsets import Committed
from zbroker.core.sticky import Key
from zbroker.wire.group_messages import (
    AssignedPartition,
    AssignedTopic,
    CommittedOffset,
    GroupAssignment,
    GroupDescription,
    MemberInfo,
)


def assignment(around: Surroundings, group: Group, member: Member, topics_version: int) -> GroupAssignment:
    """The whole of what a member may read."""
    found: dict[int, AssignedTopic] = {}
    for (topic_id, number), holding in sorted(member.holdings.items()):
        topic = around.image.topics.get(topic_id)
        if holding.is_revoked or topic is None:
            continue
        entry = found.setdefault(topic_id, AssignedTopic(topic_id, topic.name, []))
        start = holding.start or Committed(-1)
        place = (holding.file, holding.slot) if member.incarnation else (NO_FILE, NO_FILE)
        entry.partitions.append(AssignedPartition(number, *place, start.offset, start.leader_epoch, start.metadata))
    return GroupAssignment(
        member_epoch=member.epoch,
        group_epoch=group.epoch,
        heartbeat_interval_ms=around.config.heartbeat_interval_ms,
        state=group.state,
        assignor=group.assignor,
        topics_version=topics_version,
        members=len(group.members),
        files=around.slots.files(group.group_id, member.member_id) if member.incarnation else [],
        topics=list(found.values()),
        work=group.work_for(member),
    )


def committed(around: Surroundings, group_id: str, group: Group | None) -> dict[Key, Committed]:
    """What a group has committed, with what lies in its members' slots and is not in the log yet."""
    found = dict(around.offsets.of(group_id))
    if group is None:
        return found
    for key, closing in group.closing.items():
        if closing.entry is not None and closing.entry.committed is not None:
            found[key] = closing.entry.committed
    for member in group.members.values():
        for key, holding in member.holdings.items():
            if holding.file == NO_FILE:
                continue
            offset = around.slots.committed(group_id, member.member_id, holding.file, holding.slot)
            known = found.get(key)
            if offset >= 0 and (known is None or known.offset != offset):
                found[key] = Committed(offset, committed_ms=around.wall_ms)
    return found


def committed_offsets(around: Surroundings, offsets: Mapping[Key, Committed]) -> list[CommittedOffset]:
    """The same for the wire, by topic id and partition."""
    return [
        CommittedOffset(topic_name(around, key[0]), *key, one.offset, one.leader_epoch, one.metadata, one.committed_ms)
        for key, one in sorted(offsets.items())
    ]


def topic_name(around: Surroundings, topic_id: int) -> str:
    """The name of a topic that is there, or was."""
    topic = around.image.topics.get(topic_id)
    return topic.name if topic is not None else around.offsets.topic_name(topic_id)


def description(around: Surroundings, group_id: str, group: Group | None, now_ns: int) -> GroupDescription:
    """A group with its members and offsets."""
    members = [] if group is None else [_member_info(one, now_ns) for one in group.members.values()]
    offsets = committed_offsets(around, committed(around, group_id, group))
    shown = group or Group(group_id, around)
    return GroupDescription(group_id, 0, shown.state, shown.epoch, shown.assignor, members, offsets)


def _member_info(member: Member, now_ns: int) -> MemberInfo:
    return MemberInfo(
        member_id=member.member_id,
        instance_id=member.instance_id,
        client_id=member.client_id,
        pid=ids.pid_of(member.incarnation) if member.incarnation else 0,
        member_epoch=member.epoch,
        topics=list(member.topics),
        pattern=member.pattern,
        owned=sorted(key for key, one in member.holdings.items() if not one.is_revoked),
        revoking=sorted(key for key, one in member.holdings.items() if one.is_revoked),
        target=sorted(member.target),
        polled_ago_ms=max(0, now_ns - member.polled_ns) // NS_PER_MS,
        is_local=bool(member.incarnation),
        is_away=member.is_away,
    )
