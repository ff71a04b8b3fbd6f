"""A batch as a user sees it: a lazy sequence of records over the log's own bytes.

Guarantees: nothing is copied until records, keys or bytes are asked for; the header is decoded once. The views stay
valid until `release()`, also when the file is deleted meanwhile: a mapping outlives the name.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, repeat
from typing import Any, Final, overload

from zbroker.errors import CorruptRecordError
from zbroker.ids import TopicPartition
from zbroker.record.batch import read_header
from zbroker.record.blobs import check_ascending, cut
from zbroker.record.columns import Columns, plain_values
from zbroker.record.compression import CODEC_NAMES
from zbroker.record.crc import crc32c
from zbroker.record.layout import (
    COMPACTED,
    LOG_APPEND_TIME,
    LOG_OVERHEAD,
    MAGIC_COLUMNS,
    MAGIC_ROWS,
    POSITION_ATTRIBUTES,
    BatchHeader,
)
from zbroker.record.one_value import only_value
from zbroker.record.records import APPEND_TIME, CREATE_TIME, ConsumerRecord, Header
from zbroker.record.rows import Row, decode_rows

Deserializer = Callable[[bytes], Any]

_MAGICS: Final = (MAGIC_COLUMNS, MAGIC_ROWS)


class ValuesView(Sequence[memoryview]):
    """The values of a batch: `data` is one blob, `ends` the end of each value in it, both without a copy.

    numpy and Arrow take both as they are. Asking for a value checks once that the ends ascend; who reads `data` and
    `ends` alone and does not trust the producer calls `check()`.
    """

    __slots__ = ("_is_checked", "data", "ends")

    def __init__(self, data: memoryview, ends: memoryview) -> None:
        self.data = data
        self.ends = ends
        self._is_checked = False

    def check(self) -> None:
        """Return when every value lies within `data`, in order. Raises CorruptRecordError otherwise."""
        if not self._is_checked:
            stops = check_ascending(self.ends)
            if stops and stops[-1] > len(self.data):
                raise CorruptRecordError(f"values end at {stops[-1]}, beyond their blob of {len(self.data)} bytes")
            self._is_checked = True

    def tolist(self) -> list[bytes]:
        """Every value as bytes of its own; a null value is b''."""
        return cut(self.data, self.ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> memoryview: ...
    @overload
    def __getitem__(self, index: slice) -> list[memoryview]: ...
    def __getitem__(self, index: int | slice) -> memoryview | list[memoryview]:
        """One value, or a list of them. A null value is an empty view; `RecordBatch` tells them apart."""
        self.check()
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(index)
        start = self.ends[number - 1] if number else 0
        return self.data[start : self.ends[number]]

    def __iter__(self) -> Iterator[memoryview]:
        self.check()
        data = self.data
        start = 0
        for end in self.ends:
            yield data[start:end]
            start = end


class RecordBatch(Sequence[ConsumerRecord[Any, Any]]):
    """One batch of a partition, exactly as it lies in the log."""

    __slots__ = (
        "__weakref__", "_batch", "_columns", "_key_deserializer", "_records", "_rows", "_value_deserializer", "header",
        "partition", "topic",
    )  # fmt: skip

    def __init__(
        self,
        topic: str,
        partition: int,
        batch: memoryview,
        header: BatchHeader | None = None,
        check_crc: bool = True,
        key_deserializer: Deserializer | None = None,
        value_deserializer: Deserializer | None = None,
    ) -> None:
        """`batch` is exactly one batch, a view of bytes.

        Raises CorruptRecordError when it is not, or when `check_crc` is set and the CRC does not match.
        """
        if header is None:
            header = read_header(batch)
        self.topic = topic
        self.partition = partition
        self.header = header
        self._batch = batch
        self._key_deserializer = key_deserializer
        self._value_deserializer = value_deserializer
        self._columns: Columns | None = None
        self._rows: list[Row] | None = None
        self._records: list[ConsumerRecord[Any, Any]] | None = None
        # What compaction left has more offsets than records; only then the slower look at the counts is needed.
        if (
            header.magic not in _MAGICS
            or header.batch_length + LOG_OVERHEAD != len(batch)
            or (
                (header.last_offset_delta != header.record_count - 1 or header.attributes & COMPACTED)
                and not header.has_sound_counts
            )
        ):
            raise CorruptRecordError(f"{self.tp}: no batch at offset {header.base_offset}: {header}")
        if check_crc and crc32c(batch[POSITION_ATTRIBUTES:]) != header.crc:
            raise CorruptRecordError(f"{self.tp}: the batch at offset {header.base_offset} fails its CRC")

    @property
    def tp(self) -> TopicPartition:
        """Topic and partition in one."""
        return TopicPartition(self.topic, self.partition)

    @property
    def base_offset(self) -> int:
        """Offset of the first record."""
        return self.header.base_offset

    @property
    def last_offset(self) -> int:
        """Offset of the last record."""
        return self.header.last_offset

    @property
    def max_timestamp(self) -> int:
        """The largest time of a record, in milliseconds."""
        return self.header.max_timestamp

    @property
    def leader_epoch(self) -> int:
        """Epoch of the leader that appended it."""
        return self.header.leader_epoch

    @property
    def record_count(self) -> int:
        """How many records it holds."""
        return self.header.record_count

    @property
    def compression(self) -> str:
        """none, gzip, snappy, lz4 or zstd."""
        return CODEC_NAMES.get(self.header.compression, str(self.header.compression))

    @property
    def size_in_bytes(self) -> int:
        """Bytes in the log, header included."""
        return self.header.size_bytes

    def raw(self) -> memoryview:
        """The bytes as they lie in the log."""
        return self._batch

    def values(self) -> ValuesView:
        """The values. Without a copy when the batch is columnar and not compressed."""
        header = self.header
        if not header.record_count:
            return ValuesView(memoryview(b""), memoryview(array("I")))
        if header.magic == MAGIC_COLUMNS:
            plain = plain_values(self._batch, header)
            if plain is not None:
                return ValuesView(*plain)
            columns = self._read_columns()
            return ValuesView(columns.data, columns.value_ends)
        blobs = [row[2] or b"" for row in self._read_rows()]
        ends = array("I", accumulate(map(len, blobs)))
        return ValuesView(memoryview(b"".join(blobs)), memoryview(ends))

    def keys(self) -> list[bytes | None]:
        """The keys, None where a record has none."""
        if not self.header.record_count:
            return []
        if self.header.magic == MAGIC_COLUMNS:
            return self._read_columns().keys()
        return [row[1] for row in self._read_rows()]

    def offsets(self) -> Sequence[int]:
        """The offset of every record: they follow on each other unless the batch is compacted."""
        header = self.header
        if header.is_compacted and header.record_count:
            return self._read_columns().offsets()
        return range(header.base_offset, header.base_offset + header.record_count)

    def records(self) -> list[ConsumerRecord[Any, Any]]:
        """Every record, deserialized; made once."""
        if self._records is None:
            self._records = self._make_records()
        return self._records

    def records_from(self, offset: int) -> list[ConsumerRecord[Any, Any]]:
        """The records at and after an offset."""
        records = self.records()
        skip = bisect_left(self.offsets(), offset)
        return records[skip:] if skip > 0 else records

    def release(self) -> None:
        """Give the bytes back. Records stay; a view taken from `values()` keeps the memory mapped while it lives."""
        self._columns = None
        self._rows = None
        self._batch.release()

    def __len__(self) -> int:
        return self.header.record_count

    def __iter__(self) -> Iterator[ConsumerRecord[Any, Any]]:
        return iter(self.records())

    @overload
    def __getitem__(self, index: int) -> ConsumerRecord[Any, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[ConsumerRecord[Any, Any]]: ...
    def __getitem__(self, index: int | slice) -> ConsumerRecord[Any, Any] | list[ConsumerRecord[Any, Any]]:
        return self.records()[index]

    def __repr__(self) -> str:
        return f"RecordBatch({self.tp}, offsets {self.base_offset}..{self.last_offset}, {self.size_in_bytes} bytes)"

    def _read_columns(self) -> Columns:
        if self._columns is None:
            self._columns = Columns(self._batch, self.header)
        return self._columns

    def _read_rows(self) -> list[Row]:
        if self._rows is None:
            self._rows = decode_rows(self._batch, self.header)
        return self._rows

    def _make_records(self) -> list[ConsumerRecord[Any, Any]]:
        header = self.header
        if not header.record_count:
            return []
        if header.record_count == 1 and (value := only_value(self._batch, header)) is not None:
            if self._value_deserializer is not None:
                value = self._value_deserializer(value)
            kind = APPEND_TIME if header.attributes & LOG_APPEND_TIME else CREATE_TIME
            time_ms = header.max_timestamp if kind == APPEND_TIME else header.base_timestamp
            offset, epoch = header.base_offset, header.leader_epoch
            return [ConsumerRecord(self.topic, self.partition, offset, time_ms, kind, None, value, (), epoch)]
        keys: Iterable[Any]
        values: Sequence[Any]
        headers: Sequence[tuple[Header, ...]] | None
        if header.magic == MAGIC_COLUMNS:
            columns = self._read_columns()
            keys = repeat(None) if columns.key_ends is None else columns.keys()
            values, timestamps, headers = columns.values(), columns.timestamps(), columns.headers()
        else:
            rows = self._read_rows()
            timestamps, keys, values, headers = map(list, zip(*rows, strict=True))
        if self._key_deserializer is not None and isinstance(keys, list):
            keys = [key if key is None else self._key_deserializer(key) for key in keys]
        if self._value_deserializer is not None:
            values = [value if value is None else self._value_deserializer(value) for value in values]
        made = map(
            ConsumerRecord,
            repeat(self.topic),
            repeat(self.partition),
            self.offsets(),
            timestamps,
            repeat(APPEND_TIME if header.has_append_time else CREATE_TIME),
            keys,
            values,
            headers if headers is not None else repeat(()),
            repeat(header.leader_epoch),
        )
        return list(made)
