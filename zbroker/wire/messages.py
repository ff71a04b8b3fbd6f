"""The bodies of all requests and replies that are not hot: typed structs, encoded as msgpack arrays.

Fields are only ever added at the end, with a default: an older reader ignores what it does not know, a newer one fills
in what is missing. Hot bodies (produce, wait) are fixed structs in `layout.py`.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Message(msgspec.Struct, array_like=True, frozen=True):
    """Base of all bodies."""


class Hello(Message, frozen=True):
    """Client to router: who asks, and which protocol versions it speaks."""

    client_id: str
    protocol_min: int
    protocol_max: int
    software: str


class Welcome(Message, frozen=True):
    """Router to client: the version to speak, and what this broker allows. `batch_max_bytes` is what topics take that
    say nothing else themselves; 0: not known."""

    protocol: int
    cluster_id: str
    software: str
    run_dir: str
    boards_dir: str
    router_incarnation: int
    owner_uid: int
    shared_memory: bool
    message_max_bytes: int
    batch_max_bytes: int = 0


class ProcessHello(Message, frozen=True):
    """Process to router: messages for this process number go to this connection from now on."""

    number: int
    incarnation: int


class ProcessWelcome(Message, frozen=True):
    """Router to process: watch this incarnation, and say hello again when it is gone."""

    router_incarnation: int


class MetadataRequest(Message, frozen=True):
    """Client to coordinator: these topics, or all for None; `auto_create` makes those that are absent, if allowed."""

    topics: list[str] | None
    auto_create: bool


class ProcessInfo(Message, frozen=True):
    """A registered process."""

    number: int
    name: str
    incarnation: int
    board: str
    lane_socket: str
    state: str


class PartitionInfo(Message, frozen=True):
    """A partition: its leader (-1: none), the leader's epoch and incarnation, its copies, where its files are.

    `owners` names the process of each copy of `replicas`, in their order.
    """

    partition: int
    leader: int
    leader_epoch: int
    leader_incarnation: int
    replicas: list[int]
    isr: list[int]
    elr: list[int]
    directory: str
    coordinator_cell: int
    owners: list[int] = []


class TopicInfo(Message, frozen=True):
    """A topic, or the error that stands in its place. `config` holds what differs from the defaults."""

    name: str
    topic_id: int
    error: int
    config: dict[str, str]
    partitions: list[PartitionInfo]


class MetadataReply(Message, frozen=True):
    """Coordinator to client. `version` grows with every change."""

    version: int
    cluster_id: str
    coordinator_board: str
    processes: list[ProcessInfo]
    topics: list[TopicInfo]


class FetchPartition(Message, frozen=True):
    """From which offset of which partition, and at most how many bytes."""

    topic_id: int
    partition: int
    offset: int
    max_bytes: int


class FetchRequest(Message, frozen=True):
    """Client to worker: answer when `min_bytes` are there or after `max_wait_ms`.

    `is_durable_only`: nothing at or behind the durable offset is given out (isolation_level="read_durable").
    """

    max_wait_ms: int
    min_bytes: int
    max_bytes: int
    partitions: list[FetchPartition]
    is_durable_only: bool = False


class FetchedPartition(Message, frozen=True):
    """What was found; the batches' bytes follow in the second frame, in the same order.

    `crc`: CRC-32C of these bytes, since a batch's own leaves out where it lies and of which epoch it is; -1: not known.
    """

    topic_id: int
    partition: int
    error: int
    high_watermark: int
    log_start: int
    size_bytes: int
    crc: int = -1


class FetchReply(Message, frozen=True):
    """Worker to client."""

    partitions: list[FetchedPartition]


LATEST = -1
EARLIEST = -2
LOG_END = -3


class OffsetQuery(Message, frozen=True):
    """The first offset at or after a time in ms, or LATEST (high watermark), EARLIEST, LOG_END."""

    topic_id: int
    partition: int
    timestamp_ms: int


class ListOffsetsRequest(Message, frozen=True):
    """Client to worker."""

    partitions: list[OffsetQuery]


class OffsetAnswer(Message, frozen=True):
    """`offset` -1: no record that late."""

    topic_id: int
    partition: int
    error: int
    offset: int
    timestamp_ms: int


class ListOffsetsReply(Message, frozen=True):
    """Worker to client."""

    partitions: list[OffsetAnswer]


class OpenLane(Message, frozen=True):
    """Client to worker: sizes of the two rings that it wants."""

    request_bytes: int
    reply_bytes: int


class LaneOffer(Message, frozen=True):
    """Worker to client: fetch the lane at this socket with this one-use token."""

    token: bytes
    socket: str
    board: str


class DeleteRecords(Message, frozen=True):
    """Client to worker: everything before `offset` may go; -1: up to the high watermark."""

    offset: int


class LowWatermark(Message, frozen=True):
    """Worker to client: the log starts here now."""

    log_start: int


class NewTopicSpec(Message, frozen=True):
    """A topic to create; -1: the broker's default."""

    name: str
    num_partitions: int
    replication_factor: int
    config: dict[str, str]


class CreateTopics(Message, frozen=True):
    """Client to coordinator. Answered when every new partition has a leader, or the request's time is over."""

    topics: list[NewTopicSpec]
    validate_only: bool


class TopicResult(Message, frozen=True):
    """What became of one topic; `error` 0: done."""

    name: str
    error: int
    message: str
    topic_id: int


class TopicResults(Message, frozen=True):
    """Coordinator to client, in the order of the request."""

    topics: list[TopicResult]


class DeleteTopics(Message, frozen=True):
    """Client to coordinator."""

    names: list[str]


class CreatePartitions(Message, frozen=True):
    """Client to coordinator: the topic shall have `total` partitions."""

    name: str
    total: int


class AlterConfigs(Message, frozen=True):
    """Client to coordinator: settings to set, and settings to put back to their defaults."""

    name: str
    set: dict[str, str]
    unset: list[str]


class DescribeConfigs(Message, frozen=True):
    """Client to coordinator."""

    name: str


class ConfigEntry(Message, frozen=True):
    """One setting in force. `origin`: topic, broker or default."""

    name: str
    value: str
    origin: Literal["topic", "broker", "default"]


class ConfigEntries(Message, frozen=True):
    """Coordinator to client."""

    entries: list[ConfigEntry]


class ClusterInfo(Message, frozen=True):
    """Coordinator to client."""

    cluster_id: str
    software: str
    data_dir: str
    processes: list[ProcessInfo]
    topic_count: int
    partition_count: int


class Done(Message, frozen=True):
    """An answer without content."""
