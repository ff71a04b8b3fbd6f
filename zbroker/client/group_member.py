"""What one member of a consumer group is, wants and has been told: decides, and does no I/O.

Two threads use it, one at a time: the heartbeats' thread says what came from the coordinator, the consumer's thread
acts on it when the application asks for records. Guarantees: a partition is owned from `take` until `give_up`, and no
answer changes that; `member_epoch` is the newest epoch whose changes were all made; an answer that is older than that,
or meant for a member that this one is no longer, changes nothing. Who was thrown out owns nothing more once it has said
so to the application, and comes back under a new name.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final, NamedTuple

from zbroker.client.settings import ConsumerSettings
from zbroker.clock import NS_PER_MS
from zbroker.errors import (
    BrokerError,
    FencedInstanceIdError,
    FencedMemberEpochError,
    UnknownMemberIdError,
    UnreleasedInstanceIdError,
)
from zbroker.ids import TopicPartition
from zbroker.wire.group_messages import JOIN_EPOCH, AssignWork, GroupAssignment, GroupHeartbeat, SlotFilePlace

RETRY_NS: Final = 20 * NS_PER_MS
PAUSE_NS: Final = 20 * NS_PER_MS  # between an answer without news and the next heartbeat, should it come at once
REMOTE_HOLD_MS: Final = 500  # where the coordinator's death cannot be seen
INSTANCE_WAIT_MS: Final = 2_000  # a local one that ends is seen at once

Key = tuple[int, int]


class Phase(Enum):
    """Where a member stands."""

    OUT = 1
    JOINING = 2
    IN = 3
    LOST = 4  # it was thrown out, or has left for not being asked for records; the application does not know yet


class Grant(NamedTuple):
    """A partition that the member may read. `committed` -1: the group has committed nothing; `file` -1: by message."""

    tp: TopicPartition
    topic_id: int
    file: int
    slot: int
    committed: int

    @property
    def key(self) -> Key:
        """How the coordinator names the partition."""
        return self.topic_id, self.tp.partition

    @property
    def place(self) -> tuple[Key, int, int]:
        """What is another when the partition was taken away and given again."""
        return self.key, self.file, self.slot


class Target(NamedTuple):
    """What an answer says that the member may read."""

    member_epoch: int
    grants: dict[Key, Grant]
    files: Sequence[SlotFilePlace]
    state: str


class GroupMember:
    """See the module."""

    def __init__(self, settings: ConsumerSettings, assignors: Sequence[str], incarnation: int) -> None:
        """`incarnation`: of this process when it can map the broker's files, else 0."""
        assert settings.group_id is not None
        self.group_id: str = settings.group_id
        self.instance_id = settings.group_instance_id or ""
        self._settings = settings
        self._assignors = list(assignors)
        self._incarnation = incarnation
        self.hold_ms = settings.heartbeat_interval_ms
        if not incarnation:
            self.hold_ms = min(self.hold_ms, REMOTE_HOLD_MS)
        self._topics: tuple[str, ...] = ()
        self._pattern = ""
        self._matched_version = 0
        self._joining_since_ns = 0
        self._work_number = 0
        self.phase = Phase.OUT
        self.member_id = ""
        self.member_epoch = JOIN_EPOCH
        self.seen_epoch = JOIN_EPOCH
        self.group_epoch = 0
        self.topics_version = 0
        self.owned: dict[Key, Grant] = {}
        self.target: Target | None = None
        self.work: AssignWork | None = None
        self.error: BrokerError | None = None
        self.reason: BrokerError | None = None  # of the last loss
        self.next_send_ns = 0
        self.is_urgent = False  # the coordinator does not know yet what it should: do not wait for an answer

    # --- the application's side --------------------------------------------------------------------------------------

    @property
    def has_news(self) -> bool:
        """Whether the consumer's thread has something to do."""
        return self.phase is Phase.LOST or self.error is not None or self.has_target

    @property
    def has_target(self) -> bool:
        """Whether the newest answer was not acted on yet."""
        target = self.target
        return target is not None and (
            target.member_epoch != self.member_epoch or target.grants.keys() != self.owned.keys() or self._is_regranted
        )

    @property
    def _is_regranted(self) -> bool:
        assert self.target is not None
        return any(grant.place != self.owned[key].place for key, grant in self.target.grants.items())

    @property
    def wants_match(self) -> bool:
        """Whether the topics have changed since a pattern was matched."""
        return bool(self._pattern) and self.topics_version != self._matched_version

    def want(self, topics: Iterable[str], pattern: str, matched_version: int) -> None:
        """Subscribe to these; `topics` are the matches of a pattern among the topics of `matched_version`."""
        wanted = tuple(sorted(topics))
        if (wanted, pattern, matched_version) != (self._topics, self._pattern, self._matched_version):
            self._topics, self._pattern, self._matched_version = wanted, pattern, matched_version
            self.is_urgent = True

    def join(self, now_ns: int) -> None:
        """Become a member, under a new name."""
        assert self.phase in (Phase.OUT, Phase.LOST), self.phase
        self._forget()
        self.phase = Phase.JOINING
        self.member_id = uuid.uuid4().hex
        self._joining_since_ns = now_ns
        self.is_urgent = True

    def give_up(self, keys: Iterable[Key]) -> None:
        """These are read no more."""
        for key in keys:
            del self.owned[key]

    def take(self, target: Target) -> None:
        """Everything that the answer says has been done: what it names, and nothing else, is owned."""
        self.owned = dict(target.grants)
        self.member_epoch = target.member_epoch
        self.is_urgent = True

    def lose(self, error: BrokerError) -> None:
        """It is no member any more. What it owned it owns until the application was told."""
        if self.phase in (Phase.JOINING, Phase.IN):
            self.phase = Phase.LOST
            self.target = None
            self.work = None
            self.reason = error

    def leave(self) -> None:
        """It is no member, and owns nothing."""
        self._forget()
        self.phase = Phase.OUT

    def take_error(self) -> BrokerError | None:
        """The error that the application is to get now."""
        error, self.error = self.error, None
        return error

    # --- the coordinator's side --------------------------------------------------------------------------------------

    @property
    def is_due(self) -> bool:
        """Whether heartbeats are to be sent at all."""
        return self.phase in (Phase.JOINING, Phase.IN)

    def heartbeat(self, polled_ago_ms: int, hold_ms: int) -> GroupHeartbeat:
        """The next one; without news it is answered after `hold_ms`."""
        settings = self._settings
        return GroupHeartbeat(
            group_id=self.group_id,
            member_id=self.member_id,
            member_epoch=self.member_epoch,
            instance_id=self.instance_id,
            client_id=settings.client_id,
            incarnation=self._incarnation,
            topics=list(self._topics),
            pattern=self._pattern,
            assignors=self._assignors,
            assignor_data=b"",
            owned=list(self.owned),
            session_timeout_ms=settings.session_timeout_ms,
            max_poll_interval_ms=settings.max_poll_interval_ms,
            polled_ago_ms=polled_ago_ms,
            hold_ms=hold_ms,
            topics_version=self.topics_version,
            seen_epoch=self.seen_epoch,
        )

    def take_answer(self, member_id: str, answer: GroupAssignment, now_ns: int) -> None:
        """What the coordinator said to the member of this name."""
        if member_id != self.member_id or not self.is_due or answer.member_epoch < self.seen_epoch:
            return
        is_news = answer.member_epoch != self.seen_epoch
        self.phase = Phase.IN
        self.seen_epoch = answer.member_epoch
        self.group_epoch = answer.group_epoch
        self.topics_version = answer.topics_version
        if answer.work is not None and answer.work.number != self._work_number:
            self.work, self._work_number = answer.work, answer.work.number
        self.target = Target(answer.member_epoch, _grants(answer), answer.files, answer.state)
        self.next_send_ns = 0 if is_news else now_ns + PAUSE_NS

    def take_refusal(self, member_id: str, error: BrokerError, now_ns: int) -> None:
        """The heartbeat of the member of this name failed."""
        if member_id != self.member_id or not self.is_due:
            return
        if isinstance(error, UnknownMemberIdError | FencedMemberEpochError):
            self.lose(error)
        elif isinstance(error, FencedInstanceIdError):
            self.error = error
            self.lose(error)
        elif error.retriable or self._may_wait_for_instance(error, now_ns):
            self.next_send_ns = now_ns + RETRY_NS
        else:
            self.error = error
            if self.phase is Phase.IN:
                self.lose(error)
            else:
                self.leave()

    def _may_wait_for_instance(self, error: BrokerError, now_ns: int) -> bool:
        """Whether the one that has this instance id may be a dead one that nobody has missed yet."""
        wait_ms = INSTANCE_WAIT_MS if self._incarnation else self._settings.session_timeout_ms + INSTANCE_WAIT_MS
        is_released_later = now_ns - self._joining_since_ns < wait_ms * NS_PER_MS
        return isinstance(error, UnreleasedInstanceIdError) and is_released_later

    def take_work(self) -> AssignWork | None:
        """The assignment that this member is to compute, once."""
        work, self.work = self.work, None
        return work

    def _forget(self) -> None:
        self.member_id = ""
        self.member_epoch = self.seen_epoch = JOIN_EPOCH
        self.owned = {}
        self.target = None
        self.work = None
        self._work_number = 0


def _grants(answer: GroupAssignment) -> dict[Key, Grant]:
    return {
        (topic.topic_id, one.partition): Grant(
            TopicPartition(topic.name, one.partition), topic.topic_id, one.file, one.slot, one.committed
        )
        for topic in answer.topics
        for one in topic.partitions
    }
