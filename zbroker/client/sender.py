"""`producer.sender(topic)`: a bound call for a hot loop, 0.2 to 0.3 us a record.

WHY IT NEEDS NO LOCK. One thread appends to plain lists; `list.append` is one step under the interpreter's lock. When
the lists are handed over (full, or by `flush`, `close` and a lingering producer's thread), the first n entries are
copied and then deleted, each in one step: entries appended in between are behind them and stay.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zbroker.client.accumulator import RECORDS_PER_BATCH_MAX
from zbroker.clock import NS_PER_MS
from zbroker.errors import BrokerError, InvalidRecordError
from zbroker.record.columns import encode_columns

if TYPE_CHECKING:
    from zbroker.client.batches import Batch
    from zbroker.client.producer import Producer

OVERHEAD_BYTES = 16
EMITTED_BYTES = 128 << 10  # at 100 bytes a record 1,200 of them: what is emitted does not lie here for long


class Emitter:
    """Holds the open lists of one `sender`."""

    def __init__(
        self,
        producer: Producer[Any, Any],
        topic: str,
        partition: int | None,
        on_error: Callable[[Exception], None] | None,
    ) -> None:
        self._producer = producer
        self._topic = topic
        self._partition = partition
        self._on_error = on_error
        self._accumulator = producer._accumulator
        self._sender = self._accumulator.topic(topic)
        self._lists: dict[int, tuple[list[Any], list[Any]]] = {}
        self._keyless: list[Any] = []
        self._first_error: Exception | None = None
        self._turn_lock = threading.Lock()
        self._limit = max(1, min(max(self._accumulator.batch_max, EMITTED_BYTES), self._sender.content_bytes_max))
        self.emit = self._make_emit()

    def _make_emit(self) -> Callable[..., None]:
        values = self._keyless
        limit, hand_over_keyless, keyed = self._limit, self._hand_over_keyless, self._emit_keyed
        value_serializer, key_serializer = self._producer._value_serializer, self._producer._key_serializer
        if value_serializer is not None or key_serializer is not None or self._sender.keyless is not None:
            return self._emit_slowly
        # A batch of the largest number of records is never passed: so much is charged for each.
        overhead = max(OVERHEAD_BYTES, -(-limit // RECORDS_PER_BATCH_MAX))
        room = limit

        def emit(value: Any, key: Any = None) -> None:
            nonlocal room
            if key is not None:
                keyed(value, key)
                return
            try:
                room -= len(value) + overhead
            except TypeError:
                if value is not None:
                    raise
                room -= overhead
            values.append(value)  # faster than a bound `append`: the interpreter knows this call
            if room <= 0:
                hand_over_keyless()
                room = limit

        return emit

    def _emit_slowly(self, value: Any, key: Any = None) -> None:
        future = self._producer.send(self._topic, value, key, partition=self._partition)
        future._batch.on_done(self._note)

    def _emit_keyed(self, value: Any, key: Any) -> None:
        sender = self._sender
        number = self._partition
        if number is None:
            number = sender.hash_of(key) % sender.count
        lists = self._lists.get(number)
        if lists is None:
            lists = self._lists[number] = ([], [])
        values, keys = lists
        values.append(value)
        keys.append(key)
        if len(values) & 63 == 0 and self._is_full(values, keys):
            self._hand_over_keyed(number)

    def _is_full(self, values: list[Any], keys: list[Any]) -> bool:
        # Looked at only every 64 records: the mean of a sample is enough to close a batch near its size.
        count = len(values)
        sample = sum([len(value) for value in values[-16:] if value is not None]) + sum(map(len, keys[-16:]))
        return count >= RECORDS_PER_BATCH_MAX - 64 or count * (sample // 16 + OVERHEAD_BYTES) >= self._limit

    def _hand_over_keyless(self) -> None:
        with self._turn_lock:
            values = self._keyless
            count = len(values)
            if not count:
                return
            part = values[:count]
            del values[:count]
            sender = self._sender
            queue = sender.queues[self._partition] if self._partition is not None else sender.sticky
            self._send(queue, part, None)
            if self._partition is None:
                sender.next_sticky()

    def _hand_over_keyed(self, number: int) -> None:
        with self._turn_lock:
            values, keys = self._lists[number]
            count = min(len(values), len(keys))
            if not count:
                return
            part, part_keys = values[:count], keys[:count]
            del values[:count]
            del keys[:count]
            self._send(self._sender.queues[number], part, part_keys)

    def hand_over(self) -> None:
        """Pass everything that was emitted on to the producer's queues."""
        self._hand_over_keyless()
        for number in list(self._lists):
            self._hand_over_keyed(number)

    def _send(self, queue: Any, values: list[Any], keys: list[Any] | None) -> None:
        try:
            encoded = encode_columns(
                values,
                keys,
                timestamp_ms=time.time_ns() // NS_PER_MS,
                compression=self._accumulator.settings.compression_type,
                compression_level=self._accumulator.settings.compression_level,
                **queue.next_stamp()._asdict(),
            )
        except (BrokerError, TypeError, ValueError) as error:
            # The lists are gone, and the thread that is here need not be the one that emitted.
            self._fail(error if isinstance(error, BrokerError) else InvalidRecordError(f"not encodable: {error}"))
            return
        if len(encoded) > self._accumulator.request_bytes_max and len(values) == 1:
            self._fail(self._accumulator.too_large(len(encoded)))
            return
        if len(encoded) > self._sender.batch_bytes_max and len(values) > 1:
            half = len(values) // 2
            self._send(queue, values[:half], None if keys is None else keys[:half])
            self._send(queue, values[half:], None if keys is None else keys[half:])
            return
        self._accumulator.enqueue(queue, encoded).on_done(self._note)

    def _note(self, batch: Batch) -> None:
        if batch.error is not None:
            self._fail(batch.error)

    def _fail(self, error: Exception) -> None:
        if self._first_error is None:
            self._first_error = error
        if self._on_error is not None:
            self._on_error(error)

    def raise_first_error(self) -> None:
        """Raise the first error since the last call, if there was one."""
        error, self._first_error = self._first_error, None
        if error is not None:
            raise error
