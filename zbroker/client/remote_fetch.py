"""Partitions read by messages: long polls to the workers that lead them.

Guarantees: the same batches, errors and order as the mapped files give. One fetch for each partition is under way, and
while its answer is worked on, the next one is asked for already. An answer to a question that a seek or a new leader
has overtaken is dropped. Of one partition at most two answers wait here, each of `max_partition_fetch_bytes`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from zbroker.client.batch_run import MakeBatch, read_run
from zbroker.client.connection import Connection
from zbroker.client.local_partition import out_of_range
from zbroker.client.settings import ConsumerSettings
from zbroker.clock import NS_PER_MS
from zbroker.errors import (
    BrokerError,
    CorruptRecordError,
    NotLeaderForPartitionError,
    OffsetOutOfRangeError,
    RequestTimedOutError,
    UnknownTopicOrPartitionError,
    error_for,
)
from zbroker.ids import TopicPartition
from zbroker.record.crc import crc32c
from zbroker.record.view import RecordBatch
from zbroker.wire.codec import decode, encode
from zbroker.wire.layout import Api
from zbroker.wire.messages import (
    EARLIEST,
    LATEST,
    FetchedPartition,
    FetchPartition,
    FetchReply,
    FetchRequest,
    ListOffsetsReply,
    ListOffsetsRequest,
    OffsetQuery,
    PartitionInfo,
)

MOVED: Final = frozenset(
    {NotLeaderForPartitionError.code, UnknownTopicOrPartitionError.code, RequestTimedOutError.code}
)
ANSWER_MARGIN_MS: Final = 2_000
OVERDUE_MS: Final = 200  # later than a leader that lives would answer: the metadata may know another one
RETRY_MS: Final = 50
RANGE_TIMEOUT_MS: Final = 1_000
DAMAGED_ANSWERS_MAX: Final = 3


class RemotePartition:
    """One partition as the answers of its leader show it."""

    is_local = False

    def __init__(self, tp: TopicPartition, topic_id: int, info: PartitionInfo, make: MakeBatch) -> None:
        self.tp, self.topic_id, self.info = tp, topic_id, info
        self.leader = info.leader
        self.make = make
        self.batches: list[RecordBatch] = []
        self.wanted: int | None = None
        self.asked: int | None = None
        self.error: BrokerError | None = None
        self.error_offset = -1
        self.not_before_ns = 0
        self.overdue_ns = 0
        self.needs_metadata = False
        self.known_range: list[int | None] = [None, None]
        self.is_asking_range = False
        self.last_high_watermark: int | None = None
        self._damaged_answers = 0

    def high_watermark(self) -> int | None:
        """As the last answer said; None before the first."""
        return self.last_high_watermark

    def has_more(self, offset: int) -> bool:
        """Whether `read` would have something to do: always, since asking is doing."""
        return True

    def held_back(self, offset: int) -> int:
        """Not known here: the worker holds them back."""
        return 0

    def read(self, offset: int, max_bytes: int) -> list[RecordBatch]:
        """The batches that came for `offset`; none while they are on their way, and then they are asked for."""
        batches, self.batches = self.batches, []
        if batches and batches[0].base_offset <= offset <= batches[0].last_offset:
            self.wanted = batches[-1].header.next_offset  # Fetched while these are worked on.
            return batches
        if self.error is not None:
            error, self.error = self.error, None
            if self.error_offset == offset:
                raise error
        self.wanted = offset
        return []

    def bytes_ahead(self, offset: int) -> int | None:
        """The worker keeps to fetch_min_bytes by itself."""
        return None

    def is_moved(self) -> bool:
        """Whether the leader said that it is none, or is late with its answer."""
        return self.needs_metadata or 0 < self.overdue_ns <= time.monotonic_ns()

    def is_leader_alive(self) -> bool:
        """Not known; an answer will tell."""
        return True

    def range(self) -> tuple[int, int] | None:
        """(log start, high watermark) as of an answer since the last call; None while it is on its way."""
        start, end = self.known_range
        if start is None or end is None:
            return None
        self.known_range = [None, None]
        return start, end

    def take(self, found: FetchedPartition, offset: int, data: memoryview, *, is_current: bool) -> None:
        """An answer for `offset`, which is dropped unless it `is_current`."""
        if not is_current:
            return
        if found.error in MOVED:
            self.needs_metadata = True
            return
        if found.high_watermark >= 0:
            self.last_high_watermark = found.high_watermark
        if found.error:
            self.error_offset = offset
            self.error = self._error(found, offset)
            return
        if not data:
            return
        if found.crc >= 0 and found.crc != crc32c(data):
            self._damaged(CorruptRecordError(f"{self.tp}: the leader's answer at offset {offset} was damaged"), offset)
            return
        try:
            run = read_run(self.make, data, 0, len(data), offset, found.high_watermark, len(data))
        except CorruptRecordError as error:
            self._damaged(error, offset)
            return
        if run.batches:
            self._damaged_answers = 0
            self.batches = run.batches
        else:
            self._damaged(CorruptRecordError(f"{self.tp}: no batch at offset {offset} in the leader's answer"), offset)

    def _damaged(self, error: CorruptRecordError, offset: int) -> None:
        """Ask again: it may have been damaged on its way, or be fetched by another copy soon. Give up after some."""
        self._damaged_answers += 1
        if self._damaged_answers > DAMAGED_ANSWERS_MAX:
            self.error, self.error_offset, self._damaged_answers = error, offset, 0
        else:
            self.not_before_ns = time.monotonic_ns() + RETRY_MS * NS_PER_MS

    def _error(self, found: FetchedPartition, offset: int) -> BrokerError | None:
        if found.error == OffsetOutOfRangeError.code:
            return OffsetOutOfRangeError(out_of_range(self.tp, offset, found.log_start, found.high_watermark))
        error = error_for(found.error, f"{self.tp}: reading at offset {offset} failed")
        if error.retriable:
            self.not_before_ns = time.monotonic_ns() + RETRY_MS * NS_PER_MS
            self.needs_metadata = True
            return None
        return error


class RemoteFetch:
    """Sends the fetches. `on_event` is called when an answer came, whatever it says."""

    def __init__(self, connection: Connection, settings: ConsumerSettings, on_event: Callable[[], None]) -> None:
        self._connection = connection
        self._settings = settings
        self._on_event = on_event
        self._under_way: set[int] = set()

    def ask(self, partitions: Iterable[RemotePartition]) -> None:
        """Send for everything that is wanted and not asked for yet; one fetch a worker."""
        now_ns = time.monotonic_ns()
        by_leader: dict[int, list[RemotePartition]] = {}
        for one in partitions:
            if one.wanted is not None and one.asked != one.wanted and now_ns >= one.not_before_ns:
                by_leader.setdefault(one.leader, []).append(one)
        for leader, group in by_leader.items():
            self._send(leader, group)

    def retry_ms(self, sources: Iterable[object]) -> float:
        """How long until something that failed may be asked for again, or an answer is overdue."""
        now_ns = time.monotonic_ns()
        remote = [one for one in sources if isinstance(one, RemotePartition)]
        later = [when for one in remote for when in (one.not_before_ns, one.overdue_ns) if when > now_ns]
        return max(0.1, (min(later) - now_ns) / NS_PER_MS) if later else float("inf")

    def _send(self, leader: int, group: list[RemotePartition]) -> None:
        settings = self._settings
        asked = []
        wanted = []
        for one in group:
            assert one.wanted is not None
            one.asked = one.wanted
            one.wanted = None
            asked.append((one, one.asked))
            wanted.append(FetchPartition(one.topic_id, one.tp.partition, one.asked, settings.max_partition_fetch_bytes))
        wait_ms = settings.fetch_max_wait_ms
        overdue_ns = time.monotonic_ns() + (wait_ms + OVERDUE_MS) * NS_PER_MS
        for one in group:
            one.overdue_ns = overdue_ns
        is_durable_only = settings.isolation_level == "read_durable"
        request = FetchRequest(wait_ms, settings.fetch_min_bytes, settings.fetch_max_bytes, wanted, is_durable_only)
        correlations: list[int] = []

        def take(error: int, body: list[Any]) -> None:
            self._under_way.difference_update(correlations)
            self._take(asked, error, body)
            self._on_event()

        correlation = self._connection.submit(
            leader, Api.FETCH, [encode(request)], take, timeout_ms=wait_ms + ANSWER_MARGIN_MS
        )
        correlations.append(correlation)
        self._under_way.add(correlation)

    def _take(self, asked: list[tuple[RemotePartition, int]], error: int, body: list[Any]) -> None:
        # A seek meanwhile has asked for another offset: what came for the old one is nobody's any more.
        current = [one.asked == offset for one, offset in asked]
        for (one, _), is_current in zip(asked, current, strict=True):
            if is_current:
                one.asked = None
                one.overdue_ns = 0
        if error or not body:
            for one, _ in asked:
                one.needs_metadata = True
                one.not_before_ns = time.monotonic_ns() + RETRY_MS * NS_PER_MS
            return
        try:
            answers = decode(FetchReply, body[0]).partitions
        except BrokerError as damage:
            for one, offset in asked:
                one.error, one.error_offset = damage, offset
            return
        data = memoryview(body[1]) if len(body) > 1 else memoryview(b"")
        position = 0
        for (one, offset), is_current, found in zip(asked, current, answers, strict=False):
            one.take(found, offset, data[position : position + found.size_bytes], is_current=is_current)
            if one.wanted == offset and (one.batches or one.error is not None):
                one.wanted = None
            position += max(0, found.size_bytes)

    def ask_range(self, one: RemotePartition) -> None:
        """Ask where the partition's log begins and ends, unless that is asked for already."""
        if one.is_asking_range or time.monotonic_ns() < one.not_before_ns:
            return
        one.is_asking_range = True
        ends = (EARLIEST, LATEST)
        queries = [OffsetQuery(one.topic_id, one.tp.partition, which) for which in ends]

        def take(error: int, body: list[Any]) -> None:
            one.is_asking_range = False
            self._take_range(one, error, body)
            self._on_event()

        request = encode(ListOffsetsRequest(queries))
        self._connection.submit(one.leader, Api.LIST_OFFSETS, [request], take, timeout_ms=RANGE_TIMEOUT_MS)

    def _take_range(self, one: RemotePartition, error: int, body: list[Any]) -> None:
        answers = decode(ListOffsetsReply, body[0]).partitions if not error and body else []
        if len(answers) != 2 or answers[0].error or answers[1].error:
            one.needs_metadata = True
            one.not_before_ns = time.monotonic_ns() + RETRY_MS * NS_PER_MS
            return
        one.known_range = [answers[0].offset, answers[1].offset]
        one.last_high_watermark = answers[1].offset

    def cancel(self) -> None:
        """Nobody waits for the answers any more."""
        for correlation in self._under_way:
            self._connection.forget(correlation)
        self._under_way.clear()
