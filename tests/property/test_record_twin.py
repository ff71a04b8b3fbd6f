"""Columns against a dumb twin: a reader written from the layout's prose, one record at a time, with no code shared."""

from __future__ import annotations

import struct
import zlib

import lz4.frame
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from zbroker.record.batch import check_batch
from zbroker.record.columns import Columns, encode_columns
from zbroker.record.records import Header
from zbroker.record.rows import Row, decode_rows, encode_rows

Twin = tuple[int, bytes | None, bytes | None, tuple[Header, ...]]

blobs = st.one_of(st.none(), st.binary(max_size=20), st.binary(min_size=60, max_size=70))
stamps = st.integers(min_value=-(1 << 62), max_value=(1 << 62) - 1)
names = st.text(st.characters(codec="utf-8"), max_size=8)
headers_strategy = st.lists(st.tuples(names, blobs), max_size=3).map(tuple)
records_strategy = st.lists(st.tuples(stamps, blobs, blobs, headers_strategy), min_size=1, max_size=40)


def read_by_the_book(batch: bytes) -> list[Twin]:
    """The layout's prose as code: slow, obvious, from the first byte to the last."""
    (_, length, _, magic, _, attributes, _, base_ms, max_ms, _, _, _, n) = struct.unpack(">qiibIhiqqqhii", batch[:61])
    assert magic == 67
    assert len(batch) == 12 + length
    assert len(batch) % 8 == 0
    flags = batch[61]
    body = batch[64:]
    codec = attributes & 7
    if codec:
        stored, size = struct.unpack("<II", body[:8])
        squeezed = body[8 : 8 + stored]
        unpack = {
            1: lambda data: zlib.decompress(data, 31),
            3: lz4.frame.decompress,
            4: zstandard.ZstdDecompressor().decompress,
        }[codec]
        body = unpack(squeezed)
        assert len(body) == size
    at = 0

    def take(size_bytes: int) -> bytes:
        nonlocal at
        taken = body[at : at + size_bytes]
        at += (size_bytes + 7) // 8 * 8
        return taken

    value_ends = struct.unpack(f"<{n}I", take(4 * n))
    key_ends = struct.unpack(f"<{n}I", take(4 * n)) if flags & 1 else (0,) * n
    value_nulls = take((n + 7) // 8) if flags & 2 else bytes(n)
    key_nulls = take((n + 7) // 8) if flags & 4 else bytes(n)
    times = struct.unpack(f"<{n}q", take(8 * n)) if flags & 8 else (base_ms,) * n
    header_ends = struct.unpack(f"<{n}I", take(4 * n)) if flags & 16 else (0,) * n
    value_blob = body[at : at + value_ends[-1]]
    key_blob = body[at + value_ends[-1] :][: key_ends[-1]]
    header_blob = body[at + value_ends[-1] + key_ends[-1] :][: header_ends[-1]]
    records: list[Twin] = []
    for i in range(n):
        value: bytes | None = value_blob[value_ends[i - 1] if i else 0 : value_ends[i]]
        key: bytes | None = key_blob[key_ends[i - 1] if i else 0 : key_ends[i]]
        if value_nulls[i // 8] & 1 << i % 8:
            value = None
        if not flags & 1 or key_nulls[i // 8] & 1 << i % 8:
            key = None
        rest = header_blob[header_ends[i - 1] if i else 0 : header_ends[i]]
        headers: list[Header] = []
        while rest:
            name_bytes, value_bytes = struct.unpack("<HI", rest[:6])
            name, rest = rest[6 : 6 + name_bytes].decode(), rest[6 + name_bytes :]
            if value_bytes == 0xFFFFFFFF:
                headers.append((name, None))
            else:
                headers.append((name, rest[:value_bytes]))
                rest = rest[value_bytes:]
        records.append((max_ms if attributes & 8 else times[i], key, value, tuple(headers)))
    return records


@settings(max_examples=300, deadline=None)
@given(records=records_strategy, compression=st.sampled_from(["none", "gzip", "lz4", "zstd"]))
def test_a_reader_written_from_the_prose_reads_what_we_write(records: list[Row], compression: str) -> None:
    times, keys, values, headers = map(list, zip(*records, strict=True))
    batch = encode_columns(
        values, keys, timestamp_ms=0, timestamps_ms=times, headers=headers, compression=compression
    )  # fmt: skip
    assert read_by_the_book(bytes(batch)) == records
    header = check_batch(batch, size_bytes_max=len(batch), records_max=len(records))
    columns = Columns(memoryview(batch), header)
    found_headers = columns.headers() or [()] * len(records)
    found = list(zip(columns.timestamps(), columns.keys(), columns.values(), found_headers, strict=True))
    assert found == records
    assert header.max_timestamp == max(times)


@settings(max_examples=200, deadline=None)
@given(records=records_strategy, compression=st.sampled_from(["none", "gzip", "lz4", "zstd"]))
def test_rows_come_back_as_they_were_written(records: list[Row], compression: str) -> None:
    batch = encode_rows(records, compression=compression)
    header = check_batch(batch, size_bytes_max=len(batch), records_max=len(records))
    assert decode_rows(memoryview(batch), header) == records


@settings(max_examples=100, deadline=None)
@given(values=st.lists(blobs, min_size=1, max_size=40), keys=st.data())
def test_one_timestamp_for_all_reads_back_as_each_records(values: list[bytes | None], keys: st.DataObject) -> None:
    drawn = keys.draw(st.one_of(st.none(), st.lists(blobs, min_size=len(values), max_size=len(values))))
    batch = encode_columns(values, drawn, timestamp_ms=77)
    expected_keys = drawn if drawn is not None else [None] * len(values)
    assert read_by_the_book(bytes(batch)) == [
        (77, key, value, ()) for key, value in zip(expected_keys, values, strict=True)
    ]
