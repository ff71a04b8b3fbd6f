"""What can happen to consumer groups, and what they want done. Events go into `Groups.handle`, effects come out of it.

`AppendOffsets` is always the last effect of its list; report `OffsetsAppended` or `OffsetsAppendFailed` before any
other event. `Reply` and `Warn` are those of `effects`.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from zbroker.core.cluster_events import Event
from zbroker.core.effects import Effect
from zbroker.core.group_offsets import OffsetEntry
from zbroker.core.sticky import Key
from zbroker.errors import BrokerError
from zbroker.wire.group_messages import GroupHeartbeat, SlotFilePlace
from zbroker.wire.messages import Message


class FoundSlot(Struct, frozen=True):
    """A slot that a member of before has. `is_open`: it may still commit. Offsets -1: none."""

    file: int
    slot: int
    key: Key
    is_open: bool
    start: int
    granted_epoch: int
    committed: int


class FoundMember(Struct, frozen=True):
    """A member that the dead coordinator had, as its slot files say. `away_since_ns` None: it was here."""

    group_id: str
    member_id: str
    instance_id: str
    client_id: str
    incarnation: int
    member_epoch: int
    session_timeout_ms: int
    max_poll_interval_ms: int
    away_since_ns: int | None
    slots: list[FoundSlot]


class GroupsStarted(Event, frozen=True):
    """The log of offsets is read; these are the members of before, in the order in which they joined."""

    members: list[FoundMember]
    wall_ms: int


class HeartbeatCame(Event, frozen=True):
    """A member says how it is. `incarnation`: of its process, where the kernel bears it out; else 0."""

    request: object
    body: GroupHeartbeat
    incarnation: int


class GroupAsked(Event, frozen=True):
    """Any other request; the type of `body` says what."""

    request: object
    body: Message
    wall_ms: int


class MemberProcessDied(Event, frozen=True):
    """The process of one or more members has ended."""

    incarnation: int


class TopicsChanged(Event, frozen=True):
    """There are other topics, or more partitions."""


class OffsetsAppended(Event, frozen=True):
    """`AppendOffsets` was done."""


class OffsetsAppendFailed(Event, frozen=True):
    """`AppendOffsets` was not done: nothing of it is in the log."""

    error: BrokerError


class GroupsTicked(Event, frozen=True):
    """Time went on."""

    wall_ms: int


class AppendOffsets(Effect, frozen=True):
    """Append to the log of offsets; `durable`: on the disk before it is reported."""

    entries: list[OffsetEntry]
    durable: bool


class WatchMemberProcess(Effect, frozen=True):
    """Report `MemberProcessDied` when this incarnation ends; at once if it has."""

    incarnation: int


class Slots(Protocol):
    """The slots of members, in memory that they share with the coordinator. No call waits for anything.

    A member is named by its group and its own id.
    """

    def make(self, group_id: str, member_id: str, instance_id: str, client_id: str, incarnation: int) -> bool:
        """Make room for a member's slots. False: there is none, and the member commits by message, as it does with
        `incarnation` 0; then its slots only say what it was granted."""

    def open(self, group_id: str, member_id: str, key: Key, start: int, epoch: int) -> tuple[int, int]:
        """Give the member a slot, never used before: (file, slot), (-1, -1) when there is no room."""

    def committed(self, group_id: str, member_id: str, file: int, slot: int) -> int:
        """What it has stored there; -1: nothing."""

    def close(self, group_id: str, member_id: str, file: int, slot: int) -> int:
        """Let it store no more there. What it has stored, which is final; -1: nothing."""

    def set_folded(self, group_id: str, member_id: str, file: int, slot: int) -> None:
        """What a closed slot holds is in the log."""

    def set_member(self, group_id: str, member_id: str, epoch: int, session_ms: int, max_poll_ms: int) -> None:
        """Keep for a successor what it must know of the member."""

    def set_away(self, group_id: str, member_id: str, since_ns: int) -> None:
        """Keep for a successor that a static member is away."""

    def files(self, group_id: str, member_id: str) -> list[SlotFilePlace]:
        """Where the member finds its slots."""

    def changes(self) -> list[tuple[str, str, Key, int]]:
        """(group, member, partition, offset) of every open slot into which something was stored since the last call."""

    def look_again(self) -> None:
        """The last `changes` were not kept: name them once more."""

    def remove(self, group_id: str, member_id: str) -> None:
        """The member is gone, and all that it had stored is in the log."""
