"""What the admin client says of topics: what the metadata know, what the leaders' boards show, what leaders say.

Guarantees: a description is there even where no leader answers; what is then unknown is None. Nothing is cached.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from zbroker import ids
from zbroker.client.connection import Connection
from zbroker.client.offsets import ask_offsets
from zbroker.errors import BrokerError
from zbroker.ids import TopicPartition
from zbroker.shm.board_reader import BoardReader
from zbroker.wire.codec import decode, encode
from zbroker.wire.copy_messages import CopyState, PartitionStateRequest, PartitionStates
from zbroker.wire.layout import Api
from zbroker.wire.messages import EARLIEST, LATEST, LOG_END, PartitionInfo, ProcessInfo, TopicInfo

STATE_TIMEOUT_MS: Final = 2_000
STATES_PER_REQUEST: Final = 500
ENDS: Final = {"earliest": EARLIEST, "latest": LATEST, "end": LOG_END}


class CopyDescription(msgspec.Struct, frozen=True):
    """A copy: who has it, whether it leads, is in sync or eligible; where its log ends, how far behind it is."""

    copy_id: int
    process: str
    is_leader: bool
    is_in_sync: bool
    is_eligible: bool
    log_end: int | None
    durable: int | None
    lag_records: int | None


class PartitionDescription(msgspec.Struct, frozen=True):
    """A partition as it is now. Offsets are None while it has no leader; sizes also where its board cannot be read.

    `replicas`, `isr` and `elr` are copy ids, the preferred copy first; `copies` says the same by process.
    """

    partition: int
    leader: int | None
    leader_name: str | None
    leader_pid: int | None
    leader_epoch: int
    replicas: list[int]
    isr: list[int]
    elr: list[int]
    directory: str
    log_start: int | None
    high_watermark: int | None
    log_end: int | None
    size_bytes: int | None
    segment_count: int | None
    copies: list[CopyDescription] = []


class TopicDescription(msgspec.Struct, frozen=True):
    """A topic as it is now; `error` is set when it could not be created or found and errors are not raised."""

    name: str
    topic_id: int
    config: dict[str, str]
    partitions: list[PartitionDescription]
    error: str = ""


def describe_topic(connection: Connection, topic: TopicInfo, processes: Mapping[int, ProcessInfo]) -> TopicDescription:
    """A topic, with what its leaders' boards and its leaders say."""
    boards = {info.leader: _board_of(connection, processes.get(info.leader)) for info in topic.partitions}
    copies = _copies_of(connection, topic)
    try:
        partitions = [
            _describe_one(connection, topic, info, boards[info.leader], processes, copies) for info in topic.partitions
        ]
    finally:
        for board in boards.values():
            if board is not None:
                board.close()
    return TopicDescription(topic.name, topic.topic_id, topic.config, partitions)


def _board_of(connection: Connection, process: ProcessInfo | None) -> BoardReader | None:
    if process is None or not connection.welcome.shared_memory:
        return None
    try:
        return BoardReader.open(Path(process.board))
    except (FileNotFoundError, BrokerError):
        return None


def _copies_of(connection: Connection, topic: TopicInfo) -> dict[tuple[int, int], CopyState]:
    """(partition, copy id) -> state, of partitions with several copies whose leaders answer."""
    asked: dict[int, list[tuple[int, int]]] = {}
    for info in topic.partitions:
        if info.leader >= 0 and len(info.replicas) > 1:
            asked.setdefault(info.leader, []).append((topic.topic_id, info.partition))
    found: dict[tuple[int, int], CopyState] = {}
    for leader, keys in asked.items():
        for first in range(0, len(keys), STATES_PER_REQUEST):
            request = PartitionStateRequest(keys[first : first + STATES_PER_REQUEST])
            try:
                frames = connection.request(
                    leader, Api.PARTITION_STATE, [encode(request)], timeout_ms=STATE_TIMEOUT_MS, repeats=False
                )
            except BrokerError:
                break
            for state in decode(PartitionStates, frames[0]).partitions:
                found.update({(state.partition, copy.copy_id): copy for copy in state.copies})
    return found


def _describe_one(
    connection: Connection,
    topic: TopicInfo,
    info: PartitionInfo,
    board: BoardReader | None,
    processes: Mapping[int, ProcessInfo],
    copies: Mapping[tuple[int, int], CopyState],
) -> PartitionDescription:
    process = processes.get(info.leader)
    is_led = info.leader >= 0
    cell = board.partition_cell(topic.topic_id, info.partition) if board is not None else None
    now = cell.view() if cell is not None else None
    ends: tuple[int | None, ...] = (None, None, None)
    if now is not None:
        ends = (now.log_start, now.high_watermark, now.log_end)
    elif is_led:
        ends = _ends(connection, TopicPartition(topic.name, info.partition))
    return PartitionDescription(
        partition=info.partition,
        leader=info.leader if is_led else None,
        leader_name=process.name if process is not None else None,
        leader_pid=ids.pid_of(info.leader_incarnation) if is_led else None,
        leader_epoch=info.leader_epoch,
        replicas=info.replicas,
        isr=info.isr,
        elr=info.elr,
        directory=info.directory,
        log_start=ends[0],
        high_watermark=ends[1],
        log_end=ends[2],
        size_bytes=now.size_bytes if now else None,
        segment_count=now.segment_count if now else None,
        copies=[
            _copy(info, copy_id, owner, copies.get((info.partition, copy_id)), ends[2])
            for copy_id, owner in zip(info.replicas, info.owners, strict=False)
        ],
    )


def _copy(
    info: PartitionInfo, copy_id: int, owner: int, state: CopyState | None, leader_end: int | None
) -> CopyDescription:
    is_leader = owner == info.leader
    log_end: int | None
    durable: int | None
    lag: int | None
    if state is not None and state.log_end >= 0:
        log_end, durable, lag = state.log_end, state.durable, state.lag_records
    else:
        log_end, durable, lag = (leader_end if is_leader else None), None, (0 if is_leader else None)
    return CopyDescription(
        copy_id=copy_id,
        process=ids.process_name(owner),
        is_leader=is_leader,
        is_in_sync=copy_id in info.isr,
        is_eligible=copy_id in info.elr,
        log_end=log_end,
        durable=durable,
        lag_records=lag,
    )


def _ends(connection: Connection, tp: TopicPartition) -> tuple[int | None, ...]:
    """(log start, high watermark, log end) as the leader says; None where it does not."""
    try:
        return tuple(ask_offsets(connection, {tp: which})[tp].offset for which in ENDS.values())
    except BrokerError:
        return (None, None, None)
