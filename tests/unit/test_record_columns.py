"""Columnar batches: what goes in comes out, without a copy where that is promised; wrong input is named."""

from __future__ import annotations

import pytest

from zbroker.errors import ConfigError, CorruptRecordError, InvalidRecordError
from zbroker.record.batch import check_batch, read_header
from zbroker.record.columns import Columns, encode_columns
from zbroker.record.layout import (
    FLAG_HEADERS,
    FLAG_KEYS,
    FLAG_NULL_KEYS,
    FLAG_NULL_VALUES,
    FLAG_TIMESTAMPS,
    HEADER_BYTES,
)

NOW_MS = 1_795_435_200_000


def columns_of(batch: bytearray) -> Columns:
    header = check_batch(batch, size_bytes_max=1 << 24, records_max=100_000)
    return Columns(memoryview(batch), header)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 1000])
def test_values_come_back_and_the_size_is_a_multiple_of_eight(count: int) -> None:
    values = [b"v" * (number % 13) for number in range(count)]
    batch = encode_columns(values, timestamp_ms=NOW_MS)
    columns = columns_of(batch)
    assert len(batch) % 8 == 0
    assert columns.values() == values
    assert columns.keys() == [None] * count
    assert columns.timestamps() == [NOW_MS] * count
    assert columns.headers() is None
    assert bytes(columns.data) == b"".join(values)
    assert columns.value_ends.tolist()[-1] == sum(map(len, values))


@pytest.mark.parametrize("length", [*range(18), 100, 70_000])
def test_one_value_alone_is_laid_out_as_any_other_batch(length: int) -> None:
    value = bytes(range(256)) * (length // 256 + 1)
    alone, usual = (
        encode_columns(
            [value[:length]], keys, timestamp_ms=NOW_MS, producer_id=7, producer_epoch=3, base_sequence=2**31 - 1
        )
        for keys in (None, [None])
    )
    assert alone == usual
    assert columns_of(alone).values() == [value[:length]]


def test_data_and_ends_are_views_of_the_batch_itself() -> None:
    batch = encode_columns([b"abc", b"de"], timestamp_ms=NOW_MS)
    columns = columns_of(batch)
    assert columns.data.obj is batch
    assert columns.value_ends.obj is batch
    batch[batch.index(b"abc")] = ord("X")
    assert bytes(columns.data) == b"Xbcde"


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        ({}, 0),
        ({"keys": [None, None]}, 0),
        ({"keys": [b"k", b""]}, FLAG_KEYS),
        ({"keys": [b"k", None]}, FLAG_KEYS | FLAG_NULL_KEYS),
        ({"values": [None, b""]}, FLAG_NULL_VALUES),
        ({"timestamps_ms": [NOW_MS, NOW_MS]}, 0),
        ({"timestamps_ms": [NOW_MS, NOW_MS + 1]}, FLAG_TIMESTAMPS),
        ({"headers": [(), ()]}, 0),
        ({"headers": [(("a", b""),), ()]}, FLAG_HEADERS),
    ],
)
def test_a_column_is_there_only_when_a_record_needs_it(arguments: dict[str, list[bytes]], flags: int) -> None:
    batch = encode_columns(**{"values": [b"a", b"b"], **arguments}, timestamp_ms=NOW_MS)  # type: ignore[arg-type]  # one dict for five types
    assert batch[HEADER_BYTES] == flags


def test_timestamps_that_differ_set_base_and_maximum() -> None:
    batch = encode_columns([b""] * 3, timestamps_ms=[NOW_MS, NOW_MS - 7, NOW_MS + 3], timestamp_ms=0)
    header = read_header(batch)
    assert (header.base_timestamp, header.max_timestamp) == (NOW_MS, NOW_MS + 3)
    assert columns_of(batch).timestamps() == [NOW_MS, NOW_MS - 7, NOW_MS + 3]


@pytest.mark.parametrize("compression", ["gzip", "lz4", "zstd"])
def test_a_compressed_batch_gives_every_column_back(compression: str) -> None:
    count = 500
    values = [None if number % 7 == 0 else b"value %d" % number for number in range(count)]
    keys = [None if number % 5 == 0 else b"key %d" % (number % 3) for number in range(count)]
    stamps = [NOW_MS + number for number in range(count)]
    headers = [((("n", b"%d" % number),) if number % 2 else ()) for number in range(count)]
    plain = encode_columns(values, keys, timestamp_ms=0, timestamps_ms=stamps, headers=headers)
    batch = encode_columns(
        values, keys, timestamp_ms=0, timestamps_ms=stamps, headers=headers, compression=compression
    )  # fmt: skip
    columns = columns_of(batch)
    assert len(batch) < len(plain)
    assert len(batch) % 8 == 0
    assert columns.values() == values
    assert columns.keys() == keys
    assert columns.timestamps() == stamps
    assert columns.headers() == headers


def test_a_body_that_does_not_shrink_is_stored_as_it_is() -> None:
    batch = encode_columns([b"x"], timestamp_ms=NOW_MS, compression="lz4")
    assert read_header(batch).compression == 0
    assert columns_of(batch).values() == [b"x"]


def test_an_unknown_compression_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="none, gzip, lz4, zstd"):
        encode_columns([b"x"], timestamp_ms=NOW_MS, compression="brotli")


@pytest.mark.parametrize("values", [[b"a", "text"], [b"a", 5], [None, "text"], [None, 5]])
def test_a_value_that_is_not_bytes_is_named_with_the_remedy(values: list[bytes]) -> None:
    with pytest.raises(InvalidRecordError, match="value_serializer"):
        encode_columns(values, timestamp_ms=NOW_MS)


def test_bytearrays_and_views_are_values_too() -> None:
    values = [bytearray(b"ab"), memoryview(b"cde")]
    batch = encode_columns(values, timestamp_ms=NOW_MS)  # type: ignore[arg-type]  # wider than declared
    assert columns_of(batch).values() == [b"ab", b"cde"]


def test_a_view_of_wide_items_is_refused_and_not_stored_with_a_wrong_length() -> None:
    values = [memoryview(b"12345678").cast("Q")]
    with pytest.raises(InvalidRecordError, match="larger than a byte"):
        encode_columns(values, timestamp_ms=NOW_MS)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("name", ["x" * 65_536, "\ud800"])
def test_a_header_name_that_cannot_be_written_is_refused(name: str) -> None:
    with pytest.raises(InvalidRecordError, match="header's name"):
        encode_columns([b"v"], headers=[((name, b""),)], timestamp_ms=NOW_MS)


def test_the_longest_header_name_comes_back() -> None:
    headers = [(("x" * 65_535, b"v"),)]
    assert columns_of(encode_columns([b"v"], headers=headers, timestamp_ms=NOW_MS)).headers() == headers


def test_the_producers_numbers_are_in_the_header() -> None:
    header = read_header(encode_columns([b"v"], timestamp_ms=1, producer_id=9, producer_epoch=2, base_sequence=5))
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (9, 2, 5)
    header = read_header(encode_columns([b"v"], timestamp_ms=1))
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (-1, -1, -1)


@pytest.mark.parametrize("length", [0, 1, 100, 300, (64 << 10) + 1])
@pytest.mark.parametrize("count", [1, 15, 16, 63, 64, 65, 130])
def test_values_of_one_length_come_back_as_they_were(length: int, count: int) -> None:
    values = [bytes([number % 251]) * length for number in range(count)]
    keys = [b"%04d" % number for number in range(count)]
    columns = columns_of(encode_columns(values, keys, timestamp_ms=NOW_MS))
    assert columns.values() == values
    assert columns.keys() == keys
    assert columns.value_ends.tolist() == [length * (number + 1) for number in range(count)]


@pytest.mark.parametrize("count", [9_999, 10_000, 10_001, 20_000])
def test_many_values_of_one_length_come_back(count: int) -> None:
    values = [b"%06d" % number for number in range(count)]
    assert columns_of(encode_columns(values, timestamp_ms=NOW_MS)).values() == values


@pytest.mark.parametrize("odd", [1, 49, 98])
def test_a_single_value_of_another_length_is_not_overlooked(odd: int) -> None:
    values = [b"%05d" % number for number in range(100)]
    values[odd] += b"more"
    columns = columns_of(encode_columns(values, timestamp_ms=NOW_MS))
    assert columns.values() == values
    values[odd + 1 if odd < 98 else odd - 1] = b"5"  # all together as long as values of one length
    assert columns_of(encode_columns(values, timestamp_ms=NOW_MS)).values() == values


def test_ends_that_look_even_at_both_sides_and_lie_between_are_an_error() -> None:
    batch = encode_columns([b"12345"] * 100, timestamp_ms=NOW_MS)
    columns = columns_of(batch)
    columns.value_ends[50] = columns.value_ends[49] - 1
    with pytest.raises(CorruptRecordError):
        columns.values()
