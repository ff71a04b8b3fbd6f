"""Kafka's row body (magic 2): the records of `DefaultRecord`, encoded and decoded.

    record: length varint | attributes i8 (0) | timestamp delta varlong | offset delta varint
            | key length varint (-1: null) | key | value length varint | value | header count varint
            | (name length varint | name | value length varint | value) x count

Varints are zigzag, seven bits a byte, lowest first. This is the slow way round (4 to 7 us a record): it serves batches
of Kafka clients, never zbroker's own producers.
"""

from __future__ import annotations

from collections.abc import Sequence

from zbroker.errors import CorruptRecordError
from zbroker.record.batch import write_crc
from zbroker.record.compression import NONE, codec_number, compress, decompress
from zbroker.record.layout import (
    HEADER,
    HEADER_BYTES,
    LOG_OVERHEAD,
    MAGIC_ROWS,
    NO_EPOCH,
    NO_PRODUCER,
    BatchHeader,
)
from zbroker.record.records import Header

Row = tuple[int, bytes | None, bytes | None, tuple[Header, ...]]
"""timestamp in milliseconds, key, value, headers"""

_VARINT_BYTES_MAX = 10
_TIMESTAMP_MIN, _TIMESTAMP_MAX = -(1 << 63), (1 << 63) - 1


def encode_rows(
    rows: Sequence[Row],
    *,
    compression: str = "none",
    compression_level: int | None = None,
    producer_id: int = NO_PRODUCER,
    producer_epoch: int = NO_EPOCH,
    base_sequence: int = -1,
) -> bytearray:
    """Build one whole batch of rows, base offset 0, leader epoch -1, byte for byte as kafka-python and aiokafka do.

    A body that does not become smaller is not compressed.
    """
    assert rows, "a batch has at least one record"
    base_timestamp = rows[0][0]
    body = bytearray()
    for delta, (timestamp_ms, key, value, headers) in enumerate(rows):
        row = bytearray(b"\0")
        _put_varint(row, timestamp_ms - base_timestamp)
        _put_varint(row, delta)
        _put_blob(row, key)
        _put_blob(row, value)
        _put_varint(row, len(headers))
        for name, header_value in headers:
            _put_blob(row, name.encode())
            _put_blob(row, header_value)
        _put_varint(body, len(row))
        body += row
    codec = codec_number(compression) if compression != "none" else NONE
    stored: bytes | bytearray = compress(codec, body, compression_level) if codec else body
    if codec and len(stored) >= len(body):
        codec, stored = NONE, body
    max_timestamp = max(row[0] for row in rows)
    head = HEADER.pack(
        0, HEADER_BYTES + len(stored) - LOG_OVERHEAD, NO_EPOCH, MAGIC_ROWS, 0, codec, len(rows) - 1,
        base_timestamp, max_timestamp, producer_id, producer_epoch, base_sequence, len(rows),
    )  # fmt: skip
    batch = bytearray().join((head, stored))
    write_crc(batch)
    return batch


def decode_rows(batch: memoryview, header: BatchHeader) -> list[Row]:
    """The records of one batch whose CRC was checked. Raises CorruptRecordError for lengths or varints that lie."""
    assert header.magic == MAGIC_ROWS
    stored = batch[HEADER_BYTES : header.size_bytes]
    body = decompress(header.compression, stored) if header.compression else bytes(stored)
    append_time = header.max_timestamp if header.has_append_time else None
    rows: list[Row] = []
    position = 0
    try:
        for number in range(header.record_count):
            length, position = _take_varint(body, position)
            end = position + length
            if length < 1 or end > len(body):
                raise CorruptRecordError(f"row {number} says {length} bytes, {len(body) - position} are left")
            row, delta, position = _take_row(body, position + 1, header.base_timestamp, append_time)
            if delta != number:
                raise CorruptRecordError(f"row {number} says it is row {delta}")
            if position != end:
                raise CorruptRecordError(f"row {number} ends at {position}, not at {end}")
            rows.append(row)
    except (IndexError, UnicodeDecodeError) as error:
        raise CorruptRecordError("a row is cut short or damaged") from error
    if position != len(body):
        raise CorruptRecordError(f"{len(body) - position} bytes follow the last row")
    return rows


def _take_row(body: bytes, position: int, base_timestamp: int, append_time: int | None) -> tuple[Row, int, int]:
    """(row, offset delta, position behind it)."""
    timestamp_delta, position = _take_varint(body, position)
    offset_delta, position = _take_varint(body, position)
    key, position = _take_blob(body, position)
    value, position = _take_blob(body, position)
    count, position = _take_varint(body, position)
    if not 0 <= count <= len(body):
        raise CorruptRecordError(f"a row says it has {count} headers")
    headers: list[Header] = []
    for _ in range(count):
        name, position = _take_blob(body, position)
        header_value, position = _take_blob(body, position)
        if name is None:
            raise CorruptRecordError("a header has no name")
        headers.append((name.decode(), header_value))
    timestamp_ms = base_timestamp + timestamp_delta if append_time is None else append_time
    if not _TIMESTAMP_MIN <= timestamp_ms <= _TIMESTAMP_MAX:
        raise CorruptRecordError("a row's time does not fit into 64 bits")
    return (timestamp_ms, key, value, tuple(headers)), offset_delta, position


def _put_varint(out: bytearray, value: int) -> None:
    zigzag = (value << 1) ^ (value >> 63)
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    out.append(zigzag)


def _put_blob(out: bytearray, blob: bytes | None) -> None:
    if blob is None:
        out.append(1)  # -1 in zigzag
    else:
        _put_varint(out, len(blob))
        out += blob


def _take_varint(body: bytes, position: int) -> tuple[int, int]:
    zigzag = shift = 0
    for _ in range(_VARINT_BYTES_MAX):
        byte = body[position]
        position += 1
        zigzag |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (zigzag >> 1) ^ -(zigzag & 1), position
        shift += 7
    raise CorruptRecordError("a varint is longer than ten bytes")


def _take_blob(body: bytes, position: int) -> tuple[bytes | None, int]:
    length, position = _take_varint(body, position)
    if length == -1:
        return None, position
    if length < 0 or position + length > len(body):
        raise CorruptRecordError(f"a field says {length} bytes, {len(body) - position} are left")
    return body[position : position + length], position + length
