"""A columnar batch of one value and nothing else, laid out and read at one go: what is sent alone is waited for.

Guarantees: the bytes are those that `encode_columns` lays out for it; what is not such a batch is said not to be one,
never read wrongly.
"""

from __future__ import annotations

import struct
from typing import Final

from zbroker.errors import MessageSizeTooLargeError
from zbroker.record.crc import crc32c
from zbroker.record.layout import (
    BATCH_BYTES_MAX,
    COLUMN_BODY,
    COMPACTED,
    COMPRESSION_MASK,
    HEADER_BYTES,
    LOG_OVERHEAD,
    MAGIC_COLUMNS,
    NO_EPOCH,
    POSITION_ATTRIBUTES,
    BatchHeader,
    padding,
)

_NOT_COVERED = struct.Struct(">qiibI")  # the header up to its CRC
_COVERED = struct.Struct(">hiqqqhii")  # the rest of it
_COLUMN = struct.Struct("<BHII")  # COLUMN_HEAD, the end of the only value, zeros to a multiple of 8
_HEAD_BYTES: Final = HEADER_BYTES + _COLUMN.size
_NOT_PLAIN: Final = COMPRESSION_MASK | COMPACTED
_PADS: Final = tuple(bytes(n) for n in range(8))

assert _NOT_COVERED.size == POSITION_ATTRIBUTES
assert _NOT_COVERED.size + _COVERED.size == HEADER_BYTES
assert _HEAD_BYTES == COLUMN_BODY + 8


def encode_value(value: bytes, timestamp_ms: int, producer_id: int, producer_epoch: int, sequence: int) -> bytearray:
    """The batch of this value, as `encode_columns` makes it. Raises MessageSizeTooLargeError beyond 2 GiB."""
    length = len(value)
    size_bytes = _HEAD_BYTES + length + padding(length)
    if size_bytes > BATCH_BYTES_MAX:
        raise MessageSizeTooLargeError(f"a batch of {size_bytes} bytes cannot be written down")
    covered = _COVERED.pack(0, 0, timestamp_ms, timestamp_ms, producer_id, producer_epoch, sequence, 1)
    covered += _COLUMN.pack(0, 0, length, 0) + value + _PADS[-length & 7]
    head = _NOT_COVERED.pack(0, size_bytes - LOG_OVERHEAD, NO_EPOCH, MAGIC_COLUMNS, crc32c(covered))
    return bytearray(head + covered)


def only_value(batch: memoryview, header: BatchHeader) -> bytes | None:
    """The value of a batch that has one record, and of it no more than a value; None: it is another batch."""
    if header.magic != MAGIC_COLUMNS or header.attributes & _NOT_PLAIN or len(batch) < _HEAD_BYTES:
        return None
    flags, zero, end, _ = _COLUMN.unpack_from(batch, HEADER_BYTES)
    if flags or zero or header.record_count != 1 or _HEAD_BYTES + (end + 7 & -8) != len(batch):
        return None
    return bytes(batch[_HEAD_BYTES : _HEAD_BYTES + end])
