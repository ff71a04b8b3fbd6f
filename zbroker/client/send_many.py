"""The fast path: many records at once, cut into runs that become batches without a look at single records.

A run is cut by the size of what came before, not by measuring each value: a batch that comes out above the limit is
cut in half and encoded again, which values of even size never meet.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from zbroker.client.batches import Batch
from zbroker.client.partition_queue import PartitionQueue
from zbroker.client.topic_sender import TopicSender
from zbroker.clock import NS_PER_MS
from zbroker.record.columns import encode_columns

if TYPE_CHECKING:
    from zbroker.client.producer import Producer

MANY_BYTES: Final = 128 << 10  # what stays in a core's cache from the encoder to the ring
RECORDS_MAX: Final = 10_000


class Columns(NamedTuple):
    """Serialized records, one entry of each column a record; None where no record has such a thing."""

    values: Sequence[bytes | None]
    keys: Sequence[bytes | None] | None
    headers: Sequence[tuple[Any, ...]] | None
    timestamps_ms: Sequence[int] | None

    def part(self, first: int, last: int) -> Columns:
        """Records first to last."""
        return Columns(*(None if column is None else column[first:last] for column in self))  # type: ignore[arg-type]

    def pick(self, indexes: list[int]) -> Columns:
        """The records of these indexes."""
        return Columns(*(None if column is None else [column[i] for i in indexes] for column in self))  # type: ignore[arg-type]


class BatchRun:
    """One `send_many`."""

    def __init__(
        self, producer: Producer[Any, Any], sender: TopicSender, columns: Columns, partition: int | None
    ) -> None:
        self._producer = producer
        self._sender = sender
        self._columns = columns
        self._partition = partition
        self._batches: list[Batch] = []

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
        producer, sender, settings = self._producer, self._sender, self._producer.settings
        first, count = 0, len(columns.values)
        sample = columns.values[0] if count else None
        run = max(1, min(RECORDS_MAX, MANY_BYTES // ((len(sample) if sample else 0) + 8)))
        while first < count:
            last = min(count, first + run)
            part = columns.part(first, last)
            encoded = encode_columns(
                part.values,
                part.keys,
                timestamp_ms=time.time_ns() // NS_PER_MS,
                headers=part.headers,
                timestamps_ms=part.timestamps_ms,
                compression=settings.compression_type,
                compression_level=settings.compression_level,
            )
            if len(encoded) > producer.request_bytes_max:
                if last - first == 1:
                    raise producer.too_large(len(encoded))
                run = (last - first) // 2
                continue
            self._batches.append(producer.enqueue(queue or sender.sticky, encoded, part.values))
            if queue is None:
                sender.next_sticky()
            run = max(1, min(RECORDS_MAX, (last - first) * MANY_BYTES // len(encoded)))
            first = last
