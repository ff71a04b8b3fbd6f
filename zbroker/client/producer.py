"""The producer: records into batches, batches to the partitions' leaders, acknowledgements back.

THREADS. Any thread may send. Full batches are encoded and sent by the thread that filled them; a background thread
closes batches whose `linger_ms` is over, asks for leaders, sends again what failed, and delivers acknowledgements when
nobody waits for one. A thread that waits (`result`, `flush`) receives by itself. The lock and who goes without it: see
`accumulator`.

LOSS AND ORDER. See `partition_queue`. A producer's process that dies loses what its worker has not taken from the lane.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self

from zbroker.client.accumulator import BATCH_OVERHEAD_BYTES, RECORDS_PER_BATCH_MAX, Accumulator
from zbroker.client.batches import BatchFuture, SendFuture
from zbroker.client.connection import Connection
from zbroker.client.delivery import Delivery
from zbroker.client.filling import deliver_to
from zbroker.client.process_end import EXIT_FLUSH_MS, note_closed, note_open
from zbroker.client.send_many import BatchRun, Columns
from zbroker.client.serialize import RECORD_OVERHEAD_BYTES, as_bytes, plain_size
from zbroker.client.settings import ProducerSettings, read_settings
from zbroker.client.terms import Terms, terms_of
from zbroker.errors import ClosedError, TimeoutError_
from zbroker.record.records import Headers, RecordMetadata, header_tuple
from zbroker.record.view import RecordBatch

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from zbroker.client.batch_builder import BatchBuilder

    K = TypeVar("K", default=Any)
    V = TypeVar("V", default=Any)
else:
    # What a producer takes is bytes unless it has serializers: type checkers know defaults (PEP 696), 3.11 does not.
    from typing import TypeVar

    K = TypeVar("K")
    V = TypeVar("V")

REPLY_BYTES: Final = 16 << 10
_LAST_INDEX: Final = RECORDS_PER_BATCH_MAX - 1


class Producer(Generic[K, V]):
    """Sends records. See the module; settings are those of `ProducerSettings`."""

    def __init__(self, config: Mapping[str, object] | None = None, /, **settings: object) -> None:
        """Connect. Raises ConfigError for a setting, BrokerNotAvailableError when no broker answers."""
        self.settings = read_settings(ProducerSettings, config, settings)
        self._connection = self._connect(self.settings.max_request_size + BATCH_OVERHEAD_BYTES)
        self._delivery = Delivery(self._connection, self.settings)
        self._accumulator = Accumulator(self._connection, self._delivery, self.settings)
        self._plain_topics = self._accumulator.plain_topics
        self._key_serializer = self.settings.key_serializer
        self._value_serializer = self.settings.value_serializer
        self._on_delivery = self.settings.on_delivery
        self._senders: weakref.WeakSet[Any] = weakref.WeakSet()
        note_open(self)

    def _connect(self, request_bytes: int) -> Connection:
        return Connection(self.settings, request_bytes=request_bytes, reply_bytes=REPLY_BYTES)

    def send(
        self,
        topic: str,
        value: V | None = None,
        key: K | None = None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
        on_delivery: Callable[..., None] | None = None,
        dedup_id: str | bytes | None = None,
        expected_offset: int | None = None,
    ) -> SendFuture:
        """Queue a record and give the future of its acknowledgement. Waits only for a topic's first metadata, or for
        room in the buffer, at most max_block_ms. Raises MessageSizeTooLargeError at once, BufferFullError.

        Name what follows the key. (It is not keyword-only: CPython 3.11 takes 55 ns a call to fill in such defaults.)

        `dedup_id`, `expected_offset`: see `send_many`; the record then goes in a batch of its own.
        """
        if (
            value.__class__ is bytes
            and not headers
            and partition is None
            and timestamp_ms is None
            and on_delivery is None
            and dedup_id is None
            and expected_offset is None
            and (sender := self._plain_topics.get(topic)) is not None
        ):
            if key is None:
                batch = sender.sticky.open
                if batch is None:
                    size = RECORD_OVERHEAD_BYTES + len(value)
                    return SendFuture(*self._accumulator.add(sender, None, value, None, (), None, size))
                if batch.is_plain:
                    if batch.owner != get_ident():
                        return self._accumulator.add_plain(sender, value, None)
                    values = batch.values
                    index = len(values)
                    room = batch.room - len(value)
                    if room > 0 and index < _LAST_INDEX:
                        batch.room = room - RECORD_OVERHEAD_BYTES
                        values.append(value)
                        if batch.is_open or self._accumulator.has_taken(batch, index):
                            return SendFuture(batch, index)
            elif key.__class__ is bytes:
                batch = sender.queues[sender.hash_of(key) % sender.count].open
                if batch is None:
                    size = RECORD_OVERHEAD_BYTES + len(value) + len(key)
                    return SendFuture(*self._accumulator.add(sender, None, value, key, (), None, size))
                if batch.is_keyed:
                    if batch.owner != get_ident():
                        return self._accumulator.add_plain(sender, value, key)
                    values = batch.values
                    index = len(values)
                    room = batch.room - len(value) - len(key)
                    if room > 0 and index < _LAST_INDEX:
                        batch.room = room - RECORD_OVERHEAD_BYTES
                        values.append(value)
                        batch.keys.append(key)
                        if batch.is_open or self._accumulator.has_taken(batch, index):
                            return SendFuture(batch, index)
        terms = terms_of(dedup_id, expected_offset)
        return self._send_special(topic, value, key, headers, partition, timestamp_ms, on_delivery, terms)

    def _send_special(
        self,
        topic: str,
        value: Any,
        key: Any,
        headers: Headers,
        partition: int | None,
        timestamp_ms: int | None,
        on_delivery: Any,
        terms: Terms | None,
    ) -> SendFuture:
        """What `send` does for a record that has more than a value and a key, or needs more done."""
        call = on_delivery or self._on_delivery
        sender = self._accumulator.topic(topic)
        if self._value_serializer is not None and value is not None:
            value = self._value_serializer(value)
        if self._key_serializer is not None and key is not None:
            key = self._key_serializer(key)
        value, key = as_bytes(value, "value"), as_bytes(key, "key")
        found = header_tuple(headers) if headers else ()
        named = None if partition is None else self._accumulator.queue_at(sender, partition)
        size = plain_size(value, key, found)
        if terms is not None:
            times = None if timestamp_ms is None else [timestamp_ms]
            columns = Columns([value], None if key is None else [key], [found], times)
            batch, index = BatchRun(self._accumulator, sender, columns, partition, terms).send_as_one(), 0
        else:
            batch, index = self._accumulator.add(sender, named, value, key, found, timestamp_ms, size)
        if call is not None:
            deliver_to(call, batch, index)
        return SendFuture(batch, index)

    def send_and_wait(
        self, topic: str, value: V | None = None, key: K | None = None, *, timeout_ms: int | None = None, **rest: Any
    ) -> RecordMetadata:
        """Send a record and wait for its acknowledgement. Raises the delivery's error or TimeoutError_."""
        return self.send(topic, value, key, **rest).result(None if timeout_ms is None else timeout_ms / 1000)

    def send_many(
        self,
        topic: str,
        values: Sequence[V],
        keys: Sequence[K] | None = None,
        *,
        headers: Sequence[Headers] | None = None,
        partition: int | None = None,
        timestamps_ms: Sequence[int] | None = None,
        atomic: bool = False,
        dedup_id: str | bytes | None = None,
        expected_offset: int | None = None,
    ) -> BatchFuture:
        """Send many records at once: the fast path. Without keys they go in runs to one partition after the other.

        The sequences have one entry for each value. Raises MessageSizeTooLargeError before anything of a batch is sent.

        With any of the following, all records go in one batch to one partition: all are stored, or none, and a reader
        sees all or none. InvalidRecordError when their keys belong to more than one partition,
        RecordListTooLargeError or MessageSizeTooLargeError when they are too many for one batch: nothing is sent then.

        atomic: no more than that.
        dedup_id: the application's own name for this batch. If the partition got a batch of that name within the
            topic's `dedup.window.ms`, nothing is stored, and the future gives the first one's offsets. Without keys
            and partition, the partition follows from the name. Nothing else of the partition is on its way meanwhile.
        expected_offset: store the batch only if its first record gets this offset; else the future raises
            WrongExpectedOffsetError, and nothing is stored. Needs `partition`, unless the topic has one.
        """
        sender = self._accumulator.topic(topic)
        columns = Columns.serialized(values, keys, headers, timestamps_ms, self._value_serializer, self._key_serializer)
        if partition is not None:
            self._accumulator.queue_at(sender, partition)
        terms = terms_of(dedup_id, expected_offset)
        run = BatchRun(self._accumulator, sender, columns, partition, terms)
        if (atomic or terms is not None) and values:
            return BatchFuture([run.send_as_one()])
        return BatchFuture(run.send())

    def sender(
        self, topic: str, *, partition: int | None = None, on_error: Callable[[Exception], None] | None = None
    ) -> Callable[..., None]:
        """A bound call for a hot loop of one thread: `emit(value, key=None)`, no future. Errors go to `on_error`, and
        the first of them is raised by the next `flush`. Records with a key and those without each keep their order;
        with records of `send` of the same producer there is an order only across a `flush`."""
        from zbroker.client.sender import Emitter

        if partition is not None:
            self._accumulator.queue_at(self._accumulator.topic(topic), partition)
        emitter = Emitter(self, topic, partition, on_error)
        self._senders.add(emitter)
        self._delivery.emitters.add(emitter)
        self._delivery.background.wake()
        return emitter.emit

    def create_batch(self, topic: str, *, partition: int) -> BatchBuilder:
        """A batch to fill by hand: `append(value, key=None, ...) -> bool`, then `send_batch`."""
        from zbroker.client.batch_builder import BatchBuilder

        return BatchBuilder(topic, partition, self._accumulator.batch_limit, self.settings)

    def send_batch(
        self,
        batch: BatchBuilder | RecordBatch,
        *,
        dedup_id: str | bytes | None = None,
        expected_offset: int | None = None,
    ) -> BatchFuture:
        """Send a `BatchBuilder`'s batch, or one that was read, which then changes in nothing but its offsets and its
        producer, to the topic and partition that it names. All of it is stored or nothing. Raises
        MessageSizeTooLargeError at once. `dedup_id`, `expected_offset`: see `send_many`."""
        sender = self._accumulator.topic(batch.topic)
        encoded = bytearray(batch.raw()) if isinstance(batch, RecordBatch) else batch.encode()
        if len(encoded) > self._accumulator.request_bytes_max:
            raise self._accumulator.too_large(len(encoded), "batch")
        terms = terms_of(dedup_id, expected_offset)
        queue = self._accumulator.queue_at(sender, batch.partition)
        return BatchFuture([self._accumulator.enqueue(queue, encoded, terms=terms)])

    def flush(self, *, timeout_ms: int | None = None, local: bool = False) -> int:
        """Send everything and wait until all is answered. Returns how many records are still unanswered after
        `timeout_ms`: 0 means all are done. Raises the first error of a `sender`.

        `local`: wait only until all is in shared memory (a lane), and return how many records are not. From there the
        worker takes it also if this process is killed at once. It may still be refused; and what goes by messages
        (transport='zmq', tcp) has no such place: for it only a full flush says anything.
        """
        self._accumulator.check_open()
        for emitter in list(self._senders):
            emitter.hand_over()
        left = self._delivery.flush(timeout_ms, is_local=local)
        for emitter in list(self._senders):
            emitter.raise_first_error()
        return left

    def partitions_for(self, topic: str) -> list[int]:
        """The numbers of a topic's partitions; the topic is created if it may be."""
        sender = self._accumulator.topic(topic)
        return list(range(len(sender.queues)))

    def metrics(self) -> dict[str, float]:
        """Counts since the start: records and batches acknowledged and failed, bytes in the buffer."""
        return self._delivery.metrics()

    def close(self, *, timeout_ms: int | None = None) -> None:
        """Send what is queued, wait for its answers at most `timeout_ms` (None: delivery_timeout_ms), and disconnect.

        What is not answered then fails with TimeoutError_. Closing twice is closing once.
        """
        if self._accumulator.is_closed:
            return
        try:
            self._connection.check_usable()
        except (ClosedError, RuntimeError):
            self._accumulator.is_closed = True
            return
        try:
            for emitter in list(self._senders):
                emitter.hand_over()
            self._delivery.flush(timeout_ms)
        finally:
            with self._accumulator.lock:
                self._accumulator.is_closed = True
            note_closed(self)
            self._delivery.close(TimeoutError_("the producer was closed before this was acknowledged"))
            self._connection.close()
        for emitter in list(self._senders):
            emitter.raise_first_error()

    def unanswered_records(self) -> int:
        """How many records are queued or on their way."""
        return self._delivery.unanswered_records()

    @property
    def failed_at_close(self) -> int:
        """How many records `close` gave up."""
        return self._delivery.failed_at_close

    def disarm_in_child(self) -> None:
        """In a forked child: the next use looks at the connection first, which raises ForkError."""
        self._accumulator.disarm()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error, Ctrl-C above all, a full flush could take the whole delivery time-out.
        self.close(timeout_ms=None if kind is None else EXIT_FLUSH_MS)

    def __reduce__(self) -> Any:
        raise TypeError("a Producer cannot be pickled: create one per process (celery: worker_process_init)")
