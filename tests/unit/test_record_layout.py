"""The bytes of a batch stay what they are: golden files, sizes, and what the header's fields mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from zbroker.record import layout
from zbroker.record.batch import read_header, stamp, stamp_append_time
from zbroker.record.columns import encode_columns
from zbroker.record.layout import BatchHeader, padding
from zbroker.record.rows import encode_rows
from zbroker.record.view import RecordBatch

GOLDEN = Path(__file__).parents[1] / "golden"
NOON_MS = 1_795_435_200_000


def dump(view: bytes | bytearray) -> str:
    """Position and 16 bytes a line in hex."""
    return "".join(f"{at:06x} {view[at : at + 16].hex(' ', 8)}\n" for at in range(0, len(view), 16))


def golden_text(name: str) -> str:
    """A golden file without the lines that begin with '#': words for the reader."""
    lines = (GOLDEN / name).read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("#"))


def golden_bytes(name: str) -> bytes:
    return b"".join(bytes.fromhex(line[7:]) for line in golden_text(name).splitlines())


def columns_plain() -> bytearray:
    return encode_columns([b"first", b"", b"third value"], timestamp_ms=NOON_MS)


def columns_full() -> bytearray:
    batch = encode_columns(
        [b"one", None, b"", b"four"],
        [b"k1", b"k1", None, b""],
        timestamp_ms=0,
        headers=[(), (("trace", b"\x01\x02"), ("empty", b"")), (), (("größe", None),)],
        timestamps_ms=[NOON_MS, NOON_MS + 1, NOON_MS - 1, NOON_MS],
        producer_id=0x0102030405060708,
        producer_epoch=3,
        base_sequence=77,
    )
    stamp(batch, 0x1000, 9)
    return batch


def columns_lz4() -> bytearray:
    return encode_columns([b"abcabcabc" * 9] * 4, [b"key"] * 4, timestamp_ms=NOON_MS, compression="lz4")


def rows_full() -> bytearray:
    batch = encode_rows(
        [
            (NOON_MS, b"key", b"value", ()),
            (NOON_MS + 70, None, b"x" * 70, (("trace", b"\x01"), ("none", None))),
            (NOON_MS - 5, b"", None, ()),
        ],
        producer_id=5,
        producer_epoch=1,
        base_sequence=2,
    )
    stamp(batch, 100, 4)
    return batch


def rows_append_time() -> bytearray:
    batch = encode_rows([(NOON_MS, None, b"a", ()), (NOON_MS, None, b"b", ())])
    stamp_append_time(batch, NOON_MS + 1000)
    return batch


@pytest.mark.parametrize("make", [columns_plain, columns_full, rows_full, rows_append_time])
def test_a_batch_has_exactly_the_golden_bytes(make: Callable[[], bytearray]) -> None:
    name = f"record_{make.__name__}.txt"
    found = dump(make())
    assert found == golden_text(name), f"{name} differs; found:\n{found}"


def test_the_golden_columns_read_back_as_what_was_written() -> None:
    batch = RecordBatch("t", 3, memoryview(golden_bytes("record_columns_full.txt")))
    assert [record.offset for record in batch] == [0x1000, 0x1001, 0x1002, 0x1003]
    assert [record.value for record in batch] == [b"one", None, b"", b"four"]
    assert [record.key for record in batch] == [b"k1", b"k1", None, b""]
    assert [record.timestamp for record in batch] == [NOON_MS, NOON_MS + 1, NOON_MS - 1, NOON_MS]
    assert [record.headers for record in batch] == [
        (), (("trace", b"\x01\x02"), ("empty", b"")), (), (("größe", None),),
    ]  # fmt: skip
    assert {record.leader_epoch for record in batch} == {9}
    assert batch.header.producer_id == 0x0102030405060708
    assert (batch.header.producer_epoch, batch.header.base_sequence) == (3, 77)
    assert batch.max_timestamp == NOON_MS + 1


def test_the_golden_rows_read_back_as_what_was_written() -> None:
    batch = RecordBatch("t", 3, memoryview(golden_bytes("record_rows_full.txt")))
    assert [record.value for record in batch] == [b"value", b"x" * 70, None]
    assert [record.key for record in batch] == [b"key", None, b""]
    assert [record.headers for record in batch] == [(), (("trace", b"\x01"), ("none", None)), ()]
    assert [record.offset for record in batch] == [100, 101, 102]
    assert [record.timestamp for record in batch] == [NOON_MS, NOON_MS + 70, NOON_MS - 5]


def test_a_stamped_append_time_is_every_records_time() -> None:
    batch = RecordBatch("t", 0, memoryview(golden_bytes("record_rows_append_time.txt")))
    assert {(record.timestamp, record.timestamp_type) for record in batch} == {(NOON_MS + 1000, 1)}


def test_an_lz4_batch_has_the_golden_bytes_around_what_the_codec_made() -> None:
    # The codec's own bytes may differ from release to release; that any release reads them is the test below.
    found, golden = columns_lz4(), golden_bytes("record_columns_lz4.txt")
    assert found[16:17] == golden[16:17]
    assert found[21:64] == golden[21:64]
    stored_bytes, body_bytes = layout.COMPRESSED_HEAD.unpack_from(found, 64)
    assert body_bytes == 16 + 16 + 4 * 81 + 4 * 3
    assert len(found) == 72 + stored_bytes + padding(stored_bytes)
    assert found[72:76] == bytes.fromhex("04224d18"), "an LZ4 frame"
    assert found[76] & 0x20, "blocks are independent: Kafka's readers refuse linked ones"


def test_the_golden_lz4_batch_reads_back() -> None:
    batch = RecordBatch("t", 0, memoryview(golden_bytes("record_columns_lz4.txt")))
    assert batch.compression == "lz4"
    assert [(record.key, record.value) for record in batch] == [(b"key", b"abcabcabc" * 9)] * 4


def test_sizes_and_positions_are_kafkas() -> None:
    assert layout.HEADER.size == layout.HEADER_BYTES == 61
    assert (layout.MAGIC_ROWS, layout.MAGIC_COLUMNS) == (2, 67)
    batch = bytearray(columns_plain())
    header = read_header(batch)
    assert batch[layout.POSITION_MAGIC] == header.magic
    assert int.from_bytes(batch[layout.POSITION_CRC : layout.POSITION_ATTRIBUTES], "big") == header.crc
    assert int.from_bytes(batch[layout.POSITION_LENGTH : layout.POSITION_EPOCH], "big") == header.batch_length


def test_header_properties_say_what_the_fields_mean() -> None:
    header = BatchHeader(100, 49, 1, 67, 0, 0b11_1011, 9, 5, 6, -1, -1, -1, 10)
    assert (header.size_bytes, header.last_offset, header.next_offset) == (61, 109, 110)
    assert header.compression == 3
    assert header.has_append_time
    assert header.is_transactional
    assert header.is_control
    assert not header._replace(attributes=0).is_control


@pytest.mark.parametrize(("size_bytes", "missing"), [(0, 0), (1, 7), (7, 1), (8, 0), (9, 7)])
def test_padding_fills_up_to_a_multiple_of_eight(size_bytes: int, missing: int) -> None:
    assert padding(size_bytes) == missing
