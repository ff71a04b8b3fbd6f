"""What members of consumer groups and the coordinator say to each other: the bodies, as in `messages.py`.

Partitions are named by topic id; topics of a subscription and of an alteration by name, because a person writes those.
Offsets: the next record that the group reads. A member is one consumer from its first heartbeat until it leaves; it
makes its own member id, anew each time it joins.
"""

from __future__ import annotations

from zbroker.wire.messages import Message

JOIN_EPOCH = 0
NO_MEMBER_EPOCH = -1


class GroupHeartbeat(Message, frozen=True):
    """Member to coordinator: I live, want this and own that. The whole of it each time.

    `member_epoch`: the newest that the member has wholly acted on; 0: it joins, and owns nothing. `seen_epoch`: the
    newest that it has been told, -1: the same. `owned`: (topic id, partition) of everything that it reads now, so also
    what the assignment of `member_epoch` gave it: what that named and `owned` leaves out is given up by this.
    `incarnation`: of the member's process, when it can map files of the broker; 0: it commits by message. `topics`:
    what it subscribes to; a member with a `pattern` matches it itself, against the topics of `topics_version`.
    `assignors`: names, the one that it wants most first; `assignor_data`: what a member that runs an assignor is to
    know of this one. `polled_ago_ms`: since when the application has not asked for records. `hold_ms`: how long the
    coordinator may keep this request when it has no news for the member; a newer heartbeat of the same member has the
    older one answered at once.
    """

    group_id: str
    member_id: str
    member_epoch: int
    instance_id: str
    client_id: str
    incarnation: int
    topics: list[str]
    pattern: str
    assignors: list[str]
    assignor_data: bytes
    owned: list[tuple[int, int]]
    session_timeout_ms: int
    max_poll_interval_ms: int
    polled_ago_ms: int
    hold_ms: int
    topics_version: int = 0
    seen_epoch: int = -1


class SlotFilePlace(Message, frozen=True):
    """A file with slots of this member, by its number in `AssignedPartition`."""

    file: int
    path: str


class AssignedPartition(Message, frozen=True):
    """A partition that the member may read, from `committed` on (-1: the group has committed nothing here).

    Its commits are stored into `slot` of `file`; `file` -1: they are sent as messages.
    """

    partition: int
    file: int
    slot: int
    committed: int
    leader_epoch: int = -1
    metadata: str = ""


class AssignedTopic(Message, frozen=True):
    """A topic of an assignment."""

    topic_id: int
    name: str
    partitions: list[AssignedPartition]


class SubscribedMember(Message, frozen=True):
    """A member as an assignor sees it. `owned`: what it reads now, (topic id, partition)."""

    member_id: str
    instance_id: str
    topics: list[str]
    owned: list[tuple[int, int]]
    assignor_data: bytes


class AssignableTopic(Message, frozen=True):
    """A topic as an assignor sees it."""

    topic_id: int
    name: str
    partition_count: int


class AssignWork(Message, frozen=True):
    """Coordinator to the member that it chose: run the assignor, and answer with `GroupAssign` of the same number
    within `deadline_ms`."""

    number: int
    assignor: str
    deadline_ms: int
    members: list[SubscribedMember]
    topics: list[AssignableTopic]


class GroupAssignment(Message, frozen=True):
    """Coordinator to member: the whole of what it may read in `member_epoch`.

    What it owns and does not find here it gives up, and says so. An answer of an older epoch than the member's is to be
    ignored. `members`: how many the group has; a member without partitions waits.
    """

    member_epoch: int
    group_epoch: int
    heartbeat_interval_ms: int
    state: str
    assignor: str
    topics_version: int
    members: int
    files: list[SlotFilePlace]
    topics: list[AssignedTopic]
    work: AssignWork | None = None


class MemberTarget(Message, frozen=True):
    """What a custom assignor gives to one member: (topic id, partition)."""

    member_id: str
    partitions: list[tuple[int, int]]


class GroupAssign(Message, frozen=True):
    """Member to coordinator: the result of `AssignWork`; `error`: why there is none. Answered with `Done`."""

    group_id: str
    member_id: str
    number: int
    targets: list[MemberTarget]
    error: str = ""


class GroupLeave(Message, frozen=True):
    """Member to coordinator: it reads nothing any more, and goes. Answered with `Done` when its commits are kept.

    `is_temporary`: a static member that comes back; its partitions wait for it until its session times out.
    """

    group_id: str
    member_id: str
    is_temporary: bool = False
    reason: str = ""


class OffsetToCommit(Message, frozen=True):
    """An offset of one partition. `topic_id` 0: the topic is `topic`; else the name is not looked at. In
    `AlterGroupOffsets` an offset of -1 removes what was committed."""

    topic: str
    topic_id: int
    partition: int
    offset: int
    leader_epoch: int = -1
    metadata: str = ""


class OffsetCommit(Message, frozen=True):
    """Client to coordinator: commit these; answered when they are in the log, `durable`: on the disk.

    `member_id` "": of nobody, which is allowed while the group has no members. A member with slots stores into them
    first, and names the same offset here: the slot is what counts, this adds the metadata or the durability. With
    `durable` and no offsets: everything that the member's slots hold.
    """

    group_id: str
    member_id: str
    member_epoch: int
    durable: bool
    offsets: list[OffsetToCommit]


class AlterGroupOffsets(Message, frozen=True):
    """Client to coordinator: set a group's offsets. Refused with NonEmptyGroupError while it has members."""

    group_id: str
    offsets: list[OffsetToCommit]


class OffsetResult(Message, frozen=True):
    """What became of one partition; `error` 0: done."""

    topic: str
    topic_id: int
    partition: int
    error: int
    message: str


class OffsetResults(Message, frozen=True):
    """Coordinator to client: OffsetCommit, AlterGroupOffsets, in the order of the request."""

    offsets: list[OffsetResult]


class OffsetFetch(Message, frozen=True):
    """Client to coordinator: what a group has committed, of these (topic id, partition), or of all for None."""

    group_id: str
    partitions: list[tuple[int, int]] | None


class CommittedOffset(Message, frozen=True):
    """A committed offset; -1: none. `committed_ms`: when the coordinator saw it, wall clock."""

    topic: str
    topic_id: int
    partition: int
    offset: int
    leader_epoch: int
    metadata: str
    committed_ms: int


class OffsetsFetched(Message, frozen=True):
    """Coordinator to client."""

    offsets: list[CommittedOffset]


class ListGroups(Message, frozen=True):
    """Client to coordinator: groups in one of these states, or all for an empty list."""

    states: list[str]


class GroupInfo(Message, frozen=True):
    """A group. `state`: Empty, Assigning, Reconciling or Stable."""

    group_id: str
    state: str
    group_epoch: int
    assignor: str
    members: int


class GroupsListed(Message, frozen=True):
    """Coordinator to client, by name."""

    groups: list[GroupInfo]


class DescribeGroups(Message, frozen=True):
    """Client to coordinator."""

    group_ids: list[str]


class MemberInfo(Message, frozen=True):
    """A member: what it reads (`owned`), what it is to give up (`revoking`) and what it should have (`target`), each
    (topic id, partition). `pid` 0: unknown. `is_away`: a static member that may come back."""

    member_id: str
    instance_id: str
    client_id: str
    pid: int
    member_epoch: int
    topics: list[str]
    pattern: str
    owned: list[tuple[int, int]]
    revoking: list[tuple[int, int]]
    target: list[tuple[int, int]]
    polled_ago_ms: int
    is_local: bool
    is_away: bool


class GroupDescription(Message, frozen=True):
    """A group, or the error that stands in its place."""

    group_id: str
    error: int
    state: str
    group_epoch: int
    assignor: str
    members: list[MemberInfo]
    offsets: list[CommittedOffset]


class GroupsDescribed(Message, frozen=True):
    """Coordinator to client, in the order of the request."""

    groups: list[GroupDescription]


class DeleteGroups(Message, frozen=True):
    """Client to coordinator: forget groups that have no members, and their offsets."""

    group_ids: list[str]


class RemoveGroupMembers(Message, frozen=True):
    """Client to coordinator: throw members out, by member id or instance id; all for two empty lists."""

    group_id: str
    member_ids: list[str]
    instance_ids: list[str]


class GroupResult(Message, frozen=True):
    """What became of one group, or of one member; `error` 0: done."""

    name: str
    error: int
    message: str


class GroupResults(Message, frozen=True):
    """Coordinator to client: DeleteGroups, RemoveGroupMembers, in the order of the request."""

    results: list[GroupResult]
