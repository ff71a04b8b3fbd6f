"""What the broker's own processes say to each other through the router: registration, grants, copies in sync.

Typed structs, encoded as msgpack arrays; the rules of `messages.py` hold here too.
"""

from __future__ import annotations

from zbroker.wire.messages import Message


class Held(Message, frozen=True):
    """A partition that a process leads, or follows, when it registers again."""

    topic_id: int
    partition: int
    copy_id: int
    leader_epoch: int
    is_leader: bool = True


class Register(Message, frozen=True):
    """Process to coordinator: this incarnation is up, and holds this."""

    number: int
    incarnation: int
    board: str
    lane_socket: str
    holding: list[Held]


class Registered(Message, frozen=True):
    """Coordinator to process. `are_elections_durable`: those of all that the process leads are on the disk."""

    cluster_id: str
    coordinator_incarnation: int
    are_elections_durable: bool = False


class CopyPlace(Message, frozen=True):
    """One copy of a partition: its permanent number, the process that has it, and where its files lie."""

    copy_id: int
    number: int
    directory: str


class PartitionGrant(Message, frozen=True):
    """A partition to lead, or to follow: open or make the copy in `directory`.

    `leader` is the process that leads in `leader_epoch`, of the incarnation `leader_incarnation`: the one that is
    asked, or the one to follow. A leader writes `leader_epoch` into its batches. `copies` are all copies, the preferred
    one first. `isr` are the copies in sync, `elr` those that may lead although they are not; the version of both is
    `partition_epoch`, which grows with every change. A grant of a known epoch with a higher `partition_epoch` brings
    news and nothing else. `predecessor` is the copy that led before and whose tail a new leader completes from its
    files (-1: none can be read), `predecessor_board` the board with its last high watermark. `is_epoch_durable`: the
    election is on the disk, so that acks=fsync may be answered. `is_unclean`: a person forced it; records may be lost.
    """

    topic_id: int
    partition: int
    topic: str
    copy_id: int
    directory: str
    leader_epoch: int
    coordinator_cell: int
    config: dict[str, str]
    leader: int = -1
    leader_incarnation: int = 0
    copies: tuple[CopyPlace, ...] = ()
    isr: tuple[int, ...] = ()
    elr: tuple[int, ...] = ()
    partition_epoch: int = 0
    predecessor: int = -1
    predecessor_board: str = ""
    is_epoch_durable: bool = True
    is_unclean: bool = False


class Grant(Message, frozen=True):
    """Coordinator to process. The same grant twice is the same as once.

    `incarnation` is whom it is for: a grant that comes late must not reach the next process of that number. 0: anybody.
    """

    grants: list[PartitionGrant]
    incarnation: int = 0


class GrantResult(Message, frozen=True):
    """Process to coordinator; `error` 0: the partition is led, or followed.

    `last_epoch` is the leader epoch of the copy's last batch (-1: it is empty). `is_suspect`: the copy has damage below
    its high watermark, or was lost; it must not lead, nor count as in sync, before it was fetched again.
    """

    topic_id: int
    partition: int
    error: int
    message: str
    log_start: int
    log_end: int
    last_epoch: int = -1
    is_suspect: bool = False


class Granted(Message, frozen=True):
    """Process to coordinator, in the order of the grant."""

    results: list[GrantResult]


class Revocation(Message, frozen=True):
    """A partition to close, and its files to delete or to keep."""

    topic_id: int
    partition: int
    delete: bool


class Revoke(Message, frozen=True):
    """Coordinator to process. What is not held is answered like what was closed."""

    partitions: list[Revocation]


class Reconfigure(Message, frozen=True):
    """Coordinator to process: the topic's settings in force."""

    topic_id: int
    config: dict[str, str]


class Announce(Message, frozen=True):
    """Coordinator to process: a new coordinator is up, register again."""

    coordinator_incarnation: int


class AlterIsr(Message, frozen=True):
    """Leader to coordinator: these copies shall be in sync from now on (KIP-497).

    `partition_epoch` is the version that the change starts from; any other is refused (InvalidUpdateVersionError), and
    so is another `leader_epoch` (FencedLeaderEpochError). `incarnations` names, for each copy of `isr`, the process
    that reported its log end: a copy whose process was replaced since then is refused (StaleIncarnationError, KIP-966).
    """

    topic_id: int
    partition: int
    leader_epoch: int
    partition_epoch: int
    isr: list[int]
    incarnations: list[int]


class IsrAltered(Message, frozen=True):
    """Coordinator to leader: what holds from now on."""

    partition_epoch: int
    isr: list[int]
    elr: list[int]


class CopySuspect(Message, frozen=True):
    """Process to coordinator: a copy was found damaged below the high watermark, or its files failed.

    When the answer (`Done`) comes, the copy is neither in sync nor eligible, and another leads if it led.
    """

    topic_id: int
    partition: int
    copy_id: int
    message: str
