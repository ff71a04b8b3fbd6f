"""Cut a stretch of log bytes into batches: what the mapped files and a fetch answer have in common.

Guarantees: a length is compared with the bytes at hand before it is used, offsets follow each other without a gap, and
nothing at or above `upper_offset` is given out. A stretch that cannot go on ends the run without an error: whether that
is the end of a segment or damage, only the caller can know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from zbroker.errors import CorruptRecordError
from zbroker.record.batch import read_header
from zbroker.record.layout import HEADER_BYTES, LOG_OVERHEAD, MAGIC_COLUMNS, MAGIC_ROWS, BatchHeader
from zbroker.record.view import RecordBatch

MakeBatch = Callable[[memoryview, BatchHeader], RecordBatch]

_LENGTH_MIN = HEADER_BYTES - LOG_OVERHEAD


class Decoding(NamedTuple):
    """How a consumer wants its records."""

    check_crcs: bool = True
    key_deserializer: Callable[[bytes], Any] | None = None
    value_deserializer: Callable[[bytes], Any] | None = None

    def maker(self, topic: str, partition: int) -> MakeBatch:
        """A function that makes a RecordBatch of this partition: `make(view, header)`."""
        check_crcs, of_keys, of_values = self

        def make(view: memoryview, header: BatchHeader) -> RecordBatch:
            return RecordBatch(topic, partition, view, header, check_crcs, of_keys, of_values)

        return make


class Run(NamedTuple):
    """Batches that follow each other; `position` and `offset` are where the next one begins."""

    batches: list[RecordBatch]
    position: int
    offset: int


def read_run(
    make: MakeBatch,
    view: memoryview,
    position: int,
    end: int,
    offset: int,
    upper_offset: int,
    max_bytes: int,
    *,
    base_offset: int | None = None,
) -> Run:
    """Batches from the one at `position`, which must contain `offset`, until about `max_bytes` are passed.

    `base_offset`: what this first batch must begin with, where that is known. No CRC covers it: what lies before a
    batch tells it.

    Raises CorruptRecordError when the CRC of the very first one does not match; a later one ends the run before it.
    """
    batches: list[RecordBatch] = []
    due = base_offset
    stop = min(end, position + max_bytes)
    while offset < upper_offset and position < stop and position + HEADER_BYTES <= end:
        header = read_header(view, position)
        found, length, magic = header[0], header[1], header[3]
        following = position + LOG_OVERHEAD + length
        next_offset = found + header[6] + 1
        if (
            (magic != MAGIC_COLUMNS and magic != MAGIC_ROWS)
            or length < _LENGTH_MIN
            or following > end
            or not found <= offset < next_offset <= upper_offset
            or (due is not None and found != due)
        ):
            break
        try:
            batches.append(make(view[position:following], header))
        except CorruptRecordError:
            if not batches:
                raise
            break
        position, offset = following, next_offset
        due = next_offset
    return Run(batches, position, offset)
