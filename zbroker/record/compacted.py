"""What compaction makes of a batch: the same one with fewer records, or a hole where it was.

Guarantees: a batch that lost records keeps its base offset, last offset, leader epoch, producer and codec, and each
record its offset, time, key, value and headers. A hole holds the place of offsets and nothing else; so the offsets of
the batches of a log follow on each other, compacted or not, and whoever walks over them can tell damage from a gap.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cached_property
from typing import Final

from zbroker.record.batch import stamp, stamp_append_time, write_crc
from zbroker.record.columns import Columns, encode_columns
from zbroker.record.compression import CODEC_NAMES
from zbroker.record.layout import (
    COLUMN_BODY,
    COMPACTED,
    HEADER,
    HEADER_BYTES,
    LOG_OVERHEAD,
    MAGIC_COLUMNS,
    NO_EPOCH,
    NO_PRODUCER,
    POSITION_LAST_DELTA,
    BatchHeader,
)
from zbroker.record.records import Header
from zbroker.record.rows import decode_rows

HOLE_BYTES: Final = COLUMN_BODY
HOLE_OFFSETS_MAX: Final = (1 << 31) - 1
_NO_TIME: Final = -1
_PAD: Final = bytes(COLUMN_BODY - HEADER_BYTES)
_I32 = struct.Struct(">i")


class Records:
    """The columns of a batch, whether it has columns or rows; only what is asked for is decoded."""

    def __init__(self, batch: memoryview, header: BatchHeader) -> None:
        """`batch` is exactly one batch with records, its CRC checked by the caller. Raises CorruptRecordError,
        UnsupportedCompressionTypeError."""
        self._columns = Columns(batch, header) if header.magic == MAGIC_COLUMNS else None
        self._rows = decode_rows(batch, header) if self._columns is None else []
        self.offsets: Sequence[int] = range(header.base_offset, header.base_offset + header.record_count)
        if self._columns is not None:
            self.offsets = self._columns.offsets()

    @cached_property
    def keys(self) -> list[bytes | None]:
        """Every record's key."""
        return [row[1] for row in self._rows] if self._columns is None else self._columns.keys()

    @cached_property
    def values(self) -> list[bytes | None]:
        """Every record's value."""
        return [row[2] for row in self._rows] if self._columns is None else self._columns.values()

    @cached_property
    def timestamps(self) -> list[int]:
        """Every record's time."""
        return [row[0] for row in self._rows] if self._columns is None else self._columns.timestamps()

    @cached_property
    def headers(self) -> list[tuple[Header, ...]] | None:
        """Every record's headers; None when no record has any."""
        return [row[3] for row in self._rows] if self._columns is None else self._columns.headers()

    def tombstones(self) -> list[int]:
        """The indexes of the records without a value."""
        if self._columns is not None and not self._columns.has_null_values:
            return []
        return [index for index, value in enumerate(self.values) if value is None]


def thinned(header: BatchHeader, records: Records, kept: Sequence[int]) -> bytearray:
    """The batch with only the records of these indexes, at least one; the bytes as they belong into the log."""
    base = header.base_offset
    batch = encode_columns(
        [records.values[index] for index in kept],
        [records.keys[index] for index in kept],
        timestamp_ms=0,
        timestamps_ms=[records.timestamps[index] for index in kept],
        headers=None if records.headers is None else [records.headers[index] for index in kept],
        compression=CODEC_NAMES[header.compression],
        deltas=[records.offsets[index] - base for index in kept],
        producer_id=header.producer_id,
        producer_epoch=header.producer_epoch,
        base_sequence=header.base_sequence,
    )
    stamp(batch, base, header.leader_epoch)
    _I32.pack_into(batch, POSITION_LAST_DELTA, header.last_offset_delta)
    if header.has_append_time:
        stamp_append_time(batch, header.max_timestamp)
    else:
        write_crc(batch)
    return batch


def hole(base_offset: int, next_offset: int, leader_epoch: int) -> bytearray:
    """A batch without records in place of these offsets."""
    return _empty(base_offset, next_offset - base_offset - 1, leader_epoch, NO_PRODUCER, NO_EPOCH, -1)


def emptied(header: BatchHeader) -> bytearray:
    """The batch without its records: what it says of its producer is all that is left."""
    who = (header.producer_id, header.producer_epoch, header.base_sequence)
    return _empty(header.base_offset, header.last_offset_delta, header.leader_epoch, *who)


def _empty(base: int, last_delta: int, epoch: int, producer_id: int, producer_epoch: int, sequence: int) -> bytearray:
    assert 0 <= last_delta < HOLE_OFFSETS_MAX
    batch = bytearray(HEADER.pack(
        base, HOLE_BYTES - LOG_OVERHEAD, epoch, MAGIC_COLUMNS, 0, COMPACTED, last_delta,
        _NO_TIME, _NO_TIME, producer_id, producer_epoch, sequence, 0,
    ) + _PAD)  # fmt: skip
    write_crc(batch)
    return batch


def is_hole(header: BatchHeader) -> bool:
    """Whether a batch holds the place of offsets and nothing else."""
    return header.record_count == 0 and header.producer_id == NO_PRODUCER
