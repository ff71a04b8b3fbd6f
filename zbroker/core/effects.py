"""What the coordinator's state machine wants done, in the order in which it must be done."""

from __future__ import annotations

from msgspec import Struct

from zbroker.core.entries import AnyEntry
from zbroker.wire.messages import Message, PartitionGrant, Revocation


class Effect(Struct, frozen=True):
    """Base of effects."""


class AppendEntries(Effect, frozen=True):
    """Append to the metadata log, in one write; `durable`: on the disk before the next effect."""

    entries: list[AnyEntry]
    durable: bool


class SendGrant(Effect, frozen=True):
    """Have a process lead partitions; report `GrantAnswered`."""

    number: int
    incarnation: int
    grants: list[PartitionGrant]


class SendRevoke(Effect, frozen=True):
    """Have a process close partitions."""

    number: int
    revocations: list[Revocation]


class SendReconfigure(Effect, frozen=True):
    """Tell a process a topic's settings in force."""

    number: int
    topic_id: int
    config: dict[str, str]


class Reply(Effect, frozen=True):
    """Answer a request: a body, or an error's number and text."""

    request: object
    body: Message | None
    error: int = 0
    text: str = ""


class PublishLeader(Effect, frozen=True):
    """Show a partition's leader on the board; None: it has none."""

    topic_id: int
    partition: int
    leader_epoch: int
    number: int | None
    incarnation: int | None


class ForgetPartition(Effect, frozen=True):
    """Take a deleted partition off the board."""

    topic_id: int
    partition: int


class DeleteFiles(Effect, frozen=True):
    """Remove a deleted copy's directory, which no process has open."""

    directory: str


class PublishWanted(Effect, frozen=True):
    """Show the supervisor which processes should run."""

    numbers: list[int]


class PublishReady(Effect, frozen=True):
    """Show that the broker answers."""


class WatchProcess(Effect, frozen=True):
    """Report `ProcessDied` when this incarnation ends; at once if it has."""

    number: int
    incarnation: int
    board: str
    lane_socket: str
