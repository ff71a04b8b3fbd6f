"""What the coordinator's state machine wants done, in the order in which it must be done.

`AppendEntries` is always the last effect of its list: what depends on it comes out of `Cluster.handle` when that is
told `EntriesAppended`. An effect never fails; what can fail is reported as an event.
"""

from __future__ import annotations

from msgspec import Struct

from zbroker.core.entries import AnyEntry
from zbroker.wire.inner_messages import PartitionGrant, Revocation
from zbroker.wire.messages import Message


class Effect(Struct, frozen=True):
    """Base of effects."""


class AppendEntries(Effect, frozen=True):
    """Append to the metadata log, in one write; `durable`: on the disk before it is reported.

    Report `EntriesAppended` or, when none of them is in the log, `AppendFailed`, before any other event.
    """

    entries: list[AnyEntry]
    durable: bool


class SyncLog(Effect, frozen=True):
    """Put what was appended on the disk, soon, holding up nothing else; report `LogSynced`."""


class WatchProcess(Effect, frozen=True):
    """Report `ProcessDied` when this incarnation ends; at once if it has."""

    number: int
    incarnation: int


class FenceProcess(Effect, frozen=True):
    """SIGKILL this incarnation, which is watched: a newer one holds its lock."""

    number: int
    incarnation: int


class SendAnnounce(Effect, frozen=True):
    """Ask a process to register."""

    number: int


class SendGrant(Effect, frozen=True):
    """Have a process lead or follow partitions, or tell it what changed; report `GrantAnswered`."""

    number: int
    incarnation: int
    grants: list[PartitionGrant]


class SendRevoke(Effect, frozen=True):
    """Have a process close partitions; report `RevokeAnswered`."""

    number: int
    incarnation: int
    revocations: list[Revocation]


class SendReconfigure(Effect, frozen=True):
    """Tell a process a topic's settings in force; report `ReconfigureAnswered`."""

    number: int
    incarnation: int
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


class DeleteCopy(Effect, frozen=True):
    """Remove what is left of a deleted copy, which no process has open, on whichever disk it lies."""

    copy_id: int


class RemoveBoard(Effect, frozen=True):
    """Remove a dead incarnation's board: everything it led has been published by another, or is gone."""

    number: int
    incarnation: int


class PublishWanted(Effect, frozen=True):
    """Show the supervisor which processes should run."""

    numbers: list[int]


class Warn(Effect, frozen=True):
    """Tell whoever reads the log of something that a person must know, such as records that may be lost."""

    text: str
    fields: dict[str, object]


class PublishReady(Effect, frozen=True):
    """Show that the broker answers."""
