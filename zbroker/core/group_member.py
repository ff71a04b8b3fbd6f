"""A member of a group, as the coordinator knows it. It decides nothing: `group` does."""

from __future__ import annotations

from msgspec import Struct, field

from zbroker.clock import NS_PER_MS
from zbroker.core.assignors import Candidate
from zbroker.core.group_offsets import Committed
from zbroker.core.sticky import Key
from zbroker.wire.group_messages import GroupHeartbeat

NOT_REVOKED = -1
NO_FILE = -1


class Holding(Struct):
    """A partition that a member was granted, from `granted_epoch` on. `revoked_epoch`: the epoch that took it back.

    `file` -1: the member has no slot for it and commits by message. `start`: what had been committed then.
    """

    file: int
    slot: int
    granted_epoch: int
    start: Committed | None
    revoked_epoch: int = NOT_REVOKED

    @property
    def is_revoked(self) -> bool:
        """Whether the member is to give it up."""
        return self.revoked_epoch != NOT_REVOKED


class Parked(Struct, frozen=True):
    """A heartbeat that waits for news."""

    request: object
    until_ns: int


class Member(Struct):
    """See the module. `joined`: a number that grows; a static member that comes back keeps it.

    `is_heard`: it has said how it is since this coordinator started. `away_since_ns`: a static member that may come
    back; its partitions wait for it.
    """

    member_id: str
    instance_id: str
    client_id: str
    incarnation: int
    joined: int
    heard_ns: int
    session_timeout_ms: int
    max_poll_interval_ms: int
    polled_ns: int
    epoch: int = 0
    topics: tuple[str, ...] = ()
    pattern: str = ""
    assignors: tuple[str, ...] = ()
    assignor_data: bytes = b""
    holdings: dict[Key, Holding] = field(default_factory=dict)
    target: frozenset[Key] = frozenset()
    parked: Parked | None = None
    revoking_since_ns: int | None = None
    away_since_ns: int | None = None
    is_heard: bool = True
    work_told: int = 0

    @property
    def is_away(self) -> bool:
        """Whether it is a static member that may come back."""
        return self.away_since_ns is not None

    @property
    def is_revoking(self) -> bool:
        """Whether it has yet to give something up."""
        return any(holding.is_revoked for holding in self.holdings.values())

    def take_subscription(self, body: GroupHeartbeat) -> bool:
        """Take over what it says that it wants. Returns whether that is something new."""
        before = (self.topics, self.assignors, self.assignor_data)
        self.topics, self.pattern = tuple(sorted(set(body.topics))), body.pattern
        self.assignors, self.assignor_data = tuple(body.assignors), body.assignor_data
        return before != (self.topics, self.assignors, self.assignor_data)

    def take_signs_of_life(self, body: GroupHeartbeat, now_ns: int) -> bool:
        """Take over its timeouts and when it polled. Returns whether the timeouts are new."""
        before = (self.session_timeout_ms, self.max_poll_interval_ms)
        self.heard_ns, self.polled_ns = now_ns, now_ns - body.polled_ago_ms * NS_PER_MS
        self.session_timeout_ms, self.max_poll_interval_ms = body.session_timeout_ms, body.max_poll_interval_ms
        return before != (self.session_timeout_ms, self.max_poll_interval_ms)

    def given_up(self, body: GroupHeartbeat) -> list[Key]:
        """What it had been granted, or was told to give up, in an epoch that it has acted on, and does not own."""
        owned = {(topic_id, number) for topic_id, number in body.owned}
        acted = body.member_epoch
        return [
            key
            for key, holding in self.holdings.items()
            if key not in owned and max(holding.granted_epoch, holding.revoked_epoch) <= acted
        ]

    def candidate(self, topic_ids: frozenset[int]) -> Candidate:
        """What an assignor needs to know. What was meant for it counts as owned: that is where the group was going."""
        owned = self.target or frozenset(key for key, holding in self.holdings.items() if not holding.is_revoked)
        return Candidate(self.member_id, self.instance_id, topic_ids, owned)

    def session_ends_ns(self) -> int:
        """When it is thrown out unless it is heard."""
        since_ns = self.heard_ns if self.away_since_ns is None else self.away_since_ns
        return since_ns + self.session_timeout_ms * NS_PER_MS

    def revocation_ends_ns(self) -> int | None:
        """When it is thrown out unless it gives up what it was told to; None: there is nothing."""
        if self.revoking_since_ns is None:
            return None
        return self.revoking_since_ns + self.max_poll_interval_ms * NS_PER_MS
