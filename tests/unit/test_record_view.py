"""RecordBatch and ValuesView: lazy, without a copy, the same for rows and columns."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from zbroker.errors import CorruptRecordError, InvalidRecordError
from zbroker.ids import TopicPartition
from zbroker.record.batch import stamp, stamp_append_time
from zbroker.record.columns import encode_columns
from zbroker.record.records import ConsumerRecord, RecordMetadata, header_tuple
from zbroker.record.rows import encode_rows
from zbroker.record.view import RecordBatch

NOW_MS = 1_795_435_200_000
VALUES = [b"zero", None, b"", b"three"]
KEYS = [b"k", None, b"", b"k"]
STAMPS = [NOW_MS, NOW_MS + 1, NOW_MS + 2, NOW_MS]
HEADERS = [(), (("a", b"1"),), (), (("b", None),)]


def bytes_of(kind: str) -> bytearray:
    if kind == "rows":
        batch = encode_rows(list(zip(STAMPS, KEYS, VALUES, HEADERS, strict=True)))
    else:
        batch = encode_columns(VALUES, KEYS, timestamp_ms=0, timestamps_ms=STAMPS, headers=HEADERS)
    stamp(batch, 1000, 4)
    return batch


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100])
@pytest.mark.parametrize("has_append_time", [False, True])
def test_a_value_alone_is_the_record_that_rows_make_of_it(length: int, has_append_time: bool) -> None:
    value = b"v" * length
    found = []
    for batch in encode_columns([value], timestamp_ms=NOW_MS), encode_rows([(NOW_MS, None, value, ())]):
        if has_append_time:
            stamp_append_time(batch, NOW_MS + 5)
        stamp(batch, 1000, 4)
        found.append(RecordBatch("orders", 2, memoryview(batch), value_deserializer=bytes.decode).records())
    assert found[0] == found[1]
    assert [(one.offset, one.value, one.timestamp) for one in found[0]] == [
        (1000, value.decode(), NOW_MS + 5 * has_append_time)
    ]


def test_a_value_alone_that_lies_about_its_end_is_damage() -> None:
    batch = encode_columns([b"value"], timestamp_ms=NOW_MS)
    batch[64] = 77
    with pytest.raises(CorruptRecordError):
        RecordBatch("orders", 2, memoryview(batch), check_crc=False).records()


@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_both_layouts_show_the_same_batch(kind: str) -> None:
    batch = RecordBatch("orders", 2, memoryview(bytes_of(kind)))
    assert batch.tp == TopicPartition("orders", 2)
    assert (batch.base_offset, batch.last_offset, batch.leader_epoch) == (1000, 1003, 4)
    assert (len(batch), batch.record_count, batch.max_timestamp, batch.compression) == (4, 4, NOW_MS + 2, "none")
    expected = [
        ConsumerRecord("orders", 2, 1000 + number, STAMPS[number], 0, KEYS[number], VALUES[number], HEADERS[number], 4)
        for number in range(4)
    ]
    assert list(batch) == batch.records() == expected
    assert batch[1] == expected[1]
    assert batch[-1].tp == TopicPartition("orders", 2)
    assert batch[1:3] == expected[1:3]
    assert batch.keys() == KEYS
    values = batch.values()
    assert [bytes(value) for value in values] == [b"zero", b"", b"", b"three"]
    assert values.tolist() == [b"zero", b"", b"", b"three"]
    assert bytes(values[3]) == bytes(values[-1]) == b"three"
    assert [bytes(value) for value in values[1:]] == [b"", b"", b"three"]
    assert bytes(values.data) == b"zerothree"
    assert values.ends.tolist() == [4, 4, 4, 9]
    with pytest.raises(IndexError):
        values[4]
    assert "orders" in repr(batch)
    assert batch.size_in_bytes == len(batch.raw())


@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_records_can_begin_in_the_middle_of_a_batch(kind: str) -> None:
    batch = RecordBatch("orders", 2, memoryview(bytes_of(kind)))
    assert [record.offset for record in batch.records_from(1002)] == [1002, 1003]
    assert [record.offset for record in batch.records_from(0)] == [1000, 1001, 1002, 1003]
    assert batch.records_from(1004) == []


@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_deserializers_see_bytes_and_never_null(kind: str) -> None:
    batch = RecordBatch(
        "orders", 2, memoryview(bytes_of(kind)), key_deserializer=bytes.upper, value_deserializer=bytes.decode
    )
    assert [record.key for record in batch] == [b"K", None, b"", b"K"]
    assert [record.value for record in batch] == ["zero", None, "", "three"]


@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_the_append_time_is_every_records_time(kind: str) -> None:
    raw = bytes_of(kind)
    stamp_append_time(raw, NOW_MS + 99)
    assert {(record.timestamp, record.timestamp_type) for record in RecordBatch("t", 0, memoryview(raw))} == {
        (NOW_MS + 99, 1)
    }


def test_plain_values_are_views_of_the_batch_itself() -> None:
    raw = encode_columns([b"ab", b"cde"], timestamp_ms=NOW_MS)
    values = RecordBatch("t", 0, memoryview(raw)).values()
    assert values.data.obj is raw
    assert values.ends.obj is raw
    assert len(values) == 2


def test_numpy_takes_data_and_ends_as_they_are() -> None:
    raw = encode_columns([b"\x01\x02", b"\x03"], timestamp_ms=NOW_MS)
    values = RecordBatch("t", 0, memoryview(raw)).values()
    data = np.frombuffer(values.data, dtype=np.uint8)
    ends = np.asarray(values.ends)
    assert data.tolist() == [1, 2, 3]
    assert ends.dtype == np.uint32
    assert ends.tolist() == [2, 3]


def test_a_batch_in_a_mapped_file_lets_the_file_go_when_released(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(encode_columns([b"ab", b"cde"], timestamp_ms=NOW_MS))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    batch = RecordBatch("t", 0, memoryview(mapped))
    values = batch.values()
    path.unlink()
    assert values.tolist() == [b"ab", b"cde"]
    records = batch.records()
    with pytest.raises(BufferError):
        mapped.close()
    values.data.release()
    values.ends.release()
    batch.release()
    mapped.close()
    assert [record.value for record in records] == [b"ab", b"cde"]


def test_a_damaged_batch_is_refused_unless_the_crc_is_not_wanted() -> None:
    raw = encode_columns([b"value"], timestamp_ms=NOW_MS)
    raw[-8] ^= 1
    with pytest.raises(CorruptRecordError, match="offset 0 fails its CRC"):
        RecordBatch("t", 0, memoryview(raw))
    assert len(RecordBatch("t", 0, memoryview(raw), check_crc=False)) == 1


@pytest.mark.parametrize("cut", [0, 60, 61, 72])
def test_a_part_of_a_batch_is_refused(cut: int) -> None:
    raw = encode_columns([b"value"], timestamp_ms=NOW_MS)
    with pytest.raises(CorruptRecordError):
        RecordBatch("t", 0, memoryview(raw)[:cut])


@pytest.mark.parametrize(
    "headers", [{"a": b"1", "b": None}, [("a", b"1"), ("b", None)], (("a", b"1"), ("b", None))]
)  # fmt: skip
def test_headers_have_one_form_inside(headers: dict[str, bytes | None]) -> None:
    assert header_tuple(headers) == (("a", b"1"), ("b", None))


@pytest.mark.parametrize("headers", [{"a": "text"}, [("a",)], [(b"a", b"")], [("a", b"", b"")]])
def test_headers_of_a_wrong_type_are_named(headers: dict[str, bytes]) -> None:
    with pytest.raises(InvalidRecordError, match="a header is"):
        header_tuple(headers)


def test_records_are_values_that_compare_and_cannot_be_changed() -> None:
    meta = RecordMetadata("t", 0, 5, NOW_MS, -1, 3)
    assert meta == RecordMetadata("t", 0, 5, NOW_MS, -1, 3)
    with pytest.raises(AttributeError):
        meta.offset = 6  # type: ignore[misc]  # frozen
