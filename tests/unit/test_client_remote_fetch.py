"""Fetch answers, good and bad, without a broker."""

from __future__ import annotations

from typing import Any

import pytest

from zbroker.client.batch_run import Decoding
from zbroker.client.remote_fetch import DAMAGED_ANSWERS_MAX, OVERDUE_MS, RETRY_MS, RemoteFetch, RemotePartition
from zbroker.client.settings import ConsumerSettings
from zbroker.errors import (
    CorruptRecordError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    OffsetOutOfRangeError,
    RequestTimedOutError,
)
from zbroker.ids import TopicPartition
from zbroker.record.batch import stamp
from zbroker.record.columns import encode_columns
from zbroker.record.crc import crc32c
from zbroker.record.layout import HEADER_BYTES
from zbroker.wire.codec import decode, encode
from zbroker.wire.layout import Api
from zbroker.wire.messages import (
    FetchedPartition,
    FetchReply,
    FetchRequest,
    ListOffsetsReply,
    OffsetAnswer,
    PartitionInfo,
)


class FakeConnection:
    """Remembers what was submitted; the test answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, bytes, Any]] = []
        self.forgotten: list[int] = []

    def submit(self, target: int, api: int, frames: list[bytes], on_reply: Any, *, timeout_ms: int) -> int:
        self.asked.append((target, api, frames[0], on_reply))
        return len(self.asked)

    def forget(self, correlation: int) -> None:
        self.forgotten.append(correlation)


class Case:
    def __init__(self, leaders: tuple[int, ...] = (16,)) -> None:
        self.connection = FakeConnection()
        self.events: list[str] = []
        connection: Any = self.connection
        self.fetch = RemoteFetch(connection, ConsumerSettings(), lambda: self.events.append("event"))
        self.partitions = [
            RemotePartition(
                TopicPartition("t", number), 5, PartitionInfo(number, leader, 1, 2, [], [], [], "", 0),
                Decoding().maker("t", number),
            )
            for number, leader in enumerate(leaders)
        ]  # fmt: skip

    def ask(self, *offsets: int) -> None:
        for one, offset in zip(self.partitions, offsets, strict=True):
            assert one.read(offset, 1 << 20) == []
        self.fetch.ask(self.partitions)

    def request(self, index: int = -1) -> FetchRequest:
        assert self.connection.asked[index][1] == Api.FETCH
        return decode(FetchRequest, self.connection.asked[index][2])

    def answer(self, found: list[FetchedPartition], data: bytes, index: int = -1) -> None:
        self.connection.asked[index][3](0, [encode(FetchReply(found)), data])


def batch(base_offset: int, count: int = 3) -> bytes:
    made = bytearray(encode_columns([b"%d" % (base_offset + index) for index in range(count)], timestamp_ms=0))
    stamp(made, base_offset, 1)
    return bytes(made)


def good(partition: int, data: bytes, high_watermark: int = 100) -> FetchedPartition:
    return FetchedPartition(5, partition, 0, high_watermark, 0, len(data))


def test_one_fetch_asks_a_worker_for_all_its_partitions() -> None:
    case = Case((16, 18, 16))
    case.ask(3, 4, 5)
    assert [target for target, *_ in case.connection.asked] == [16, 18]
    assert [(p.partition, p.offset) for p in case.request(0).partitions] == [(0, 3), (2, 5)]
    case.fetch.ask(case.partitions)
    assert len(case.connection.asked) == 2, "what is asked for is not asked for again"


def test_answers_are_cut_into_batches_and_the_next_is_asked_for_while_they_are_read() -> None:
    case = Case((16, 16))
    case.ask(0, 1)
    first, second = batch(0) + batch(3), batch(0)
    case.answer([good(0, first), good(1, second)], first + second)
    assert case.events == ["event"]
    assert [one.base_offset for one in case.partitions[0].read(0, 1 << 20)] == [0, 3]
    assert [one.base_offset for one in case.partitions[1].read(1, 1 << 20)] == [0]
    assert case.partitions[0].high_watermark() == 100
    case.fetch.ask(case.partitions)
    assert [(p.partition, p.offset) for p in case.request().partitions] == [(0, 6), (1, 3)]


def test_an_empty_answer_is_asked_again() -> None:
    case = Case()
    case.ask(7)
    case.answer([good(0, b"", 7)], b"")
    case.ask(7)
    assert len(case.connection.asked) == 2


def test_an_answer_that_a_seek_overtook_is_dropped() -> None:
    case = Case()
    case.ask(0)
    case.ask(50)
    data = batch(0)
    case.answer([good(0, data)], data, 0)
    assert case.partitions[0].read(50, 1 << 20) == []
    data = batch(50)
    case.answer([good(0, data)], data, 1)
    assert [one.base_offset for one in case.partitions[0].read(50, 1 << 20)] == [50]


@pytest.mark.parametrize("code", [NotLeaderForPartitionError.code, RequestTimedOutError.code])
def test_a_leader_that_is_none_or_silent_sends_to_the_metadata(code: int) -> None:
    case = Case()
    case.ask(0)
    case.connection.asked[0][3](code, [b"gone"])
    assert case.partitions[0].is_moved()
    assert 0 < case.fetch.retry_ms(case.partitions) < 1000
    case = Case()
    case.ask(0)
    case.answer([FetchedPartition(5, 0, code, -1, -1, 0)], b"")
    assert case.partitions[0].is_moved()


def test_an_offset_that_is_not_there_is_an_error_with_the_range_for_that_offset_alone() -> None:
    case = Case()
    case.ask(200)
    case.answer([FetchedPartition(5, 0, OffsetOutOfRangeError.code, 100, 10, 0)], b"")
    with pytest.raises(OffsetOutOfRangeError, match="t:0: offset 200 is not in 10 to 100"):
        case.partitions[0].read(200, 1 << 20)
    case.ask(200)
    case.answer([FetchedPartition(5, 0, OffsetOutOfRangeError.code, 100, 10, 0)], b"")
    assert case.partitions[0].read(20, 1 << 20) == []


def test_another_error_keeps_its_type() -> None:
    case = Case()
    case.ask(0)
    case.answer([FetchedPartition(5, 0, MessageSizeTooLargeError.code, 100, 10, 0)], b"")
    with pytest.raises(MessageSizeTooLargeError, match="t:0"):
        case.partitions[0].read(0, 1 << 20)


@pytest.mark.parametrize("position", [0, 8, 16, 40, 80])
def test_t04_damaged_bytes_are_an_error_and_never_a_record(position: int) -> None:
    case = Case()
    data = bytearray(batch(0))
    data[position] ^= 0x40
    for _ in range(DAMAGED_ANSWERS_MAX + 1):
        case.ask(0)
        case.answer([good(0, bytes(data))], bytes(data))
        case.partitions[0].not_before_ns = 0
    with pytest.raises(CorruptRecordError, match="t:0"):
        case.partitions[0].read(0, 1 << 20)


def test_t21_an_answer_that_was_damaged_on_its_way_is_asked_for_again_after_a_pause() -> None:
    case = Case()
    one = case.partitions[0]
    for _ in range(2):
        for _ in range(DAMAGED_ANSWERS_MAX):
            case.ask(0)
            damaged = bytearray(batch(0))
            damaged[-1] ^= 1
            case.answer([good(0, bytes(damaged))], bytes(damaged))
            asked = len(case.connection.asked)
            case.ask(0)
            assert len(case.connection.asked) == asked, "not before the pause is over"
            assert case.fetch.retry_ms([one]) <= RETRY_MS
            one.not_before_ns = 0
        case.ask(0)
        case.answer([good(0, batch(0))], batch(0))
        assert [record.value for found in one.read(0, 1 << 20) for record in found] == [b"0", b"1", b"2"]


@pytest.mark.parametrize("position", range(HEADER_BYTES))
def test_t21_an_answer_damaged_where_a_batch_has_no_checksum_is_asked_for_again(position: int) -> None:
    case = Case()
    one = case.partitions[0]
    data = batch(4, 4) + batch(8)
    for bit in range(8):
        damaged = bytearray(data)
        damaged[position] ^= 1 << bit
        case.ask(6)
        case.answer([FetchedPartition(5, 0, 0, 100, 0, len(data), crc32c(data))], bytes(damaged))
        assert one.read(6, 1 << 20) == []
        one.not_before_ns = 0
        case.ask(6)
        case.answer([FetchedPartition(5, 0, 0, 100, 0, len(data), crc32c(data))], data)
        assert [(found.base_offset, found.header.leader_epoch) for found in one.read(6, 1 << 20)] == [(4, 1), (8, 1)]


def test_t30_answers_with_lying_lengths_hurt_nobody() -> None:
    data = batch(0)
    for size_bytes in (len(data) + 100, -5, 3):
        case = Case()
        case.ask(0)
        case.answer([FetchedPartition(5, 0, 0, 100, 0, size_bytes)], data)
        try:
            found = case.partitions[0].read(0, 1 << 20)
        except CorruptRecordError:
            continue
        assert all(record.value == b"%d" % record.offset for one in found for record in one)
    case = Case()
    case.ask(0)
    case.connection.asked[0][3](0, [b"no reply at all"])
    with pytest.raises(Exception, match="FetchReply"):
        case.partitions[0].read(0, 1 << 20)


def test_the_range_is_asked_for_once_and_used_once() -> None:
    case = Case()
    one = case.partitions[0]
    case.fetch.ask_range(one)
    case.fetch.ask_range(one)
    assert len(case.connection.asked) == 1
    assert one.range() is None
    answers = [OffsetAnswer(5, 0, 0, 3, -1), OffsetAnswer(5, 0, 0, 9, -1)]
    case.connection.asked[0][3](0, [encode(ListOffsetsReply(answers))])
    assert one.range() == (3, 9)
    assert one.range() is None, "by the next time it may be another"


def test_open_fetches_are_given_up_at_the_end() -> None:
    case = Case()
    case.ask(0)
    case.fetch.cancel()
    assert case.connection.forgotten == [1]


def test_a_leader_that_is_late_with_its_answer_lets_the_metadata_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    one = case.partitions[0]
    assert one.read(0, 1 << 20) == []
    case.fetch.ask([one])
    assert not one.is_moved()
    assert 0 < case.fetch.retry_ms([one]) <= ConsumerSettings().fetch_max_wait_ms + OVERDUE_MS
    monkeypatch.setattr(one, "overdue_ns", 1)
    assert one.is_moved()
    case.fetch.ask([one])
    assert len(case.connection.asked) == 1, "the fetch itself goes on"
    case.connection.asked[0][3](0, [encode(FetchReply([FetchedPartition(5, 0, 0, 0, 0, 0)])), b""])
    assert not one.is_moved()
    assert case.fetch.retry_ms([one]) == float("inf")
