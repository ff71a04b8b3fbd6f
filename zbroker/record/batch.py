"""Read, check and stamp record batches without looking at their records.

Guarantees: nothing here decodes or decompresses a body, so the cost of a batch is its CRC and a constant. Every length
is checked against the bytes at hand before it is used. Whether the columns or rows inside make sense is the reader's
to find out (`columns.py`, `rows.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial

from zbroker.errors import CorruptRecordError, InvalidRecordError, MessageSizeTooLargeError, RecordListTooLargeError
from zbroker.record.crc import ReadableBuffer, crc32c
from zbroker.record.layout import (
    COLUMN_BODY,
    COLUMN_HEAD,
    COMPACTED,
    COMPRESSION_MASK,
    COMPRESSION_MAX,
    FLAG_KEYS,
    FLAG_NULL_KEYS,
    FLAGS_KNOWN,
    HEADER,
    HEADER_BYTES,
    LOG_APPEND_TIME,
    LOG_OVERHEAD,
    MAGIC_COLUMNS,
    MAGIC_ROWS,
    POSITION_ATTRIBUTES,
    POSITION_CRC,
    POSITION_EPOCH,
    POSITION_MAX_TIMESTAMP,
    POSITION_PRODUCER,
    ROW_BYTES_MIN,
    BatchHeader,
)

_I64 = struct.Struct(">q")
_I32 = struct.Struct(">i")
_U32 = struct.Struct(">I")
_PRODUCER = struct.Struct(">qhi")
_I16 = struct.Struct(">h")
_unpack_header = HEADER.unpack_from
# Not `BatchHeader._make`, which is a call in Python: a reader decodes a header for each batch.
_make_header: Callable[[tuple[int, ...]], BatchHeader] = partial(tuple.__new__, BatchHeader)
_MAGICS = (MAGIC_COLUMNS, MAGIC_ROWS)


def read_header(view: ReadableBuffer, position: int = 0) -> BatchHeader:
    """Decode the header at `position`. Raises CorruptRecordError when fewer than 61 bytes are left."""
    try:
        return _make_header(_unpack_header(view, position))
    except struct.error as error:
        raise CorruptRecordError(f"a batch header needs {HEADER_BYTES} bytes at position {position}") from error


def check_batch(view: ReadableBuffer, *, size_bytes_max: int, records_max: int) -> BatchHeader:
    """Check that `view` is exactly one whole batch, and give its header.

    Checked: size, magic, lengths, counts, CRC. Raises MessageSizeTooLargeError, RecordListTooLargeError or
    CorruptRecordError. `base_offset` and `leader_epoch` are not covered: the broker sets them.
    """
    size_bytes = len(view)
    if size_bytes > size_bytes_max:
        raise MessageSizeTooLargeError(f"a batch of {size_bytes} bytes; at most {size_bytes_max} are accepted")
    header = read_header(view) if size_bytes < HEADER_BYTES else _make_header(_unpack_header(view))
    _, batch_length, _, magic, _, _, _, _, _, _, _, _, record_count = header
    if magic not in _MAGICS:
        raise CorruptRecordError(f"batch magic {magic}; {MAGIC_ROWS} (rows) and {MAGIC_COLUMNS} (columns) are known")
    if batch_length + LOG_OVERHEAD != size_bytes:
        raise CorruptRecordError(f"the batch says {batch_length + LOG_OVERHEAD} bytes, {size_bytes} came")
    if record_count > records_max:
        raise RecordListTooLargeError(f"a batch of {record_count} records; at most {records_max} are accepted")
    _check_counts(view, header, size_bytes)
    if not crc_matches(view, 0, header):
        raise CorruptRecordError("the batch's CRC does not match its bytes")
    return header


def _check_counts(view: ReadableBuffer, header: BatchHeader, size_bytes: int) -> None:
    """Refuse what no reader could read, so that a consumer never stands before a batch that the broker took."""
    count, attributes = header.record_count, header.attributes
    codec = attributes & COMPRESSION_MASK
    if attributes & COMPACTED or not header.has_sound_counts:
        raise CorruptRecordError(f"{count} records, but the last offset delta is {header.last_offset_delta}")
    if codec > COMPRESSION_MAX:
        raise CorruptRecordError(f"compression {codec}; 0 to {COMPRESSION_MAX} have a meaning")
    if header.magic == MAGIC_ROWS:
        records_bytes_min = HEADER_BYTES + ROW_BYTES_MIN * count
    else:
        if size_bytes % 8 or size_bytes < COLUMN_BODY:
            raise CorruptRecordError(f"a columnar batch of {size_bytes} bytes, which is not a multiple of 8")
        flags, zero = COLUMN_HEAD.unpack_from(view, HEADER_BYTES)
        if flags & ~FLAGS_KNOWN or zero:
            raise CorruptRecordError(f"column flags {flags:#x} are not known")
        records_bytes_min = COLUMN_BODY + 4 * count
    if not codec and records_bytes_min > size_bytes:
        raise CorruptRecordError(f"{count} records do not fit into {size_bytes} bytes")


def check_keys(view: ReadableBuffer, header: BatchHeader) -> None:
    """Raise InvalidRecordError when a record of a batch of columns has no key; rows are not looked into."""
    if header.magic != MAGIC_COLUMNS:
        return
    flags = COLUMN_HEAD.unpack_from(view, HEADER_BYTES)[0]
    if flags & (FLAG_KEYS | FLAG_NULL_KEYS) != FLAG_KEYS:
        raise InvalidRecordError("a record without a key, in a topic that is compacted by key")


def crc_matches(view: ReadableBuffer, position: int, header: BatchHeader) -> bool:
    """Whether the batch at `position` has the CRC that its header says. The whole batch must be in `view`."""
    covered = memoryview(view)[position + POSITION_ATTRIBUTES : position + LOG_OVERHEAD + header.batch_length]
    try:
        return crc32c(covered) == header.crc
    finally:
        covered.release()


def stamp(batch: bytearray | memoryview, base_offset: int, leader_epoch: int) -> None:
    """Write base offset and leader epoch into a batch of the caller's own, in place. The CRC does not cover them."""
    _I64.pack_into(batch, 0, base_offset)
    _I32.pack_into(batch, POSITION_EPOCH, leader_epoch)


def stamp_append_time(batch: bytearray | memoryview, wall_ms: int) -> None:
    """Make the broker's time the time of every record of the batch, and compute its CRC anew."""
    attributes = _I16.unpack_from(batch, POSITION_ATTRIBUTES)[0]
    _I16.pack_into(batch, POSITION_ATTRIBUTES, attributes | LOG_APPEND_TIME)
    _I64.pack_into(batch, POSITION_MAX_TIMESTAMP, wall_ms)
    write_crc(batch)


def write_crc(batch: bytearray | memoryview) -> None:
    """Compute the CRC of a finished batch and write it into its header."""
    covered = memoryview(batch)[POSITION_ATTRIBUTES:]
    crc = crc32c(covered)
    covered.release()
    _U32.pack_into(batch, POSITION_CRC, crc)


def stamp_producer(batch: bytearray, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
    """Write a producer's identity and sequence into a batch of the caller's own, in place, and its CRC anew."""
    _PRODUCER.pack_into(batch, POSITION_PRODUCER, producer_id, producer_epoch, base_sequence)
    write_crc(batch)


def batches_in(view: ReadableBuffer, position: int = 0) -> Iterator[tuple[int, BatchHeader]]:
    """The whole batches from `position` on, as (position, header), up to zeros or a part of a batch; CRCs unchecked."""
    end = len(view)
    while position + HEADER_BYTES <= end:
        header = _make_header(_unpack_header(view, position))
        if header.magic not in _MAGICS or header.batch_length < HEADER_BYTES - LOG_OVERHEAD:
            return
        following = position + header.batch_length + LOG_OVERHEAD
        if following > end:
            return
        yield position, header
        position = following
