"""Where a group's consumer commits: by a store into its slot where it can map the broker's files, else by a message.

Guarantees: a commit that returns is kept, whatever dies afterwards; one for a partition that is not this consumer's,
or not any more, raises CommitFailedError. What is committed goes to whoever is granted the partition next. A consumer
with a group and `assign` commits by message, for nobody, while the group has no members.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from zbroker import ids
from zbroker.client.connection import Connection
from zbroker.client.fork_guard import guard, let_go
from zbroker.client.group_member import Grant, GroupMember
from zbroker.clock import NS_PER_MS
from zbroker.errors import (
    BrokerError,
    BrokerNotAvailableError,
    CommitFailedError,
    CoordinatorNotAvailableError,
    FencedInstanceIdError,
    FencedMemberEpochError,
    GroupIdNotFoundError,
    IllegalGenerationError,
    NotCoordinatorError,
    NotLeaderForPartitionError,
    RequestTimedOutError,
    StaleMemberEpochError,
    StorageError,
    UnknownMemberIdError,
    error_for,
)
from zbroker.ids import TopicPartition
from zbroker.record.records import OffsetAndMetadata
from zbroker.shm.commit_slots import MemberSlots, SlotPlace
from zbroker.wire.codec import decode, encode
from zbroker.wire.group_messages import (
    JOIN_EPOCH,
    NO_MEMBER_EPOCH,
    OffsetCommit,
    OffsetFetch,
    OffsetResults,
    OffsetsFetched,
    OffsetToCommit,
    SlotFilePlace,
)
from zbroker.wire.layout import Api

ATTEMPT_MS: Final = 1_000
BACKOFF_MS: Final = 10
_COMES_BACK: Final = (
    NotCoordinatorError,
    CoordinatorNotAvailableError,
    BrokerNotAvailableError,
    NotLeaderForPartitionError,
    RequestTimedOutError,
)
_TAKEN_AWAY: Final = (
    IllegalGenerationError,
    UnknownMemberIdError,
    StaleMemberEpochError,
    FencedMemberEpochError,
    FencedInstanceIdError,
)

Offsets: TypeAlias = Mapping[TopicPartition, OffsetAndMetadata]
Callback: TypeAlias = Callable[[Offsets, BrokerError | None], None]


class _Place(NamedTuple):
    slots: MemberSlots
    slot: int


class GroupCommits:
    """See the module. One thread at a time; `stores` may be called by another than polls."""

    def __init__(self, connection: Connection, group_id: str, member: GroupMember) -> None:
        self._connection = connection
        self._group_id = group_id
        self._member = member
        self._files: dict[int, MemberSlots] = {}
        self._places: dict[TopicPartition, _Place] = {}
        self._grants: dict[TopicPartition, Grant] = {}
        self._done: deque[tuple[Callback, Offsets, BrokerError | None]] = deque()
        self._member_epoch = JOIN_EPOCH
        self._is_closed = False
        self._pid = os.getpid()
        self.stores: dict[tuple[str, int], Callable[[int], None]] = {}
        """A short way: the store of each partition that has a slot."""
        self.slots: dict[str, dict[int, SlotPlace]] = {}
        """The shortest way, by topic and partition, where no fence is needed."""
        guard(self)

    @property
    def is_closed(self) -> bool:
        """Whether nothing is committed any more; set in every process that was forked off."""
        return self._is_closed

    @is_closed.setter
    def is_closed(self, value: bool) -> None:
        self._is_closed = value
        self.stores.clear()
        self.slots.clear()

    # --- what may be committed ---------------------------------------------------------------------------------------

    def take(self, grants: Iterable[Grant], files: Iterable[SlotFilePlace], member_epoch: int) -> None:
        """These are this consumer's too, in this epoch. Raises CommitFailedError when it was thrown out meanwhile."""
        self._member_epoch = member_epoch
        for file in files:
            if file.file not in self._files:
                try:
                    self._files[file.file] = MemberSlots.attach(Path(file.path))
                except (FileNotFoundError, StorageError) as error:
                    raise CommitFailedError(f"the slots of this member are gone: {error}") from error
        for grant in grants:
            self._grants[grant.tp] = grant
            if grant.file >= 0:
                slots = self._files[grant.file]
                self._places[grant.tp] = _Place(slots, grant.slot)
                self.stores[grant.tp] = slots.committer(grant.slot)
                if not slots.needs_fence:
                    self.slots.setdefault(grant.tp.topic, {})[grant.tp.partition] = slots.place(grant.slot)

    def shorten(self) -> None:
        """Have records committed in the shortest way, as soon as this process has registered for barriers."""
        if self._places and not self.slots and not any(one.slots.needs_fence for one in self._places.values()):
            for tp, place in self._places.items():
                self.slots.setdefault(tp.topic, {})[tp.partition] = place.slots.place(place.slot)

    def drop(self, partitions: Iterable[TopicPartition]) -> None:
        """These are not, any more."""
        for tp in partitions:
            self._grants.pop(tp, None)
            self._places.pop(tp, None)
            self.stores.pop(tp, None)
            self.slots.get(tp.topic, {}).pop(tp.partition, None)

    def drop_all(self) -> None:
        """The member is gone, and its files with it."""
        self.drop(list(self._grants))
        while self._files:
            self._files.popitem()[1].close()

    def has_lost_slot(self) -> bool:
        """Whether the coordinator has taken a partition that this consumer still reads."""
        return any(place.slots.is_closed(place.slot) for place in self._places.values())

    def note_poll(self, now_ns: int) -> None:
        """Show, for who watches, that the application asks for records."""
        if self._files:
            self._files[max(self._files)].note_poll(now_ns)

    def note_positions(self, positions: Iterable[tuple[TopicPartition, int]]) -> None:
        """Show where reading has come to."""
        for tp, offset in positions:
            place = self._places.get(tp)
            if place is not None:
                place.slots.note_position(place.slot, offset)

    # --- commits -----------------------------------------------------------------------------------------------------

    def commit(self, offsets: Offsets, *, durable: bool, timeout_ms: int, is_member: bool) -> None:
        """Return when these are kept; `durable`: on the disk."""
        if not is_member:
            self._send(self._body(offsets, "", NO_MEMBER_EPOCH, durable), offsets, timeout_ms)
            return
        rest = self._store(offsets)
        if rest or (durable and offsets):
            sent = offsets if durable else rest
            self._send(self._member_body(sent, durable), sent, timeout_ms)

    def commit_async(self, offsets: Offsets, callback: Callback | None, *, timeout_ms: int, is_member: bool) -> None:
        """Begin a commit; `run_callbacks` says how it ended."""
        try:
            rest = self._store(offsets) if is_member else dict(offsets)
        except CommitFailedError as error:
            self._end(callback, offsets, error)
            return
        if not rest:
            self._end(callback, offsets, None)
            return
        body = self._member_body(rest, False) if is_member else self._body(rest, "", NO_MEMBER_EPOCH, False)

        def answered(error: int, frames: list[Any]) -> None:
            try:
                if error:
                    raise error_for(error, _text(frames))
                _check(decode(OffsetResults, frames[0]), rest)
            except BrokerError as failure:
                self._end(callback, offsets, _as_failed(failure))
            else:
                self._end(callback, offsets, None)

        self._connection.submit(ids.COORDINATOR, Api.OFFSET_COMMIT, [body], answered, timeout_ms=timeout_ms)

    def _end(self, callback: Callback | None, offsets: Offsets, error: BrokerError | None) -> None:
        if callback is not None:
            self._done.append((callback, offsets, error))

    def run_callbacks(self) -> None:
        """Call the callbacks of the commits that have ended. Raises what one raises."""
        while self._done:
            callback, offsets, error = self._done.popleft()
            callback(offsets, error)

    def _store(self, offsets: Offsets) -> dict[TopicPartition, OffsetAndMetadata]:
        """Store what can be stored; the rest is to be sent. Nothing is, when a partition is not this consumer's."""
        for tp in offsets:
            if tp not in self._grants:
                why = self._member.reason
                raise CommitFailedError(
                    f"{tp} is not this consumer's" + (f": {why.message}" if why is not None else "")
                )
        rest = {}
        for tp, one in offsets.items():
            store = self.stores.get(tp)
            if store is not None:
                store(one.offset)
            if store is None or one.metadata or one.leader_epoch >= 0:
                rest[tp] = one
        return rest

    def _member_body(self, offsets: Offsets, durable: bool) -> bytes:
        return self._body(offsets, self._member.member_id, self._member_epoch, durable)

    def _body(self, offsets: Offsets, member_id: str, member_epoch: int, durable: bool) -> bytes:
        entries = []
        for tp, one in offsets.items():
            grant = self._grants.get(tp)
            topic_id = grant.topic_id if grant is not None and member_id else 0
            entries.append(OffsetToCommit(tp.topic, topic_id, tp.partition, one.offset, one.leader_epoch, one.metadata))
        return encode(OffsetCommit(self._group_id, member_id, member_epoch, durable, entries))

    def _send(self, body: bytes, offsets: Offsets, timeout_ms: int) -> None:
        frames = self._ask(Api.OFFSET_COMMIT, body, timeout_ms)
        _check(decode(OffsetResults, frames[0]), offsets)

    def _ask(self, api: Api, body: bytes, timeout_ms: int) -> list[Any]:
        """Ask the coordinator, or its successor. What is asked here may be asked twice."""
        deadline_ns = time.monotonic_ns() + timeout_ms * NS_PER_MS
        while True:
            left_ms = max(1, (deadline_ns - time.monotonic_ns()) // NS_PER_MS)
            once_ms = min(left_ms, ATTEMPT_MS)
            try:
                return self._connection.request(ids.COORDINATOR, api, [body], timeout_ms=once_ms, repeats=False)
            except _TAKEN_AWAY as error:
                raise _as_failed(error) from error
            except _COMES_BACK as error:
                if time.monotonic_ns() >= deadline_ns:
                    raise RequestTimedOutError(f"the coordinator did not answer within {timeout_ms} ms") from error
            self._connection.wait_for(lambda: False, min(left_ms, BACKOFF_MS))

    # --- what was committed ------------------------------------------------------------------------------------------

    def committed(self, timeout_ms: int) -> dict[TopicPartition, OffsetAndMetadata]:
        """Everything that the group has committed. Raises RequestTimedOutError."""
        try:
            frames = self._ask(Api.OFFSET_FETCH, encode(OffsetFetch(self._group_id, None)), timeout_ms)
        except GroupIdNotFoundError:
            return {}
        return {
            TopicPartition(one.topic, one.partition): OffsetAndMetadata(one.offset, one.metadata, one.leader_epoch)
            for one in decode(OffsetsFetched, frames[0]).offsets
            if one.offset >= 0
        }

    def close(self) -> None:
        """Unmap. In a forked child it touches nothing."""
        let_go(self)
        self.is_closed = True
        if os.getpid() == self._pid:
            self.drop_all()


def _check(results: OffsetResults, offsets: Offsets) -> None:
    for tp, result in zip(offsets, results.offsets, strict=False):
        if result.error:
            raise _as_failed(error_for(result.error, f"{tp}: {result.message}"))


def _as_failed(error: BrokerError) -> BrokerError:
    return CommitFailedError(error.message) if isinstance(error, _TAKEN_AWAY) else error


def _text(frames: list[Any]) -> str:
    return bytes(frames[0]).decode("utf-8", "replace") if frames else ""
