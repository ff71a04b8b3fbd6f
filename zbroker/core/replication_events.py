"""What can happen to the streams from a led partition to its followers, and what their state machine wants done.

Events go into `Replication.handle`, effects come out of it, in the order in which they must be done. `session` is the
caller's own: whatever it needs to send something to that follower. `subscription` is the number that the follower gave
to its SUBSCRIBE, and which all messages about it carry, both ways: what belongs to an older one is dropped.
"""

from __future__ import annotations

from collections.abc import Hashable

from msgspec import Struct

from zbroker.core import partition_events as ev
from zbroker.errors import BrokerError


class Event(Struct, frozen=True, gc=False):
    """Base of events."""


class Effect(Struct, frozen=True, gc=False):
    """Base of effects."""


class Subscribed(Event, frozen=True, gc=False):
    """SUBSCRIBE came: the follower's log ends at `log_end`, its last batch is of `last_epoch` (-1: there is none).

    `leader_epoch` is the epoch that it wants to follow.
    """

    session: Hashable
    copy_id: int
    subscription: int
    incarnation: int
    leader_epoch: int
    last_epoch: int
    log_end: int
    durable: int


class Copied(Event, frozen=True, gc=False):
    """COPIED came: the follower has everything before `log_end`, on its disk before `durable`. Also a sign of life."""

    session: Hashable
    copy_id: int
    subscription: int
    leader_epoch: int
    log_end: int
    durable: int


class Told(Event, frozen=True, gc=False):
    """`Tell` of the partition, carried out once at the end of the turn: where it is, and the highest `flush_to`."""

    log_start: int
    log_end: int
    high_watermark: int
    flush_to: int = -1


class Sent(Event, frozen=True, gc=False):
    """`Send` was done: the message holds everything before `end_offset`, which are so many bytes of the log."""

    session: Hashable
    copy_id: int
    subscription: int
    end_offset: int
    size_bytes: int


class NotSent(Event, frozen=True, gc=False):
    """A message could not be handed over now (its queue is full): it is tried again at the next tick."""

    session: Hashable
    copy_id: int
    subscription: int


class SessionLost(Event, frozen=True, gc=False):
    """The connection of this session is gone, or its process is proven dead."""

    session: Hashable
    copy_id: int


class EpochBegun(Event, frozen=True, gc=False):
    """This leader has a new epoch, which begins at its log end: followers must subscribe again."""

    leader_epoch: int


class CopiesKnown(Event, frozen=True, gc=False):
    """These other copies may follow, by the coordinator's word; sessions of others end.

    So do those of `doubted` ones: the coordinator has changed the set without us and they are not in it, so what they
    have said until now may be of a log that was damaged, and is no more. They subscribe again.
    """

    copy_ids: tuple[int, ...]
    doubted: tuple[int, ...] = ()


class Tick(Event, frozen=True, gc=False):
    """Time went on."""


class Accept(Effect, frozen=True, gc=False):
    """Answer SUBSCRIBE: the follower's log is a beginning of ours, it goes on where it ends. `Send` follows."""

    session: Hashable
    copy_id: int
    subscription: int
    leader_epoch: int
    log_start: int
    high_watermark: int


class Diverge(Effect, frozen=True, gc=False):
    """Answer SUBSCRIBE: the follower has what we have not. Our largest epoch not above its last is `epoch`, which ends
    at `end_offset`: it cuts its log there, or where its own epoch ends if that is lower, and subscribes again."""

    session: Hashable
    copy_id: int
    subscription: int
    leader_epoch: int
    epoch: int
    end_offset: int


class BeginAnew(Effect, frozen=True, gc=False):
    """Answer SUBSCRIBE: the follower's log ends below the beginning of ours, or has nothing in common with it. It drops
    everything, begins at `offset`, which is the base of the batch that our log start lies in, and subscribes again."""

    session: Hashable
    copy_id: int
    subscription: int
    leader_epoch: int
    offset: int


class Reject(Effect, frozen=True, gc=False):
    """Answer SUBSCRIBE or COPIED with an error: another epoch (FencedLeaderEpochError: ours is newer;
    UnknownLeaderEpochError: its is), an older incarnation (StaleIncarnationError), a copy or session that we do not
    know (InvalidRequestError). The follower subscribes again after a while."""

    session: Hashable
    copy_id: int
    subscription: int
    leader_epoch: int
    error: BrokerError


class Send(Effect, frozen=True, gc=False):
    """Send whole batches from `start_offset` on, of one segment, below `log_end`, at most `size_bytes_max` unless the
    first alone is larger; with them high watermark, log start and `flush_to` (-1: no flush is wanted). Then report
    `Sent`, or `NotSent`, before anything else."""

    session: Hashable
    copy_id: int
    subscription: int
    leader_epoch: int
    start_offset: int
    log_end: int
    size_bytes_max: int
    high_watermark: int
    log_start: int
    flush_to: int


class SendNews(Effect, frozen=True, gc=False):
    """Send an entry without batches: high watermark, log start, `flush_to`. `NotSent` may be reported. It may wait some
    milliseconds for company if `is_urgent` is false."""

    session: Hashable
    copy_id: int
    subscription: int
    leader_epoch: int
    high_watermark: int
    log_start: int
    flush_to: int
    is_urgent: bool


class Inform(Effect, frozen=True, gc=False):
    """Hand this event to the partition's own state machine."""

    event: ev.FollowerAt | ev.FollowerLost
