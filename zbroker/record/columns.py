"""The columnar body (magic 67): encode a batch at C speed, and look at one without copying it.

Nothing here loops over records in Python where the common case (no nulls, no headers, one timestamp) can be left to
`map`, `accumulate`, `array` and `join`: 70 to 100 ns a record of 100 bytes.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from itertools import accumulate
from operator import le
from typing import Final

from zbroker.errors import CorruptRecordError
from zbroker.record.batch import write_crc
from zbroker.record.compression import NONE, codec_number, compress, decompress
from zbroker.record.layout import (
    COLUMN_BODY,
    COLUMN_HEAD,
    COMPRESSED_HEAD,
    FLAG_HEADERS,
    FLAG_KEYS,
    FLAG_NULL_KEYS,
    FLAG_NULL_VALUES,
    FLAG_TIMESTAMPS,
    FLAGS_KNOWN,
    HEADER,
    HEADER_BYTES,
    LOG_OVERHEAD,
    MAGIC_COLUMNS,
    NO_EPOCH,
    NO_PRODUCER,
    NULL_LENGTH,
    RECORD_HEADER,
    BatchHeader,
    padding,
)
from zbroker.record.records import Header

_PADS: Final = tuple(bytes(n) for n in range(8))
Blob = bytes | None


def encode_columns(
    values: Sequence[Blob],
    keys: Sequence[Blob] | None = None,
    *,
    timestamp_ms: int,
    headers: Sequence[tuple[Header, ...]] | None = None,
    timestamps_ms: Sequence[int] | None = None,
    compression: str = "none",
    compression_level: int | None = None,
    producer_id: int = NO_PRODUCER,
    producer_epoch: int = NO_EPOCH,
    base_sequence: int = -1,
) -> bytearray:
    """Build one whole batch, base offset 0, leader epoch -1, CRC in place; its size is a multiple of 8.

    `keys`, `headers` and `timestamps_ms` have one entry for each value, or are None. `timestamp_ms` is every record's
    time when `timestamps_ms` is None.
    """
    count = len(values)
    assert count > 0, "a batch has at least one record"
    flags = 0
    arrays: list[bytes] = []
    bitmaps: list[bytes] = []
    values, ends, nulls = _column(values)
    _add_array(arrays, ends)
    if nulls:
        flags |= FLAG_NULL_VALUES
        _add_padded(bitmaps, nulls)
    blobs: Sequence[bytes] = values
    if keys is not None and any(map(_is_present, keys)):
        assert len(keys) == count
        flags |= FLAG_KEYS
        keys, key_ends, null_keys = _column(keys)
        _add_array(arrays, key_ends)
        if null_keys:
            flags |= FLAG_NULL_KEYS
            _add_padded(bitmaps, null_keys)
        blobs = [*values, *keys]
    arrays += bitmaps
    max_timestamp = timestamp_ms
    if timestamps_ms is not None:
        assert len(timestamps_ms) == count
        flags |= FLAG_TIMESTAMPS
        arrays.append(array("q", timestamps_ms).tobytes())
        timestamp_ms, max_timestamp = timestamps_ms[0], max(timestamps_ms)
    if headers is not None and any(headers):
        assert len(headers) == count
        flags |= FLAG_HEADERS
        header_blobs = list(map(_encode_headers, headers))
        _add_array(arrays, array("I", accumulate(map(len, header_blobs))))
        blobs = [*blobs, *header_blobs]
    codec = codec_number(compression) if compression != "none" else NONE
    if codec:
        body = b"".join((*arrays, *blobs))
        squeezed = compress(codec, body, compression_level)
        parts: Sequence[bytes] = (COMPRESSED_HEAD.pack(len(squeezed), len(body)), squeezed)
        body_bytes = COMPRESSED_HEAD.size + len(squeezed)
    else:
        parts = (*arrays, *blobs)
        body_bytes = sum(map(len, parts))
    pad = padding(body_bytes)
    head = HEADER.pack(
        0, COLUMN_BODY + body_bytes + pad - LOG_OVERHEAD, NO_EPOCH, MAGIC_COLUMNS, 0, codec, count - 1,
        timestamp_ms, max_timestamp, producer_id, producer_epoch, base_sequence, count,
    )  # fmt: skip
    batch = bytearray().join((head, COLUMN_HEAD.pack(flags, 0), *parts, _PADS[pad]))
    write_crc(batch)
    return batch


def _is_present(blob: Blob) -> bool:
    return blob is not None


def _column(blobs: Sequence[Blob]) -> tuple[Sequence[bytes], array[int], bytes]:
    """(blobs without None, their ends, a bitmap of the None or b'')."""
    try:
        return blobs, array("I", accumulate(map(len, blobs))), b""  # type: ignore[arg-type,return-value]
    except TypeError:
        nulls = bytearray(len(blobs) + 7 >> 3)
        for index, blob in enumerate(blobs):
            if blob is None:
                nulls[index >> 3] |= 1 << (index & 7)
        present = [b"" if blob is None else blob for blob in blobs]
        return present, array("I", accumulate(map(len, present))), bytes(nulls)


def _add_array(arrays: list[bytes], column: array[int]) -> None:
    _add_padded(arrays, column.tobytes())


def _add_padded(arrays: list[bytes], data: bytes) -> None:
    arrays.append(data)
    pad = padding(len(data))
    if pad:
        arrays.append(_PADS[pad])


def _encode_headers(headers: tuple[Header, ...]) -> bytes:
    parts = []
    for name, value in headers:
        encoded = name.encode()
        parts.append(RECORD_HEADER.pack(len(encoded), NULL_LENGTH if value is None else len(value)))
        parts.append(encoded)
        parts.append(value or b"")
    return b"".join(parts)


class Columns:
    """A view of one columnar batch. Lengths are checked when it is made; blobs are sliced only when asked for.

    `value_ends` and `data` are views into the given memory when the batch is not compressed.
    """

    __slots__ = (
        "_body", "_flags", "_header", "_header_position", "_key_nulls", "_key_position", "_timestamps",
        "_value_nulls", "count", "data", "header_ends", "key_ends", "value_ends",
    )  # fmt: skip

    def __init__(self, batch: memoryview, header: BatchHeader) -> None:
        """`batch` is exactly one batch, its CRC checked by the caller. Raises CorruptRecordError for lying lengths."""
        assert header.magic == MAGIC_COLUMNS
        try:
            flags, zero = COLUMN_HEAD.unpack_from(batch, HEADER_BYTES)
        except struct.error as error:
            raise CorruptRecordError("a columnar batch is cut short") from error
        if flags & ~FLAGS_KNOWN or zero:
            raise CorruptRecordError(f"column flags {flags:#x}: written by a newer zbroker?")
        self._header = header
        self._flags = flags
        self.count = header.record_count
        self._body = _body_of(batch, header.compression)
        self._read_arrays()

    def _read_arrays(self) -> None:
        flags, count, body = self._flags, self.count, self._body
        position = 0

        def take(size_bytes: int) -> memoryview:
            nonlocal position
            if position + size_bytes > len(body):
                raise CorruptRecordError(f"{count} records do not fit into a body of {len(body)} bytes")
            found = body[position : position + size_bytes]
            position += size_bytes + padding(size_bytes)
            return found

        self.value_ends = take(4 * count).cast("I")
        self.key_ends = take(4 * count).cast("I") if flags & FLAG_KEYS else None
        bitmap_bytes = count + 7 >> 3
        self._value_nulls = take(bitmap_bytes) if flags & FLAG_NULL_VALUES else None
        self._key_nulls = take(bitmap_bytes) if flags & FLAG_NULL_KEYS else None
        self._timestamps = take(8 * count).cast("q") if flags & FLAG_TIMESTAMPS else None
        self.header_ends = take(4 * count).cast("I") if flags & FLAG_HEADERS else None
        blobs = (self.value_ends, self.key_ends, self.header_ends)
        sizes = [ends[-1] if ends is not None else 0 for ends in blobs]
        if position + sum(sizes) > len(body):
            raise CorruptRecordError(f"blobs of {sum(sizes)} bytes do not fit into a body of {len(body)}")
        self.data = body[position : position + sizes[0]]
        self._key_position = position + sizes[0]
        self._header_position = self._key_position + sizes[1]

    def values(self) -> list[bytes | None]:
        """Every value as bytes."""
        return _slices(bytes(self.data), self.value_ends, self._value_nulls)

    def keys(self) -> list[bytes | None]:
        """Every key as bytes, None where a record has none."""
        if self.key_ends is None:
            return [None] * self.count
        blob = bytes(self._body[self._key_position : self._header_position])
        return _slices(blob, self.key_ends, self._key_nulls)

    def timestamps(self) -> Sequence[int]:
        """Every record's time in milliseconds."""
        if self._header.has_append_time:
            return [self._header.max_timestamp] * self.count
        if self._timestamps is None:
            return [self._header.base_timestamp] * self.count
        return self._timestamps.tolist()

    def headers(self) -> list[tuple[Header, ...]] | None:
        """Every record's headers, or None when no record of the batch has any."""
        if self.header_ends is None:
            return None
        size_bytes = self.header_ends[-1]
        blob = bytes(self._body[self._header_position : self._header_position + size_bytes])
        return [_decode_headers(part or b"") for part in _slices(blob, self.header_ends, None)]


def _body_of(batch: memoryview, codec: int) -> memoryview:
    body = batch[COLUMN_BODY:]
    if not codec:
        return body
    if len(body) < COMPRESSED_HEAD.size:
        raise CorruptRecordError("a compressed batch is cut short")
    stored_bytes, body_bytes = COMPRESSED_HEAD.unpack_from(body)
    if stored_bytes > len(body) - COMPRESSED_HEAD.size:
        raise CorruptRecordError(f"{stored_bytes} compressed bytes do not fit into {len(body)}")
    plain = decompress(codec, body[COMPRESSED_HEAD.size : COMPRESSED_HEAD.size + stored_bytes])
    if len(plain) != body_bytes:
        raise CorruptRecordError(f"{body_bytes} bytes were compressed, {len(plain)} came out")
    return memoryview(plain)


def _slices(blob: bytes, ends: memoryview, nulls: memoryview | None) -> list[bytes | None]:
    stops = ends.tolist()
    starts = [0, *stops]
    if not all(map(le, starts, stops)):
        raise CorruptRecordError("ends of a column do not ascend")
    found: list[bytes | None] = list(map(blob.__getitem__, map(slice, starts, stops)))
    if nulls is not None:
        for index in range(len(found)):
            if nulls[index >> 3] >> (index & 7) & 1:
                found[index] = None
    return found


def _decode_headers(blob: bytes) -> tuple[Header, ...]:
    found: list[Header] = []
    position = 0
    while position < len(blob):
        try:
            name_bytes, value_bytes = RECORD_HEADER.unpack_from(blob, position)
            position += RECORD_HEADER.size
            name = blob[position : position + name_bytes].decode()
        except (struct.error, UnicodeDecodeError) as error:
            raise CorruptRecordError("a record's headers are damaged") from error
        position += name_bytes
        if value_bytes == NULL_LENGTH:
            value = None
        else:
            value = blob[position : position + value_bytes]
            position += value_bytes
        if position > len(blob):
            raise CorruptRecordError("a record's headers end beyond their blob")
        found.append((name, value))
    return tuple(found)
