"""The fast path: many records at once, cut into runs that become batches without a look at single records.

A run is cut by the size of what came before, not by measuring each value: a batch that comes out above the limit is
cut in half and encoded again, which values of even size never meet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from zbroker.client.accumulator import RECORDS_PER_BATCH_MAX, Accumulator
from zbroker.client.batches import Batch
from zbroker.client.partition_queue import PartitionQueue
from zbroker.client.terms import Terms
from zbroker.client.topic_sender import TopicSender
from zbroker.clock import NS_PER_MS
from zbroker.errors import InvalidRecordError, RecordListTooLargeError
from zbroker.record.columns import encode_columns
from zbroker.record.records import Headers, header_tuple

MANY_BYTES: Final = 512 << 10  # what a batch costs besides its bytes is small by then, and it stays in a core's cache


class Columns(NamedTuple):
    """Serialized records, one entry of each column a record; None where no record has such a thing."""

    values: Sequence[bytes | None]
    keys: Sequence[bytes | None] | None
    headers: Sequence[tuple[Any, ...]] | None
    timestamps_ms: Sequence[int] | None

    @classmethod
    def serialized(
        cls,
        values: Sequence[Any],
        keys: Sequence[Any] | None,
        headers: Sequence[Headers] | None,
        timestamps_ms: Sequence[int] | None,
        value_serializer: Callable[[Any], bytes] | None,
        key_serializer: Callable[[Any], bytes] | None,
    ) -> Columns:
        """What a user gave, as it is encoded. Raises InvalidRecordError when a column is of another length."""
        for name, column in (("keys", keys), ("headers", headers), ("timestamps_ms", timestamps_ms)):
            if column is not None and len(column) != len(values):
                raise InvalidRecordError(f"send_many: {len(values)} values, but {len(column)} {name}")
        if value_serializer is not None:
            values = [None if value is None else value_serializer(value) for value in values]
        if keys is not None and key_serializer is not None:
            keys = [None if key is None else key_serializer(key) for key in keys]
        return cls(values, keys, None if headers is None else [header_tuple(found) for found in headers], timestamps_ms)

    def part(self, first: int, last: int) -> Columns:
        """Records first to last."""
        return Columns(*(None if column is None else column[first:last] for column in self))  # type: ignore[arg-type]

    def pick(self, indexes: list[int]) -> Columns:
        """The records of these indexes."""
        return Columns(*(None if column is None else [column[i] for i in indexes] for column in self))  # type: ignore[arg-type]


class BatchRun:
    """One `send_many`."""

    def __init__(
        self,
        accumulator: Accumulator,
        sender: TopicSender,
        columns: Columns,
        partition: int | None,
        terms: Terms | None = None,
    ) -> None:
        self._accumulator = accumulator
        self._sender = sender
        self._columns = columns
        self._partition = partition
        self._terms = terms or Terms(None, 0)
        self._batches: list[Batch] = []

    def send_as_one(self) -> Batch:
        """Encode and queue everything as one batch: at least one record. See `Producer.send_many`."""
        columns, count = self._columns, len(self._columns.values)
        if count > RECORDS_PER_BATCH_MAX:
            raise RecordListTooLargeError(f"{count} records do not go into one batch; {RECORDS_PER_BATCH_MAX} do")
        queue = self._queue_of_all()
        encoded = self._encode(columns, queue)
        if len(encoded) > self._accumulator.request_bytes_max:
            raise self._accumulator.too_large(len(encoded), "batch")
        keys = columns.keys or ()
        return self._accumulator.enqueue(queue, encoded, terms=self._terms, values=columns.values, keys=keys)

    def _queue_of_all(self) -> PartitionQueue:
        sender, keys = self._sender, self._columns.keys
        if self._partition is not None:
            return sender.at(self._partition)
        if self._terms.options is not None and sender.count > 1:
            raise InvalidRecordError("expected_offset: name the partition that it is of")
        if self._terms.name_id and (keys is None or all(key is None for key in keys)):
            # Wherever it is sent from and whenever: to where the first one went.
            return sender.queues[self._terms.name_id % sender.count]
        queues = {sender.queue_for(key) for key in (keys or [None])}
        if len(queues) > 1:
            raise InvalidRecordError("the keys of an atomic batch belong to different partitions: name one")
        return queues.pop()

    def _encode(self, columns: Columns, queue: PartitionQueue) -> bytearray:
        settings = self._accumulator.settings
        return encode_columns(
            columns.values,
            columns.keys,
            timestamp_ms=time.time_ns() // NS_PER_MS,
            headers=columns.headers,
            timestamps_ms=columns.timestamps_ms,
            compression=settings.compression_type,
            compression_level=settings.compression_level,
            **queue.next_stamp()._asdict(),
        )

    def send(self) -> list[Batch]:
        """Encode and queue everything. Raises MessageSizeTooLargeError when it meets a record above the limit."""
        columns, sender = self._columns, self._sender
        if self._partition is not None:
            self._send_to(sender.queues[self._partition], columns)
        elif columns.keys is None and sender.keyless is None:
            self._send_to(None, columns)
        else:
            groups: dict[PartitionQueue, list[int]] = {}
            keys = columns.keys if columns.keys is not None else [None] * len(columns.values)
            for index, key in enumerate(keys):
                groups.setdefault(sender.queue_for(key), []).append(index)
            for queue, indexes in groups.items():
                self._send_to(queue, columns.pick(indexes))
        return self._batches

    def _send_to(self, queue: PartitionQueue | None, columns: Columns) -> None:
        accumulator, sender = self._accumulator, self._sender
        first, count = 0, len(columns.values)
        sample = columns.values[0] if count else None
        limit_bytes = sender.batch_bytes_max
        most_bytes = min(MANY_BYTES, sender.content_bytes_max, accumulator.settings.buffer_memory // 8)
        run = _even_run(count, most_bytes // ((len(sample) if sample else 0) + 8))
        while first < count:
            last = min(count, first + run)
            part = columns if last - first == count else columns.part(first, last)
            target = queue or sender.sticky
            accumulator.keep_pace(target)
            encoded = self._encode(part, target)
            if len(encoded) > limit_bytes and last - first > 1:
                run = (last - first) // 2
                continue
            if len(encoded) > accumulator.request_bytes_max:
                raise accumulator.too_large(len(encoded))
            self._batches.append(accumulator.enqueue(target, encoded))
            if queue is None:
                sender.next_sticky()
            run = _even_run(count - last, (last - first) * most_bytes // len(encoded))
            first = last


def _even_run(count: int, run: int) -> int:
    """How many of `count` records to take, at most `run`, so that the last batch is no smaller than the others."""
    run = max(1, min(RECORDS_PER_BATCH_MAX, run))
    return -(-count // -(-count // run)) if count else run
