"""Batches that compaction took records from: every record that stays is what it was, holes have none."""

from __future__ import annotations

from itertools import compress as chosen
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zbroker.errors import CorruptRecordError
from zbroker.record.batch import check_batch, read_header, stamp, stamp_append_time, write_crc
from zbroker.record.columns import encode_columns
from zbroker.record.compacted import HOLE_BYTES, Records, emptied, hole, is_hole, thinned
from zbroker.record.layout import COLUMN_BODY
from zbroker.record.rows import encode_rows
from zbroker.record.view import RecordBatch

NOW_MS = 1_700_000_000_000
BLOBS = st.one_of(st.none(), st.binary(max_size=9))
ROWS = st.lists(
    st.tuples(
        st.integers(0, 1 << 40),
        BLOBS,
        BLOBS,
        st.lists(st.tuples(st.text(max_size=3), BLOBS), max_size=2).map(tuple),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
).filter(lambda rows: any(row[4] for row in rows))


def view_of(batch: bytes | bytearray) -> RecordBatch:
    return RecordBatch("t", 0, memoryview(bytes(batch)))


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, is_rows=st.booleans(), is_append_time=st.booleans(), codec=st.sampled_from(["none", "gzip"]))
def test_records_that_stay_are_what_they_were(rows, is_rows, is_append_time, codec) -> None:  # type: ignore[no-untyped-def]  # hypothesis
    stamps, keys, values, headers, keep = map(list, zip(*rows, strict=True))
    who: dict[str, Any] = {"producer_id": 7, "producer_epoch": 2, "base_sequence": 30}
    if is_rows:
        batch = encode_rows([row[:4] for row in rows], compression=codec, **who)
    else:
        batch = encode_columns(
            values, keys, timestamp_ms=0, timestamps_ms=stamps, headers=headers, compression=codec, **who
        )
    stamp(batch, 1000, 5)
    if is_append_time:
        stamp_append_time(batch, NOW_MS)
    whole = view_of(batch)
    records = Records(memoryview(bytes(batch)), whole.header)
    less = view_of(thinned(whole.header, records, [index for index, kept in enumerate(keep) if kept]))
    assert less.records() == list(chosen(whole.records(), keep))
    assert list(less.offsets()) == [record.offset for record in less.records()]
    assert less.keys() == [record.key for record in less.records()]
    assert less.values().tolist() == [record.value or b"" for record in less.records()]
    for name in ("base_offset", "last_offset_delta", "leader_epoch", "producer_id", "producer_epoch", "base_sequence"):
        assert getattr(less.header, name) == getattr(whole.header, name)
    for offset in range(999, 1002 + len(rows)):
        assert less.records_from(offset) == [record for record in less.records() if record.offset >= offset]
    again = Records(memoryview(less.raw()), less.header)
    assert thinned(less.header, again, range(len(less))) == less.raw()


def test_a_hole_has_offsets_and_no_records() -> None:
    batch = view_of(hole(10, 500, 3))
    assert (batch.base_offset, batch.last_offset, batch.leader_epoch, len(batch)) == (10, 499, 3, 0)
    for found in (batch.records(), batch.keys(), list(batch.offsets()), batch.values().tolist()):
        assert found == []
    assert batch.size_in_bytes == HOLE_BYTES == COLUMN_BODY == 64
    assert is_hole(batch.header)
    assert batch.max_timestamp == -1


def test_what_is_left_of_a_producers_newest_batch_says_which_it_was() -> None:
    whole = read_header(encode_columns([b"a", b"b"], timestamp_ms=5, producer_id=9, producer_epoch=1, base_sequence=4))
    batch = view_of(emptied(whole))
    assert batch.records() == []
    assert not is_hole(batch.header)
    named = ("base_offset", "last_offset_delta", "producer_id", "producer_epoch", "base_sequence")
    assert [getattr(batch.header, name) for name in named] == [getattr(whole, name) for name in named]


def test_golden_bytes_of_a_hole() -> None:
    assert hole(0x10, 0x20, 7).hex() == GOLDEN_HOLE


GOLDEN_HOLE = "".join(
    (
        "0000000000000010 00000034 00000007 43 67522577 0080 0000000f ffffffffffffffff ffffffffffffffff",
        "ffffffffffffffff ffff ffffffff 00000000 000000",
    )
).replace(" ", "")


def test_no_producer_may_send_what_compaction_leaves() -> None:
    made = encode_columns([b"a", b"b"], timestamp_ms=5, deltas=[0, 1])
    with pytest.raises(CorruptRecordError, match="2 records"):
        check_batch(made, size_bytes_max=1 << 20, records_max=10)
    with pytest.raises(CorruptRecordError):
        check_batch(hole(0, 1, 0), size_bytes_max=1 << 20, records_max=10)


@pytest.mark.parametrize("deltas", [[1, 1], [1, 0], [0, 5]])
def test_offsets_that_lie_are_damage(deltas: list[int]) -> None:
    made = encode_columns([b"a", b"b"], timestamp_ms=5, deltas=[0, 1])
    made[COLUMN_BODY + 8 : COLUMN_BODY + 16] = b"".join(delta.to_bytes(4, "little") for delta in deltas)
    write_crc(made)
    with pytest.raises(CorruptRecordError, match="ascend"):
        view_of(made).records()


def test_more_records_than_offsets_are_damage() -> None:
    made = encode_columns([b"a", b"b", b"c"], timestamp_ms=5, deltas=[0, 1, 2])
    made[23:27] = (1).to_bytes(4, "big")
    write_crc(made)
    with pytest.raises(CorruptRecordError, match="no batch"):
        view_of(made)
