"""Checking, stamping and walking batches without decoding them."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from zbroker.errors import CorruptRecordError, MessageSizeTooLargeError, RecordListTooLargeError
from zbroker.record.batch import (
    batches_in,
    check_batch,
    read_header,
    stamp,
    stamp_append_time,
    stamp_producer,
    write_crc,
)
from zbroker.record.columns import encode_columns
from zbroker.record.crc import crc32c
from zbroker.record.layout import LOG_APPEND_TIME, BatchHeader
from zbroker.record.rows import encode_rows

NOW_MS = 1_795_435_200_000


def columns(count: int = 3) -> bytearray:
    return encode_columns([b"value"] * count, timestamp_ms=NOW_MS)


def rows(count: int = 3) -> bytearray:
    return encode_rows([(NOW_MS, None, b"value", ())] * count)


def check(batch: bytes | bytearray | memoryview) -> BatchHeader:
    return check_batch(batch, size_bytes_max=1 << 20, records_max=1000)


def altered(batch: bytearray, position: int, layout: str, value: int) -> bytearray:
    """The batch with one field changed and a CRC that fits."""
    struct.pack_into(layout, batch, position, value)
    write_crc(batch)
    return batch


def test_crc32c_gives_the_known_answer() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(memoryview(bytearray(b"x123456789"))[1:]) == 0xE3069283


@pytest.mark.parametrize("make", [columns, rows])
def test_a_whole_batch_is_accepted_and_its_header_given(make: Callable[[int], bytearray]) -> None:
    batch = make(7)
    for view in (batch, bytes(batch), memoryview(batch)):
        header = check(view)
        assert (header.record_count, header.last_offset_delta, header.size_bytes) == (7, 6, len(batch))
        assert header.base_offset == 0
        assert header.leader_epoch == -1


def test_a_header_needs_61_bytes() -> None:
    with pytest.raises(CorruptRecordError, match="61 bytes at position 5"):
        read_header(bytes(65), 5)


def test_a_batch_that_is_too_large_is_told_apart_from_a_damaged_one() -> None:
    batch = columns()
    with pytest.raises(MessageSizeTooLargeError, match="at most 50"):
        check_batch(batch, size_bytes_max=50, records_max=10)
    with pytest.raises(RecordListTooLargeError, match="at most 2"):
        check_batch(batch, size_bytes_max=1000, records_max=2)


@pytest.mark.parametrize("make", [columns, rows])
@pytest.mark.parametrize("change", [lambda batch: batch[:-1], lambda batch: batch + b"\0"], ids=["short", "long"])
def test_a_batch_must_be_exactly_as_long_as_it_says(
    make: Callable[[], bytearray], change: Callable[[bytearray], bytearray]
) -> None:
    with pytest.raises(CorruptRecordError, match="the batch says"):
        check(change(make()))


@pytest.mark.parametrize("magic", [0, 1, 3, 66, 68, 127])
def test_an_unknown_magic_is_refused(magic: int) -> None:
    with pytest.raises(CorruptRecordError, match=f"magic {magic}"):
        check(altered(columns(), 16, "b", magic))


@pytest.mark.parametrize("make", [columns, rows])
def test_counts_that_contradict_each_other_are_refused(make: Callable[[], bytearray]) -> None:
    for count in (2, 4, 0, -1, -(1 << 31)):
        with pytest.raises(CorruptRecordError, match="last offset delta"):
            check(altered(make(), 57, ">i", count))


@pytest.mark.parametrize("make", [columns, rows])
def test_more_records_than_bytes_can_hold_are_refused(make: Callable[[], bytearray]) -> None:
    batch = altered(make(), 57, ">i", 900)
    with pytest.raises(CorruptRecordError, match="do not fit"):
        check(altered(batch, 23, ">i", 899))


@pytest.mark.parametrize("make", [columns, rows])
@pytest.mark.parametrize("codec", [5, 6, 7])
def test_a_compression_without_a_meaning_is_refused(make: Callable[[], bytearray], codec: int) -> None:
    with pytest.raises(CorruptRecordError, match=f"compression {codec}"):
        check(altered(make(), 21, ">h", codec))


def test_unknown_column_flags_are_refused_before_they_are_stored() -> None:
    with pytest.raises(CorruptRecordError, match="flags 0x20"):
        check(altered(columns(), 61, "<B", 0x20))
    with pytest.raises(CorruptRecordError, match="flags"):
        check(altered(columns(), 62, "<H", 1))


def test_columns_that_are_no_multiple_of_eight_are_refused() -> None:
    batch = columns() + b"\0"
    with pytest.raises(CorruptRecordError, match="multiple of 8"):
        check(altered(batch, 8, ">i", len(batch) - 12))
    head = columns()[:61]
    with pytest.raises(CorruptRecordError, match="multiple of 8"):
        check(altered(head, 8, ">i", 49))


@pytest.mark.parametrize("make", [columns, rows])
def test_stamping_leaves_the_crc_valid_and_the_records_alone(make: Callable[[], bytearray]) -> None:
    batch = make()
    before = bytes(batch[16:])
    stamp(batch, 1 << 40, 12)
    header = check(batch)
    assert (header.base_offset, header.leader_epoch) == (1 << 40, 12)
    assert (header.last_offset, header.next_offset) == ((1 << 40) + 2, (1 << 40) + 3)
    assert bytes(batch[16:]) == before


@pytest.mark.parametrize("make", [columns, rows])
def test_stamping_the_append_time_computes_the_crc_anew(make: Callable[[], bytearray]) -> None:
    batch = make()
    stamp_append_time(memoryview(batch), NOW_MS + 5)
    header = check(batch)
    assert header.attributes & LOG_APPEND_TIME
    assert header.max_timestamp == NOW_MS + 5


def test_stamping_the_producer_changes_its_three_fields_and_the_crc() -> None:
    batch = encode_columns([b"a", b"b"], timestamp_ms=5)
    stamp_producer(batch, 7, 3, 2**31 - 1)
    assert batch == encode_columns(
        [b"a", b"b"], timestamp_ms=5, producer_id=7, producer_epoch=3, base_sequence=2**31 - 1
    )


def test_batches_are_walked_up_to_zeros() -> None:
    first, second = columns(1), rows(2)
    log = bytes(first + second) + bytes(100)
    assert [(position, header.record_count) for position, header in batches_in(log)] == [(0, 1), (len(first), 2)]
    assert [position for position, _ in batches_in(log, len(first))] == [len(first)]


def test_batches_are_walked_up_to_a_part_of_one() -> None:
    batch = bytes(columns(1))
    for cut in range(len(batch)):
        assert [position for position, _ in batches_in(batch + batch[:cut])] == [0]


def test_a_batch_that_says_it_is_smaller_than_a_header_ends_the_walk() -> None:
    batch = columns(1)
    struct.pack_into(">i", batch, 8, -12)
    assert list(batches_in(batch)) == []
