"""The calls of an admin client that are about consumer groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, TypeAlias

from zbroker.client.settings import GROUP_NAME, GROUP_NAME_RULE
from zbroker.errors import InvalidGroupIdError, error_for
from zbroker.ids import TopicPartition
from zbroker.record.records import OffsetAndMetadata, OffsetAndTimestamp
from zbroker.wire.codec import decode
from zbroker.wire.group_messages import (
    AlterGroupOffsets,
    DeleteGroups,
    DescribeGroups,
    GroupDescription,
    GroupInfo,
    GroupResults,
    GroupsDescribed,
    GroupsListed,
    ListGroups,
    OffsetFetch,
    OffsetResults,
    OffsetsFetched,
    OffsetToCommit,
    RemoveGroupMembers,
)
from zbroker.wire.layout import Api

Partition: TypeAlias = TopicPartition | tuple[str, int]
REMOVED = -1


class GroupAdmin(ABC):
    """See the module; a part of `AdminClient`."""

    @abstractmethod
    def _ask(self, api: Api, body: Any, timeout_ms: int | None = None) -> Any:
        """Ask the coordinator."""

    @abstractmethod
    def list_offsets(self, queries: Mapping[Partition, int | str]) -> dict[TopicPartition, OffsetAndTimestamp]:
        """See AdminClient."""

    def list_groups(self, *, states: Iterable[str] = (), timeout_ms: int | None = None) -> list[GroupInfo]:
        """The groups that have members or committed offsets, by name; in these states, or all."""
        return decode(GroupsListed, self._ask(Api.LIST_GROUPS, ListGroups(list(states)), timeout_ms)).groups

    def describe_groups(
        self, group_ids: Iterable[str], *, timeout_ms: int | None = None
    ) -> dict[str, GroupDescription]:
        """State, members, what each reads, and committed offsets. Raises GroupIdNotFoundError for the first unknown."""
        asked = list(group_ids)
        answer = decode(GroupsDescribed, self._ask(Api.DESCRIBE_GROUPS, DescribeGroups(asked), timeout_ms))
        for found in answer.groups:
            if found.error:
                raise error_for(found.error, f"group {found.group_id!r} does not exist")
        return {found.group_id: found for found in answer.groups}

    def delete_groups(
        self, group_ids: Iterable[str], *, timeout_ms: int | None = None, raise_errors: bool = True
    ) -> dict[str, str]:
        """Forget groups without members, and their offsets. Returns each one's error text, '' when it is gone.

        Raises GroupIdNotFoundError, NonEmptyGroupError.
        """
        return self._ask_groups(Api.DELETE_GROUPS, DeleteGroups(list(group_ids)), timeout_ms, raise_errors)

    def remove_group_members(
        self,
        group_id: str,
        member_ids: Iterable[str] = (),
        instance_ids: Iterable[str] = (),
        *,
        timeout_ms: int | None = None,
        raise_errors: bool = True,
    ) -> dict[str, str]:
        """Throw members out, all when none is named; each learns it, and may join again. Returns error texts."""
        body = RemoveGroupMembers(group_id, list(member_ids), list(instance_ids))
        return self._ask_groups(Api.REMOVE_GROUP_MEMBERS, body, timeout_ms, raise_errors)

    def _ask_groups(self, api: Api, body: Any, timeout_ms: int | None, raise_errors: bool) -> dict[str, str]:
        results = decode(GroupResults, self._ask(api, body, timeout_ms)).results
        for result in results:
            if result.error and raise_errors:
                raise error_for(result.error, result.message)
        return {result.name: result.message if result.error else "" for result in results}

    def list_group_offsets(self, group_id: str) -> dict[TopicPartition, OffsetAndMetadata]:
        """What a group has committed, now: also what its members have only stored. Raises GroupIdNotFoundError."""
        answer = decode(OffsetsFetched, self._ask(Api.OFFSET_FETCH, OffsetFetch(group_id, None)))
        return {
            TopicPartition(one.topic, one.partition): OffsetAndMetadata(one.offset, one.metadata, one.leader_epoch)
            for one in answer.offsets
            if one.offset >= 0
        }

    def alter_group_offsets(self, group_id: str, offsets: Mapping[Any, int | OffsetAndMetadata | None]) -> None:
        """Set what a group has committed; None removes it. It is on the disk when this returns.

        The group need not exist. Raises NonEmptyGroupError while it has members, and then nothing has changed;
        UnknownTopicOrPartitionError for the first such partition, the others are set; InvalidGroupIdError for a name
        that no consumer can have.
        """
        if not GROUP_NAME.fullmatch(group_id):
            raise InvalidGroupIdError(
                f"{group_id[:300]!r} is not {GROUP_NAME_RULE}", hint="zbroker groups list shows those that are there"
            )
        entries = []
        for tp, one in offsets.items():
            entry = (
                OffsetAndMetadata(REMOVED if one is None else one) if not isinstance(one, OffsetAndMetadata) else one
            )
            entries.append(OffsetToCommit(tp[0], 0, tp[1], entry.offset, entry.leader_epoch, entry.metadata))
        answer = decode(OffsetResults, self._ask(Api.ALTER_GROUP_OFFSETS, AlterGroupOffsets(group_id, entries)))
        for tp, result in zip(offsets, answer.offsets, strict=True):
            if result.error:
                raise error_for(result.error, f"{tp[0]}:{tp[1]}: {result.message}")

    def reset_group_offsets(
        self, group_id: str, places: Mapping[Any, int | str | datetime]
    ) -> dict[TopicPartition, int]:
        """Set what a group has committed to 'earliest', 'latest', a time, or an offset (moved into the log's range).

        Returns the offsets. Raises as `alter_group_offsets`.
        """
        found = self.find_offsets(places)
        self.alter_group_offsets(group_id, {**found})
        return found

    def find_offsets(self, places: Mapping[Any, int | str | datetime]) -> dict[TopicPartition, int]:
        """The offsets of these places, as `reset_group_offsets` would set them."""
        starts = self.list_offsets(dict.fromkeys(places, "earliest"))
        ends = self.list_offsets(dict.fromkeys(places, "latest"))
        times = {tp: round(place.timestamp() * 1000) for tp, place in places.items() if isinstance(place, datetime)}
        at_times = self.list_offsets(times) if times else {}
        found = {}
        for one, place in places.items():
            tp = TopicPartition(*one)
            if isinstance(place, datetime):
                offset = at_times[tp].offset if at_times[tp].offset >= 0 else ends[tp].offset
            elif isinstance(place, str):
                offset = {"earliest": starts, "latest": ends}[place][tp].offset
            else:
                offset = place
            found[tp] = max(starts[tp].offset, min(offset, ends[tp].offset))
        return found
