"""What can happen to the coordinator. Events go into `Cluster.handle`, effects come out of it.

`request` is the caller's own, of whatever type: it comes back unread in the `Reply`.
"""

from __future__ import annotations

from msgspec import Struct

from zbroker.errors import BrokerError
from zbroker.wire.inner_messages import AlterIsr, CopySuspect, GrantResult, PartitionGrant, Register, Revocation
from zbroker.wire.messages import Message


class Event(Struct, frozen=True):
    """Base of events."""


class Started(Event, frozen=True):
    """The log is replayed. `cluster_id` is for a broker that has none yet; `boards` names (number, incarnation) of
    every process that has left a board, alive or dead."""

    cluster_id: str
    boot_id: str
    boards: list[tuple[int, int]]


class Connected(Event, frozen=True):
    """Messages reach the other processes from now on: there is a router, or a new one."""


class EntriesAppended(Event, frozen=True):
    """`AppendEntries` was done."""


class AppendFailed(Event, frozen=True):
    """`AppendEntries` was not done: nothing of it is in the log."""

    error: BrokerError


class ProcessRegistered(Event, frozen=True):
    """A process says that it is up, and what it leads."""

    request: object
    register: Register


class ProcessDied(Event, frozen=True):
    """A watched incarnation has ended."""

    number: int
    incarnation: int


class ProcessStuck(Event, frozen=True):
    """A watched incarnation was killed, and hangs in the kernel: it can complete one write, and do nothing else."""

    number: int
    incarnation: int


class LogSynced(Event, frozen=True):
    """Everything that was appended is on the disk."""


class IsrAlterationAsked(Event, frozen=True):
    """A leader wants other copies to be in sync."""

    request: object
    wanted: AlterIsr


class CopyIsSuspect(Event, frozen=True):
    """A process found one of its copies damaged."""

    request: object
    found: CopySuspect


class GrantAnswered(Event, frozen=True):
    """A process answered a grant; `results` None: it did not, in time."""

    number: int
    incarnation: int
    grants: list[PartitionGrant]
    results: list[GrantResult] | None


class RevokeAnswered(Event, frozen=True):
    """A process answered a revocation; `is_done` False: it did not, in time."""

    number: int
    incarnation: int
    revocations: list[Revocation]
    is_done: bool


class ReconfigureAnswered(Event, frozen=True):
    """A process took a topic's settings over; `is_done` False: it did not answer in time."""

    number: int
    incarnation: int
    topic_id: int
    is_done: bool


class Ticked(Event, frozen=True):
    """Time went on."""


class Asked(Event, frozen=True):
    """A client asks; the type of `body` says what."""

    request: object
    body: Message
    timeout_ms: int


class DescribeClusterAsked(Event, frozen=True):
    """A client asks for the broker as a whole."""

    request: object
