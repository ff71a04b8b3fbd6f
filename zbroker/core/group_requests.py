"""Committing, looking, and what administrators ask of groups. See `groups` for when an answer is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from zbroker.core import effects as do
from zbroker.core import group_answers as answers
from zbroker.core.effects import Effect
from zbroker.core.group import Group
from zbroker.core.group_joining import check_name
from zbroker.core.group_member import NO_FILE, Member
from zbroker.core.group_offsets import Committed, OffsetEntry
from zbroker.core.sticky import Key
from zbroker.errors import (
    BrokerError,
    FencedInstanceIdError,
    FencedMemberEpochError,
    GroupIdNotFoundError,
    IllegalGenerationError,
    InvalidRequestError,
    NonEmptyGroupError,
    OffsetMetadataTooLargeError,
    PolicyViolationError,
    UnknownMemberIdError,
    UnknownTopicOrPartitionError,
)
from zbroker.wire.group_messages import (
    AlterGroupOffsets,
    CommittedOffset,
    DeleteGroups,
    DescribeGroups,
    GroupDescription,
    GroupInfo,
    GroupResult,
    GroupResults,
    GroupsDescribed,
    GroupsListed,
    ListGroups,
    OffsetCommit,
    OffsetFetch,
    OffsetResult,
    OffsetResults,
    OffsetsFetched,
    OffsetToCommit,
    RemoveGroupMembers,
)
from zbroker.wire.messages import Message

if TYPE_CHECKING:
    from zbroker.core.groups import Groups

MS_PER_MINUTE: Final = 60_000
OFFSET_MAX: Final = 2**62
REMOVE: Final = -1


class GroupRequests:
    """See the module."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._around = groups.around

    def serve(self, request: object, body: Message, now_ns: int) -> None:
        """Answer, now or when what it needs is in the log. Raises BrokerError, and has changed nothing."""
        match body:
            case OffsetCommit():
                self._commit(request, body)
            case OffsetFetch():
                self._groups.reply(do.Reply(request, self._fetch(body)))
            case ListGroups():
                self._groups.reply(do.Reply(request, self._list(body)))
            case DescribeGroups():
                found = [self._describe(group_id, now_ns) for group_id in body.group_ids]
                self._groups.reply(do.Reply(request, GroupsDescribed(found)))
            case AlterGroupOffsets():
                self._alter(request, body)
            case DeleteGroups():
                self._delete(request, body)
            case RemoveGroupMembers():
                self._remove_members(request, body)
            case _:
                raise InvalidRequestError(f"groups do not answer {type(body).__name__}")

    def _commit(self, request: object, body: OffsetCommit) -> None:
        group = self._groups.groups.get(body.group_id)
        if body.member_id:
            self._commit_of_member(request, body, group)
            return
        check_name(body.group_id, "group_id")
        if group is not None and group.members:
            raise UnknownMemberIdError(f"group {body.group_id} has members: only they commit")
        self._set_offsets(request, body.group_id, body.offsets, durable=body.durable, may_remove=False)

    def _commit_of_member(self, request: object, body: OffsetCommit, group: Group | None) -> None:
        member = group.members.get(body.member_id) if group is not None else None
        if group is None or member is None:
            raise UnknownMemberIdError(f"member {body.member_id} is not in group {body.group_id}")
        if body.member_epoch > member.epoch:
            raise FencedMemberEpochError(f"epoch {body.member_epoch} of member {body.member_id} is not known")
        results: list[OffsetResult] = []
        entries = self.stored(group, member) if body.durable and not body.offsets else []
        for one in body.offsets:
            key = self._key_of(one)
            error: BrokerError | None
            if key is None:
                error = UnknownTopicOrPartitionError(f"{one.topic or one.topic_id}:{one.partition} does not exist")
            else:
                error = self._error_of(one)
                if error is None:
                    error = self._ownership_error(member, body.member_epoch, key, one)
                if error is None:
                    entries.append(self._entry_of_member(group, member, key, one))
            results.append(_result(one, key, error))
        self._groups.commit(entries, durable=body.durable, then=_answer(request, results))

    def _ownership_error(self, member: Member, epoch: int, key: Key, one: OffsetToCommit) -> BrokerError | None:
        """Why the member may not commit this: another has the partition, or it was sent when the member had it before
        and has come late, after others may have read on."""
        name = f"{one.topic or key[0]}-{key[1]}"
        holding = member.holdings.get(key)
        if holding is None:
            return IllegalGenerationError(f"{name} is not this member's")
        if epoch < holding.granted_epoch:
            return IllegalGenerationError(f"{name} was granted in epoch {holding.granted_epoch}; this is of {epoch}")
        return None

    def _entry_of_member(self, group: Group, member: Member, key: Key, one: OffsetToCommit) -> OffsetEntry:
        """What counts is the slot: the same offset there confirms the metadata, another one came later."""
        named = Committed(one.offset, one.leader_epoch, one.metadata, self._around.wall_ms)
        holding = member.holdings[key]
        if holding.file != NO_FILE:
            slots = self._around.slots
            stored = slots.committed(group.group_id, member.member_id, holding.file, holding.slot)
            if stored != one.offset and stored >= 0:
                named = Committed(stored, committed_ms=self._around.wall_ms)
        return group.entry(key, named)

    def stored(self, group: Group, member: Member) -> list[OffsetEntry]:
        """Everything in a member's slots that is not in the log."""
        found = []
        for key, holding in member.holdings.items():
            if holding.file == NO_FILE:
                continue
            offset = self._around.slots.committed(group.group_id, member.member_id, holding.file, holding.slot)
            known = self._around.offsets.get(group.group_id, key)
            if offset >= 0 and (known is None or known.offset != offset):
                found.append(group.entry(key, Committed(offset, committed_ms=self._around.wall_ms)))
        return found

    def changes(self) -> list[OffsetEntry]:
        """What members have stored since the last call."""
        found = []
        for group_id, member_id, key, offset in self._around.slots.changes():
            group = self._groups.groups.get(group_id)
            member = group.members.get(member_id) if group is not None else None
            if group is None or member is None or key not in member.holdings:
                continue
            known = self._around.offsets.get(group_id, key)
            if known is None or known.offset != offset:
                found.append(group.entry(key, Committed(offset, committed_ms=self._around.wall_ms)))
        return found

    def expired(self) -> list[OffsetEntry]:
        """Removals of what groups without members have committed, and nobody has come back for."""
        offsets, found = self._around.offsets, []
        oldest_ms = self._around.wall_ms - self._around.config.offsets_retention_minutes * MS_PER_MINUTE
        for group_id in offsets.group_ids():
            group = self._groups.groups.get(group_id)
            if group is not None and not group.is_idle:
                continue
            used_ms = max(offsets.last_commit_ms(group_id), 0 if group is None else group.emptied_ms)
            if used_ms < oldest_ms:
                found += [_removal(group_id, offsets.topic_name(key[0]), key) for key in offsets.of(group_id)]
                if group is not None:
                    self._groups.touch(group)
        return found

    def _key_of(self, one: OffsetToCommit) -> Key | None:
        """The partition that is meant; None: there is none."""
        image = self._around.image
        named = image.by_name.get(one.topic) if not one.topic_id else image.topics.get(one.topic_id)
        if named is None or not 0 <= one.partition < len(named.partitions):
            return None
        return (named.topic_id, one.partition)

    def _error_of(self, one: OffsetToCommit) -> BrokerError | None:
        if not 0 <= one.offset <= OFFSET_MAX:
            return InvalidRequestError(f"offset {one.offset}")
        most = self._around.config.offset_metadata_max_bytes
        if len(one.metadata.encode("utf-8", "replace")) > most:
            return OffsetMetadataTooLargeError(f"{len(one.metadata)} characters; at most {most} bytes")
        return None

    def _set_offsets(
        self, request: object, group_id: str, offsets: list[OffsetToCommit], *, durable: bool, may_remove: bool
    ) -> None:
        most = self._around.config.groups_max
        known = self._around.offsets.of(group_id)
        if not known and len(self._around.offsets.group_ids()) >= most:
            raise PolicyViolationError(f"there are {most} groups already", hint="[groups] groups_max")
        entries, results = [], []
        for one in offsets:
            key = self._key_of(one)
            error: BrokerError | None = None
            if key is None:
                error = UnknownTopicOrPartitionError(f"{one.topic or one.topic_id}:{one.partition} does not exist")
            elif may_remove and one.offset == REMOVE:
                if key in known:
                    entries.append(_removal(group_id, answers.topic_name(self._around, key[0]), key))
            elif (error := self._error_of(one)) is None:
                committed = Committed(one.offset, one.leader_epoch, one.metadata, self._around.wall_ms)
                entries.append(
                    OffsetEntry(group_id, answers.topic_name(self._around, key[0]), key[0], key[1], committed)
                )
            results.append(_result(one, key, error))
        self._groups.commit(entries, durable=durable, then=_answer(request, results))

    def _alter(self, request: object, body: AlterGroupOffsets) -> None:
        check_name(body.group_id, "group_id")
        group = self._groups.groups.get(body.group_id)
        if group is not None and not group.is_idle:
            raise NonEmptyGroupError(f"group {body.group_id} has {len(group.members)} members")
        self._set_offsets(request, body.group_id, body.offsets, durable=True, may_remove=True)

    def _fetch(self, body: OffsetFetch) -> OffsetsFetched:
        found = answers.committed(self._around, body.group_id, self._groups.groups.get(body.group_id))
        if body.partitions is None:
            return OffsetsFetched(answers.committed_offsets(self._around, found))
        none = Committed(-1)
        asked = []
        for topic_id, number in body.partitions:
            one = found.get((topic_id, number), none)
            name = answers.topic_name(self._around, topic_id)
            asked.append(
                CommittedOffset(name, topic_id, number, one.offset, one.leader_epoch, one.metadata, one.committed_ms)
            )
        return OffsetsFetched(asked)

    def _known_ids(self) -> list[str]:
        return sorted({*self._groups.groups, *self._around.offsets.group_ids()})

    def _list(self, body: ListGroups) -> GroupsListed:
        found = []
        for group_id in self._known_ids():
            one = self._groups.groups.get(group_id) or Group(group_id, self._around)
            if not body.states or one.state in body.states:
                found.append(GroupInfo(group_id, one.state, one.epoch, one.assignor, len(one.members)))
        return GroupsListed(found)

    def _is_known(self, group_id: str) -> bool:
        return group_id in self._groups.groups or bool(self._around.offsets.of(group_id))

    def _describe(self, group_id: str, now_ns: int) -> GroupDescription:
        if not self._is_known(group_id):
            return GroupDescription(group_id, GroupIdNotFoundError.code, "", 0, "", [], [])
        return answers.description(self._around, group_id, self._groups.groups.get(group_id), now_ns)

    def _delete(self, request: object, body: DeleteGroups) -> None:
        results, entries = [], []
        for group_id in dict.fromkeys(body.group_ids):
            group = self._groups.groups.get(group_id)
            error: BrokerError | None = None
            if not self._is_known(group_id):
                error = GroupIdNotFoundError(f"no group {group_id}")
            elif group is not None and not group.is_idle:
                error = NonEmptyGroupError(f"group {group_id} has {len(group.members)} members")
            else:
                offsets = self._around.offsets
                entries += [_removal(group_id, offsets.topic_name(key[0]), key) for key in offsets.of(group_id)]
                if group is not None:
                    self._groups.touch(group)
            results.append(_named(group_id, error))

        def answer(failed: BrokerError | None) -> Effect:
            if failed is not None:
                return do.Reply(request, None, failed.code, failed.message)
            return do.Reply(request, GroupResults(results))

        self._groups.commit(entries, durable=True, then=answer)

    def _remove_members(self, request: object, body: RemoveGroupMembers) -> None:
        group = self._groups.groups.get(body.group_id)
        if group is None:
            raise GroupIdNotFoundError(f"no group {body.group_id}")
        is_all = not body.member_ids and not body.instance_ids
        wanted = [(name, group.members.get(name)) for name in (list(group.members) if is_all else body.member_ids)]
        wanted += [(name, group.by_instance(name)) for name in body.instance_ids]
        results = []
        for name, member in wanted:
            if member is None or member.member_id not in group.members:
                results.append(_named(name, UnknownMemberIdError(f"{name} is not in group {body.group_id}")))
                continue
            error = FencedInstanceIdError("removed by an administrator") if member.instance_id else None
            self._groups.remove(group, member, error or UnknownMemberIdError("removed by an administrator"))
            results.append(_named(name, None))
        self._groups.reply(do.Reply(request, GroupResults(results)))


def _removal(group_id: str, topic: str, key: Key) -> OffsetEntry:
    return OffsetEntry(group_id, topic, key[0], key[1], None)


def _named(name: str, error: BrokerError | None) -> GroupResult:
    return GroupResult(name, 0, "") if error is None else GroupResult(name, error.code, error.wire_text)


def _result(one: OffsetToCommit, key: Key | None, error: BrokerError | None) -> OffsetResult:
    topic_id = one.topic_id if key is None else key[0]
    if error is None:
        return OffsetResult(one.topic, topic_id, one.partition, 0, "")
    return OffsetResult(one.topic, topic_id, one.partition, error.code, error.wire_text)


def _answer(request: object, results: list[OffsetResult]) -> Callable[[BrokerError | None], Effect]:
    def answer(failed: BrokerError | None) -> Effect:
        if failed is not None:
            return do.Reply(request, None, failed.code, failed.message)
        return do.Reply(request, OffsetResults(results))

    return answer
