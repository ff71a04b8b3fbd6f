"""What can happen to a partition that is led here, and what its state machine wants done about it.

Events go into `Partition.handle`, effects come out of it, in the order in which they must be done. `request` and `wait`
are the caller's own, of whatever type: the state machine carries them from an event to an effect unread.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from zbroker.config.schema import TopicConfig
from zbroker.errors import BrokerError
from zbroker.record.layout import BatchHeader


class Event(Struct, frozen=True, gc=False):
    """Base of events."""


class Effect(Struct, frozen=True, gc=False):
    """Base of effects."""


class Copies(Struct, frozen=True, gc=False):
    """The copies of a partition as the metadata log has them, by their permanent numbers.

    `all` are those that exist, `isr` those in sync, `elr` those that may lead although they are not. `partition_epoch`
    is the version of all three.
    """

    all: tuple[int, ...]
    isr: tuple[int, ...]
    elr: tuple[int, ...] = ()
    partition_epoch: int = 0


class Produce(Event, frozen=True, gc=False):
    """A batch that passed every check of its own bytes.

    `batch` is its header if it has a producer id and the partition is to tell whether it has it already, else None.
    """

    request: Any
    acks: int
    leader_epoch: int
    batch: BatchHeader | None = None


class Appended(Event, frozen=True, gc=False):
    """`Write` was done: the log ends at `next_offset`."""

    request: Any
    acks: int
    base_offset: int
    next_offset: int


class AppendFailed(Event, frozen=True, gc=False):
    """`Write` was not done: the log ends where it did."""

    request: Any
    error: BrokerError


class WaitFor(Event, frozen=True, gc=False):
    """Somebody wants to know when the high watermark passes `offset`."""

    wait: int
    offset: int


class StopWaiting(Event, frozen=True, gc=False):
    """It is of no interest any more."""

    wait: int


class DeleteBefore(Event, frozen=True, gc=False):
    """Records before `offset` may go; -1: before the high watermark."""

    request: Any
    offset: int


class Trimmed(Event, frozen=True, gc=False):
    """The log begins at `log_start` now, by retention or because `request` asked for it."""

    log_start: int
    request: Any = None


class Flushed(Event, frozen=True, gc=False):
    """Everything before `durable` is on the disk."""

    durable: int


class FlushFailed(Event, frozen=True, gc=False):
    """A flush could not begin, and the copy is sound: who waits for it is told, and may ask again."""

    error: BrokerError


class Rolled(Event, frozen=True, gc=False):
    """The log began another segment: the one before is complete, and so is what a restart need not read again."""


class Tick(Event, frozen=True, gc=False):
    """Time went on."""


class Damaged(Event, frozen=True, gc=False):
    """The copy is done for: an fsync failed, or bytes of a failed write cannot be taken back."""

    error: BrokerError


class RoomLost(Event, frozen=True, gc=False):
    """The disk has less room than it should."""


class RoomFound(Event, frozen=True, gc=False):
    """The disk has room again."""


class Reconfigured(Event, frozen=True, gc=False):
    """The topic's settings are now these."""

    config: TopicConfig


class EpochRaised(Event, frozen=True, gc=False):
    """The coordinator elected this same leader again, with a higher epoch. `CopiesChanged` follows if there are more
    copies than this one; `is_epoch_durable` as there."""

    leader_epoch: int
    is_epoch_durable: bool = True


class EpochDurable(Event, frozen=True, gc=False):
    """The election of this epoch is on the coordinator's disk: acks=fsync may be answered. Other epochs are ignored."""

    leader_epoch: int


class CopiesChanged(Event, frozen=True, gc=False):
    """News from the coordinator. A version that is not above the known one is ignored."""

    copies: Copies


class FollowerAt(Event, frozen=True, gc=False):
    """A follower, of this incarnation of its process, has everything before `log_end`, on its disk before `durable`.

    Comes when it subscribes and whenever it has copied; the same once more is worth telling, since it shows that the
    follower lives. Both may be lower than before: the copy was cut, or lost what was not on the disk.
    """

    copy_id: int
    incarnation: int
    log_end: int
    durable: int


class FollowerLost(Event, frozen=True, gc=False):
    """No session with this follower any more. It stays in sync until the coordinator or the clock says otherwise."""

    copy_id: int
    incarnation: int


class IsrAnswered(Event, frozen=True, gc=False):
    """`ProposeIsr` was accepted: this holds from now on."""

    partition_epoch: int
    isr: tuple[int, ...]
    elr: tuple[int, ...]


class IsrRefused(Event, frozen=True, gc=False):
    """`ProposeIsr` of this version was answered with an error, or with nothing in time (a retriable error)."""

    partition_epoch: int
    error: BrokerError


class Revoked(Event, frozen=True, gc=False):
    """The coordinator took the partition away."""


class Write(Effect, frozen=True, gc=False):
    """Stamp and append the request's batch, note it in the producers' state, then report `Appended` or `AppendFailed`
    before anything else."""

    request: Any
    acks: int
    base_offset: int
    leader_epoch: int


class Flush(Effect, frozen=True, gc=False):
    """Begin to bring the log to the disk; report `Flushed` or `Damaged` later. At most one is under way.

    `is_shared`: the last one answered many producers, who are about to ask again. To begin a little later is then
    cheaper for all: it answers more of them (PostgreSQL's commit_delay, with its commit_siblings).
    """

    is_shared: bool = False


class Tell(Effect, frozen=True, gc=False):
    """Followers have something to fetch or to know: log end, high watermark or log start have moved, or `flush_to` is
    above what they were asked to bring to their disks (-1: nothing). To be sent at the end of the turn: many are as
    good as the last with the highest `flush_to`."""

    flush_to: int = -1


class ProposeIsr(Effect, frozen=True, gc=False):
    """Ask the coordinator for this ISR (AlterIsr); report `IsrAnswered`, or `IsrRefused` with whatever went wrong.

    At most one is under way. The same may come again after an answer was missed: the coordinator answers what holds
    already with success. `incarnations` names, for each of `isr`, the process that reported its log end (0: our own).
    """

    leader_epoch: int
    partition_epoch: int
    isr: tuple[int, ...]
    incarnations: tuple[int, ...]


class Publish(Effect, frozen=True, gc=False):
    """Show log end and high watermark to every reader."""

    high_watermark: int


class PublishDurable(Effect, frozen=True, gc=False):
    """Show how far the log is on the disk of this copy; it may be above the high watermark."""

    durable: int


class Restate(Effect, frozen=True, gc=False):
    """Show everything at once, since more than the high watermark changed."""


class Wake(Effect, frozen=True, gc=False):
    """These waits are over; the state machine has forgotten them."""

    waits: list[int]


class Acknowledge(Effect, frozen=True, gc=False):
    """Tell the producer that its batch has what its `acks` asked for."""

    request: Any
    base_offset: int


class Refuse(Effect, frozen=True, gc=False):
    """Answer the request with an error."""

    request: Any
    error: BrokerError


class Trim(Effect, frozen=True, gc=False):
    """Let the log begin at `offset` or before, then report `Trimmed`."""

    request: Any
    offset: int


class AnswerLogStart(Effect, frozen=True, gc=False):
    """Tell who asked for a deletion where the log begins."""

    request: Any
    log_start: int


class Retire(Effect, frozen=True, gc=False):
    """Show every reader that this process leads the partition no more."""
