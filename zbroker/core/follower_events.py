"""What can happen to a partition that is followed here, and what its state machine wants done about it.

Events go into `Follower.handle`, effects come out of it, in the order in which they must be done. Every message of the
leader carries its epoch, and the number that our SUBSCRIBE had: those of others than the newest are dropped.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from zbroker.config.schema import TopicConfig
from zbroker.errors import BrokerError


class Event(Struct, frozen=True, gc=False):
    """Base of events."""


class Effect(Struct, frozen=True, gc=False):
    """Base of effects."""


class Connected(Event, frozen=True, gc=False):
    """Messages can be sent to the leader (again): what was sent before may be lost."""


class LeaderChanged(Event, frozen=True, gc=False):
    """The coordinator granted a higher epoch whose leader is not here either: follow that one."""

    leader_epoch: int


class Accepted(Event, frozen=True, gc=False):
    """The leader's `Accept`: what we have is a beginning of its log."""

    leader_epoch: int
    subscription: int
    log_start: int
    high_watermark: int


class Diverged(Event, frozen=True, gc=False):
    """The leader's `Diverge`: its largest epoch not above our last is `epoch`, and ends at `end_offset`."""

    leader_epoch: int
    subscription: int
    epoch: int
    end_offset: int


class MustBeginAnew(Event, frozen=True, gc=False):
    """The leader's `BeginAnew`: nothing that we have is of use; its log begins with the batch at `offset`."""

    leader_epoch: int
    subscription: int
    offset: int


class Rejected(Event, frozen=True, gc=False):
    """The leader's `Reject`."""

    leader_epoch: int
    subscription: int
    error: BrokerError


class Entry(Event, frozen=True, gc=False):
    """The leader's `Send` or `SendNews`: batches from `start_offset` up to `end_offset` (the same: none), and news.

    `body` is the caller's own: where the bytes are. `flush_to`: bring everything before it to the disk (-1: nothing).
    """

    leader_epoch: int
    subscription: int
    start_offset: int
    end_offset: int
    high_watermark: int
    log_start: int
    flush_to: int
    body: Any


class Written(Event, frozen=True, gc=False):
    """`Copy` was done: the log ends at `log_end`."""

    log_end: int


class CopyFailed(Event, frozen=True, gc=False):
    """`Copy` was not done, or not up to its end: the bytes were not as they should be, or could not be had or written.
    The log ends at `log_end`, with whole and sound batches."""

    log_end: int
    error: BrokerError


class Cut(Event, frozen=True, gc=False):
    """`Truncate` or `StartAnew` was done: the log ends at `log_end`."""

    log_end: int


class Trimmed(Event, frozen=True, gc=False):
    """The log begins at `log_start` now."""

    log_start: int


class Flushed(Event, frozen=True, gc=False):
    """`Flush` was done: everything before `durable` is on the disk."""

    durable: int


class FlushFailed(Event, frozen=True, gc=False):
    """A flush could not begin, and the copy is sound."""

    error: BrokerError


class Rolled(Event, frozen=True, gc=False):
    """The log began another segment: the one before is complete."""


class Reconfigured(Event, frozen=True, gc=False):
    """The topic's settings are now these."""

    config: TopicConfig


class FoundDamaged(Event, frozen=True, gc=False):
    """Damage was found below the high watermark, in files that can be written: the copy is to be fetched again."""

    error: BrokerError


class SuspectNoted(Event, frozen=True, gc=False):
    """The coordinator has taken note of `ReportSuspect`: the copy is neither in sync nor eligible any more."""


class Failed(Event, frozen=True, gc=False):
    """The copy's files are done for: an fsync failed, or bytes cannot be taken back."""

    error: BrokerError


class Stopped(Event, frozen=True, gc=False):
    """The coordinator took the partition away, or made this process its leader."""


class Tick(Event, frozen=True, gc=False):
    """Time went on."""


class Subscribe(Effect, frozen=True, gc=False):
    """Send SUBSCRIBE to the leader of `leader_epoch`. It may be lost: it comes again, with another number.

    `subscription` (u64) is higher than every one before from this process, whatever copy it was for.
    """

    leader_epoch: int
    subscription: int
    last_epoch: int
    log_end: int
    durable: int


class Copy(Effect, frozen=True, gc=False):
    """Get the batches of `body`, which begin at `start_offset`, our log end, and end before `end_offset`; check on our
    own copy of the bytes each CRC, that offsets follow on each other, that no epoch is below the one before or above
    `leader_epoch`; append them as they are. Then report `Written` or `CopyFailed` before anything else."""

    body: Any
    start_offset: int
    end_offset: int
    leader_epoch: int


class Truncate(Effect, frozen=True, gc=False):
    """Cut the log at `offset`, or at the base of the batch that it lies in; then report `Cut` or `Failed` before
    anything else."""

    offset: int


class StartAnew(Effect, frozen=True, gc=False):
    """Drop everything and begin empty at `offset`; then report `Cut` or `Failed` before anything else."""

    offset: int


class Flush(Effect, frozen=True, gc=False):
    """Begin to bring the log to the disk; report `Flushed`, `FlushFailed` or `Failed` later. One at a time."""


class Trim(Effect, frozen=True, gc=False):
    """Let the log begin at `offset`, which is not above our log end, or before; report `Trimmed` or `Failed`
    before anything else."""

    offset: int


class Confirm(Effect, frozen=True, gc=False):
    """Send COPIED to the leader, at the end of the turn: many are as good as the last."""

    leader_epoch: int
    subscription: int
    log_end: int
    durable: int


class Publish(Effect, frozen=True, gc=False):
    """Show log end, high watermark, log start and durable on the board."""

    log_start: int
    log_end: int
    high_watermark: int
    durable: int


class ReportSuspect(Effect, frozen=True, gc=False):
    """Tell the coordinator (CopySuspect) until it answers, then report `SuspectNoted`."""

    error: BrokerError
