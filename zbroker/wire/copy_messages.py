"""What clients ask about copies, and what producers ask for their ids: the bodies, as in `messages.py`."""

from __future__ import annotations

from zbroker.wire.messages import Message


class ElectLeaders(Message, frozen=True):
    """Client to coordinator: have the preferred copies lead; all partitions of all topics for an empty list.

    `unclean`: a copy that is not in sync may be elected when no other is left, and records may be lost.
    """

    partitions: list[tuple[str, int]]
    unclean: bool = False


class MoveCopy(Message, frozen=True):
    """Client to coordinator: the partition's copy that `source` has goes to `target` (process numbers).

    `source` -1: the one that leads. Answered when the new copy is in sync and the old one is gone.
    """

    topic: str
    partition: int
    source: int
    target: int


class DrainProcess(Message, frozen=True):
    """Client to coordinator: every copy of a process goes to others. Answered when it has none."""

    number: int


class PartitionResult(Message, frozen=True):
    """What became of one partition; `error` 0: done."""

    topic: str
    partition: int
    error: int
    message: str


class PartitionResults(Message, frozen=True):
    """Coordinator to client: ElectLeaders, MoveCopy, DrainProcess."""

    partitions: list[PartitionResult]


class InitProducerId(Message, frozen=True):
    """Client to coordinator: a producer's id and epoch. `transactional_id` "": a new id, epoch 0.

    With a name: the id that it had, one epoch higher, which fences whoever used it before.
    """

    transactional_id: str


class ProducerId(Message, frozen=True):
    """Coordinator to client. Ids are handed out once, over all restarts."""

    producer_id: int
    producer_epoch: int


class ProduceOptions(Message, frozen=True):
    """The optional second body frame of a produce request.

    `expected_offset`: append only if this is the offset that the batch would get; -1: wherever it comes. `dedup_id`: an
    application's own name for the batch; one that came before, within the topic's `dedup.window.ms`, is acknowledged
    with the offset that it got then and not appended again; b"": none.
    """

    expected_offset: int = -1
    dedup_id: bytes = b""


class CopyState(Message, frozen=True):
    """A copy as its leader sees it: how far it is, and whether it is in sync."""

    copy_id: int
    number: int
    log_end: int
    durable: int
    lag_records: int
    is_in_sync: bool


class PartitionStateRequest(Message, frozen=True):
    """Client to worker: how the copies of these partitions stand: (topic id, partition)."""

    partitions: list[tuple[int, int]]


class PartitionState(Message, frozen=True):
    """A partition as its leader sees it."""

    topic_id: int
    partition: int
    error: int
    leader_epoch: int
    log_start: int
    high_watermark: int
    log_end: int
    durable: int
    copies: list[CopyState]


class PartitionStates(Message, frozen=True):
    """Worker to client, in the order of the request."""

    partitions: list[PartitionState]
