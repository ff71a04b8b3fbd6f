"""What clients ask of a partition's leader besides produce: fetch, wait, offsets, deletion.

Guarantees: nothing above the high watermark is ever read; one fetch answer holds at most `fetch_max_bytes`, and never
more than one message may; every partition in a request has its own error, so that one that moved does not hide the
others. A fetch or wait whose records are not there yet waits without costing anything until an append or its deadline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from zbroker.clock import NS_PER_MS, Clock
from zbroker.config.schema import LimitsSection
from zbroker.core import partition_events as ev
from zbroker.core.partition import State
from zbroker.errors import (
    BrokerError,
    InvalidRequestError,
    NotLeaderForPartitionError,
    OffsetOutOfRangeError,
)
from zbroker.record.crc import crc32c
from zbroker.shm.board import BoardWriter
from zbroker.shm.layout import Counter
from zbroker.wire.codec import decode, encode
from zbroker.wire.copy_messages import PartitionState, PartitionStateRequest, PartitionStates
from zbroker.wire.layout import FLAG_KEEP, WAITED
from zbroker.wire.messages import (
    EARLIEST,
    LATEST,
    LOG_END,
    DeleteRecords,
    FetchedPartition,
    FetchPartition,
    FetchReply,
    FetchRequest,
    ListOffsetsReply,
    ListOffsetsRequest,
    OffsetAnswer,
    OffsetQuery,
)
from zbroker.workers.lanes import ServedLane
from zbroker.workers.leader import Leader
from zbroker.workers.request import Request, Route
from zbroker.workers.waits import PARTITIONS_MAX, Wait, Waits, Watched

WAIT_MS_MAX: Final = 300_000
DURABLE_LOOK_MS: Final = 10
AWAKE_MAX: Final = 4  # appends that find a reader awake, one after the other, before its wait is ended
_NOT_HERE: Final = NotLeaderForPartitionError.code

Leaders = Mapping[tuple[int, int], Leader]


class _Found(NamedTuple):
    answers: list[FetchedPartition]
    chunks: list[bytes]
    size_bytes: int
    has_error: bool


class Serving:
    """The requests of readers, over the partitions in `leaders`."""

    def __init__(self, leaders: Leaders, waits: Waits, board: BoardWriter, clock: Clock, limits: LimitsSection) -> None:
        self._leaders = leaders
        self._waits = waits
        self._board = board
        self._clock = clock
        self._bytes_max = min(limits.fetch_max_bytes, limits.message_max_bytes)
        self._wait_of: dict[Route, int] = {}

    def leader_of(self, request: Request) -> Leader:
        """The partition that the header names. Raises NotLeaderForPartitionError."""
        header = request.header
        leader = self._leaders.get((header.topic_id, header.partition))
        if leader is None:
            raise not_here(header.topic_id, header.partition)
        return leader

    def fetch(self, request: Request) -> None:
        """FETCH: answer when `min_bytes` are there, a partition has an error, or `max_wait_ms` are over."""
        wanted = decode(FetchRequest, _body(request))
        if len(wanted.partitions) > PARTITIONS_MAX:
            raise InvalidRequestError(f"a fetch of {len(wanted.partitions)} partitions")
        self._board.count(Counter.FETCHES)
        found = self._read(wanted)
        if found.has_error or found.size_bytes >= wanted.min_bytes or wanted.max_wait_ms <= 0:
            self._answer_fetch(request, found)
            return
        watched = [(self._leaders[p.topic_id, p.partition], p.offset) for p in wanted.partitions]
        wait_ms = wanted.max_wait_ms
        if wanted.is_durable_only and any(leader.high_watermark > offset for leader, offset in watched):
            wait_ms = min(wait_ms, DURABLE_LOOK_MS)  # a wait ends by an append, and these records come by a sync
        goal_bytes = _appended(watched) + wanted.min_bytes - found.size_bytes

        def wake(wait: Wait) -> bool:
            if _appended(wait.watched) < goal_bytes and not _is_revoked(wait.watched):
                return False
            self._answer_fetch(request, self._read(wanted))
            return True

        deadline_ns = self._deadline_ns(wait_ms)
        # What is below the high watermark now was read and is not enough: only what comes after it is waited for.
        news = [(leader, leader.high_watermark) for leader, _ in watched]
        self._waits.open(news, deadline_ns, wake, lambda _: self._answer_fetch(request, self._read(wanted)))

    def wait(self, request: Request) -> None:
        """WAIT: answer when a named partition has something at its offset. A lane's new wait replaces its older one.

        With FLAG_KEEP the reader looks at the board each time before it blocks, so it need not be answered: it is rung
        if it sleeps, and the wait goes on. One that is awake again and again reads without waiting: it is answered, so
        that it costs nothing any more.
        """
        self._board.count(Counter.WAITS)
        body = _body(request)
        if not body or len(body) % WAITED.size or len(body) > PARTITIONS_MAX * WAITED.size:
            raise InvalidRequestError(f"a wait of {len(body)} bytes")
        route = request.route
        self.forget(route)
        watched: Watched = []
        for topic_id, partition, offset in WAITED.iter_unpack(body):
            leader = self._leaders.get((topic_id, partition))
            if leader is None:
                raise not_here(topic_id, partition)
            leader.note_reader(offset)
            if leader.high_watermark > offset:
                request.reply()
                return
            watched.append((leader, offset))

        rings = route.ring_sleeper if request.header.flags & FLAG_KEEP and isinstance(route, ServedLane) else None
        awake_count = 0

        def wake(wait: Wait) -> bool:
            nonlocal awake_count
            if _is_revoked(wait.watched):
                self._wait_of.pop(route, None)
                request.refuse(NotLeaderForPartitionError("the partition was moved or deleted"))
                return True
            if rings is not None:
                is_asleep = rings() or wait.is_roused
                wait.is_roused = False
                awake_count = 0 if is_asleep else awake_count + 1
                if is_asleep:
                    self._board.count(Counter.WAKES)
                    for leader, offset in wait.watched:
                        if leader.high_watermark > offset:
                            leader.note_reader(offset)
                if awake_count < AWAKE_MAX:
                    return False
            self._wait_of.pop(route, None)
            self._board.count(Counter.WAKES)
            request.reply()
            return True

        def end(_: Wait) -> None:
            self._wait_of.pop(route, None)
            request.reply()

        deadline_ns = self._deadline_ns(request.header.timeout_ms)
        self._wait_of[route] = self._waits.open(watched, deadline_ns, wake, end, route if rings else None)

    def forget(self, route: Route) -> None:
        """End the wait of a lane without an answer: its client left, or asked for another."""
        number = self._wait_of.pop(route, None)
        if number is not None:
            self._waits.close(number)

    def list_offsets(self, request: Request) -> None:
        """LIST_OFFSETS: the first offset at or after a time, or the log's ends."""
        wanted = decode(ListOffsetsRequest, _body(request))
        if len(wanted.partitions) > PARTITIONS_MAX:
            raise InvalidRequestError(f"offsets of {len(wanted.partitions)} partitions")
        request.reply(encode(ListOffsetsReply([self._offset(query) for query in wanted.partitions])))

    def delete_records(self, request: Request) -> None:
        """DELETE_RECORDS: the log begins at the offset afterwards, or earlier; the answer says where."""
        wanted = decode(DeleteRecords, _body(request))
        self.leader_of(request).handle(ev.DeleteBefore(request, wanted.offset))

    def partition_state(self, request: Request) -> None:
        """PARTITION_STATE: how the copies of partitions stand, as their leader sees it."""
        wanted = decode(PartitionStateRequest, _body(request))
        if len(wanted.partitions) > PARTITIONS_MAX:
            raise InvalidRequestError(f"the state of {len(wanted.partitions)} partitions")
        request.reply(encode(PartitionStates([self._state(*key) for key in wanted.partitions])))

    def _state(self, topic_id: int, partition: int) -> PartitionState:
        leader = self._leaders.get((topic_id, partition))
        if leader is None:
            return PartitionState(topic_id, partition, _NOT_HERE, -1, -1, -1, -1, -1, [])
        return leader.others.describe()

    def _deadline_ns(self, timeout_ms: int) -> int:
        return self._clock.now_ns() + min(timeout_ms, WAIT_MS_MAX) * NS_PER_MS

    def _offset(self, query: OffsetQuery) -> OffsetAnswer:
        topic_id, partition, timestamp_ms = query.topic_id, query.partition, query.timestamp_ms
        leader = self._leaders.get((topic_id, partition))
        if leader is None:
            return OffsetAnswer(topic_id, partition, _NOT_HERE, -1, -1)
        if timestamp_ms == LATEST:
            return OffsetAnswer(topic_id, partition, 0, leader.high_watermark, -1)
        if timestamp_ms == EARLIEST:
            return OffsetAnswer(topic_id, partition, 0, leader.log.log_start, -1)
        if timestamp_ms == LOG_END:
            return OffsetAnswer(topic_id, partition, 0, leader.log.log_end, -1)
        if timestamp_ms < 0:
            return OffsetAnswer(topic_id, partition, InvalidRequestError.code, -1, -1)
        try:
            found = leader.log.offset_for_time(timestamp_ms, leader.high_watermark)
        except BrokerError as error:
            return OffsetAnswer(topic_id, partition, error.code, -1, -1)
        offset, timestamp_ms = found if found is not None else (-1, -1)
        return OffsetAnswer(topic_id, partition, 0, offset, timestamp_ms)

    def _read(self, wanted: FetchRequest) -> _Found:
        answers: list[FetchedPartition] = []
        chunks: list[bytes] = []
        room_bytes = max(1, min(wanted.max_bytes, self._bytes_max))
        size_bytes = 0
        has_error = False
        for one in wanted.partitions:
            leader = self._leaders.get((one.topic_id, one.partition))
            if leader is None:
                answers.append(FetchedPartition(one.topic_id, one.partition, _NOT_HERE, -1, -1, 0))
                has_error = True
                continue
            upper = (
                min(leader.high_watermark, leader.log.durable_end) if wanted.is_durable_only else leader.high_watermark
            )
            error, chunk = _read_one(leader, one, upper, room_bytes - size_bytes, is_first=not chunks)
            if chunk:
                chunks.append(chunk)
                size_bytes += len(chunk)
            has_error = has_error or error != 0
            bounds = (leader.high_watermark, leader.log.log_start)
            answers.append(FetchedPartition(one.topic_id, one.partition, error, *bounds, len(chunk), crc32c(chunk)))
        return _Found(answers, chunks, size_bytes, has_error)

    def _answer_fetch(self, request: Request, found: _Found) -> None:
        self._board.count(Counter.BYTES_OUT, found.size_bytes)
        request.reply(encode(FetchReply(found.answers)), b"".join(found.chunks))


def not_here(topic_id: int, partition: int) -> NotLeaderForPartitionError:
    """The error for a partition that this process does not lead."""
    return NotLeaderForPartitionError(f"topic {topic_id:08x} partition {partition}")


def _body(request: Request) -> bytes | bytearray | memoryview:
    if len(request.body) != 1:
        raise InvalidRequestError(f"one body frame, not {len(request.body)}")
    return request.body[0]


def _read_one(
    leader: Leader, wanted: FetchPartition, upper: int, room_bytes: int, *, is_first: bool
) -> tuple[int, bytes]:
    """(error, whole batches before `upper`). Only the first answer of a fetch may be larger than the room: it would
    never fit else."""
    high_watermark = leader.high_watermark
    leader.note_reader(wanted.offset)
    if not leader.log.log_start <= wanted.offset <= max(high_watermark, leader.log.log_end):
        return OffsetOutOfRangeError.code, b""
    if not wanted.max_bytes:
        return 0, b""  # a reader of the files only says how far it is
    if wanted.offset >= upper or (room_bytes <= 0 and not is_first):
        return 0, b""
    try:
        chunk = leader.log.read(wanted.offset, max(1, min(wanted.max_bytes, room_bytes)), upper)
    except BrokerError as error:
        return error.code, b""
    return 0, chunk if is_first or len(chunk) <= room_bytes else b""


def _appended(watched: Watched) -> int:
    return sum(leader.bytes_appended for leader, _ in watched)


def _is_revoked(watched: Watched) -> bool:
    return any(leader.state is State.REVOKED for leader, _ in watched)


RequestHandler = Callable[[Request], None]
