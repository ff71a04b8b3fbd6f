"""The producer: records into batches, batches to the partitions' leaders, acknowledgements back.

THREADS. Any thread may send. Full batches are encoded and sent by the thread that filled them; a background thread
closes batches whose `linger_ms` is over, asks for leaders, sends again what failed, and delivers acknowledgements when
nobody waits for one. A thread that waits (`result`, `flush`) receives by itself. The one lock is held for an append of
some hundred nanoseconds, or for the encoding of a batch.

LOSS AND ORDER. See `partition_queue`. A producer's process that dies loses what its worker has not taken from the lane.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self

from zbroker.client.batches import Batch, BatchFuture, SendFuture
from zbroker.client.connection import Connection
from zbroker.client.delivery import Delivery
from zbroker.client.filling import add_extras, add_key, deliver_to
from zbroker.client.partition_queue import PartitionQueue
from zbroker.client.process_end import EXIT_FLUSH_MS, note_closed, note_open
from zbroker.client.send_many import BatchRun, Columns
from zbroker.client.serialize import RECORD_OVERHEAD_BYTES, as_bytes, plain_size
from zbroker.client.settings import ProducerSettings, read_settings
from zbroker.client.topic_refresh import TopicRefresh
from zbroker.client.topic_sender import TopicSender
from zbroker.errors import BufferFullError, ClosedError, InvalidRecordError, MessageSizeTooLargeError, TimeoutError_
from zbroker.record.batch import read_header
from zbroker.record.records import Headers, RecordMetadata, header_tuple
from zbroker.record.view import RecordBatch
from zbroker.wire.messages import TopicInfo

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

RECORDS_PER_BATCH_MAX: Final = 10_000
BATCH_OVERHEAD_BYTES: Final = 256
_LAST_INDEX: Final = RECORDS_PER_BATCH_MAX - 1


class Producer(Generic[K, V]):
    """Sends records. See the module; settings are those of `ProducerSettings`."""

    def __init__(self, config: Mapping[str, object] | None = None, /, **settings: object) -> None:
        """Connect. Raises ConfigError for a setting, BrokerNotAvailableError when no broker answers."""
        self.settings = read_settings(ProducerSettings, config, settings)
        self._connection = Connection(
            self.settings, request_bytes=self.settings.max_request_size + BATCH_OVERHEAD_BYTES, reply_bytes=16 << 10
        )
        self.request_bytes_max = min(self.settings.max_request_size, self._connection.welcome.message_max_bytes)
        self._batch_max = min(self.settings.batch_size, self.request_bytes_max - BATCH_OVERHEAD_BYTES)
        self._delivery = Delivery(self._connection, self.settings)
        self.lock = self._delivery.lock
        self._topics: dict[str, TopicSender] = {}
        self._key_serializer = self.settings.key_serializer
        self._value_serializer = self.settings.value_serializer
        self._senders: weakref.WeakSet[Any] = weakref.WeakSet()
        self._on_delivery = self.settings.on_delivery
        self._buffer_memory = self.settings.buffer_memory
        self._batch_limit = self.request_bytes_max - BATCH_OVERHEAD_BYTES
        has_serializer = self._key_serializer is not None or self._value_serializer is not None
        has_own_choice = callable(self.settings.partitioner) or self.settings.partitioner == "round_robin"
        self._is_special = has_serializer or has_own_choice or self._on_delivery is not None
        self._refresh = TopicRefresh(self._connection, self.settings.metadata_max_age_ms, self._grow_topic)
        self._is_closed = False
        note_open(self)

    def send(
        self,
        topic: str,
        value: V | None = None,
        key: K | None = None,
        *,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
        on_delivery: Callable[..., None] | None = None,
    ) -> SendFuture:
        """Queue a record and give the future of its acknowledgement. Waits only for a topic's first metadata, or for
        room in the buffer, at most max_block_ms. Raises MessageSizeTooLargeError at once, BufferFullError."""
        if (
            value.__class__ is not bytes
            or (key is not None and key.__class__ is not bytes)
            or headers
            or partition is not None
            or timestamp_ms is not None
            or on_delivery is not None
            or self._is_special
        ):
            return self._send_special(topic, value, key, headers, partition, timestamp_ms, on_delivery)
        try:
            sender = self._topics[topic]
        except KeyError:
            sender = self._open_topic(topic)
        delivery = self._delivery
        if delivery.used_bytes > self._buffer_memory:
            self._wait_for_room()
        size = RECORD_OVERHEAD_BYTES + len(value)
        with self.lock:
            if key is None:
                queue = sender.sticky
            else:
                size += len(key)
                queue = sender.queues[sender.choose(key, sender.count)]
            batch = queue.open
            if batch is None or batch.size_bytes + size > self._batch_limit:
                batch = self._next_batch(queue, size)
            values = batch.values
            index = len(values)
            values.append(value)
            if batch.has_keys:
                batch.keys.append(key)
            elif key is not None:
                add_key(batch, index, key)
            if batch.has_extras:
                add_extras(batch, index, (), None)
            batch.size_bytes += size
            if batch.size_bytes >= self._batch_max or index >= _LAST_INDEX:
                self._close_full(sender, queue)
        if delivery.is_idle:
            delivery.wake()
        return SendFuture(batch, index)

    def _send_special(
        self,
        topic: str,
        value: Any,
        key: Any,
        headers: Headers,
        partition: int | None,
        timestamp_ms: int | None,
        on_delivery: Any,
    ) -> SendFuture:
        """What `send` does for a record that has more than a value and a key, or needs more done."""
        call = on_delivery or self._on_delivery
        sender = self._topics.get(topic) or self._open_topic(topic)
        if self._value_serializer is not None and value is not None:
            value = self._value_serializer(value)
        if self._key_serializer is not None and key is not None:
            key = self._key_serializer(key)
        value, key = as_bytes(value, "value"), as_bytes(key, "key")
        found = header_tuple(headers) if headers else ()
        size = plain_size(value, key, found)
        named = None if partition is None else self._queue_at(sender, partition)
        if self._delivery.used_bytes > self._buffer_memory:
            self._wait_for_room()
        with self.lock:
            queue = named if named is not None else sender.queue_for(key)
            batch = queue.open
            if batch is None or batch.size_bytes + size > self._batch_limit:
                batch = self._next_batch(queue, size)
            index = len(batch.values)
            batch.values.append(value)
            if key is not None or batch.has_keys:
                add_key(batch, index, key)
            if found or timestamp_ms is not None or batch.has_extras:
                add_extras(batch, index, found, timestamp_ms)
            batch.size_bytes += size
            if batch.size_bytes >= self._batch_max or index >= _LAST_INDEX:
                self._close_full(sender, queue)
        if self._delivery.is_idle:
            self._delivery.wake()
        if call is not None:
            deliver_to(call, batch, index)
        return SendFuture(batch, index)

    def _next_batch(self, queue: PartitionQueue, size: int) -> Batch:
        if size > self._batch_limit:
            raise self.too_large(size)
        if self._is_closed:
            raise ClosedError("this producer is closed")
        queue.close_open()
        batch = self._delivery.open_batch(queue)
        if batch.created_ns >= self._refresh.due_ns:
            self._refresh.ask(self._topics)
        return batch

    @staticmethod
    def _close_full(sender: TopicSender, queue: PartitionQueue) -> None:
        queue.close_open()
        if queue is sender.sticky:
            sender.next_sticky()

    def too_large(self, size: int) -> MessageSizeTooLargeError:
        """The error of a record above the limit."""
        return MessageSizeTooLargeError(
            f"a record of {size} bytes; requests take {self.request_bytes_max - BATCH_OVERHEAD_BYTES}"
        )

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
    ) -> BatchFuture:
        """Send many records at once: the fast path. Without keys they go in runs to one partition after the other.

        The sequences have one entry for each value. Raises MessageSizeTooLargeError before anything of a batch is sent.
        """
        sender = self._topics.get(topic) or self._open_topic(topic)
        values_: Sequence[Any] = values
        if self._value_serializer is not None:
            values_ = [None if value is None else self._value_serializer(value) for value in values]
        keys_: Sequence[Any] | None = keys
        if keys is not None and self._key_serializer is not None:
            keys_ = [None if key is None else self._key_serializer(key) for key in keys]
        tuples = None if headers is None else [header_tuple(found) for found in headers]
        for name, column in (("keys", keys), ("headers", headers), ("timestamps_ms", timestamps_ms)):
            if column is not None and len(column) != len(values):
                raise InvalidRecordError(f"send_many: {len(values)} values, but {len(column)} {name}")
        if partition is not None:
            self._queue_at(sender, partition)
        run = BatchRun(self, sender, Columns(values_, keys_, tuples, timestamps_ms), partition)
        return BatchFuture(run.send())

    def enqueue(self, queue: PartitionQueue, encoded: bytearray, values: Sequence[Any] = ()) -> Batch:
        """Queue a whole batch behind what was sent before. Waits for room in the buffer as `send` does."""
        self._connection.check_usable()
        delivery = self._delivery
        if delivery.used_bytes > self.settings.buffer_memory:
            self._wait_for_room()
        with self.lock:
            if self._is_closed:
                raise ClosedError("this producer is closed")
            queue.close_open()
            header = read_header(encoded)
            batch = delivery.open_batch(queue)
            queue.open = None
            batch.values = values  # type: ignore[assignment]
            batch.count, batch.encoded, batch.size_bytes = header.record_count, encoded, len(encoded)
            batch.timestamp_ms = header.base_timestamp
            queue.add_closed(batch)
        delivery.receive_some()
        return batch

    def sender(
        self, topic: str, *, partition: int | None = None, on_error: Callable[[Exception], None] | None = None
    ) -> Callable[..., None]:
        """A bound call for a hot loop of one thread: `emit(value, key=None)`, no future. Errors go to `on_error`, and
        the first of them is raised by the next `flush`. Records with a key and those without each keep their order;
        with records of `send` of the same producer there is an order only across a `flush`."""
        from zbroker.client.sender import Emitter

        if partition is not None:
            self._queue_at(self._topics.get(topic) or self._open_topic(topic), partition)
        emitter = Emitter(self, topic, partition, on_error)
        self._senders.add(emitter)
        self._delivery.emitters.add(emitter)
        self._delivery.wake()
        return emitter.emit

    def create_batch(self, topic: str, *, partition: int) -> BatchBuilder:
        """A batch to fill by hand: `append(value, key=None, ...) -> bool`, then `send_batch`."""
        from zbroker.client.batch_builder import BatchBuilder

        return BatchBuilder(topic, partition, self.request_bytes_max - BATCH_OVERHEAD_BYTES, self.settings)

    def send_batch(self, batch: BatchBuilder | RecordBatch) -> BatchFuture:
        """Send a `BatchBuilder`'s batch, or one that was read, which then changes in nothing but its offsets, to the
        topic and partition that it names. Raises MessageSizeTooLargeError at once."""
        sender = self._topics.get(batch.topic) or self._open_topic(batch.topic)
        encoded = bytearray(batch.raw()) if isinstance(batch, RecordBatch) else batch.encode()
        if len(encoded) > self.request_bytes_max:
            raise self.too_large(len(encoded))
        return BatchFuture([self.enqueue(self._queue_at(sender, batch.partition), encoded)])

    def flush(self, *, timeout_ms: int | None = None) -> int:
        """Send everything and wait until all is answered. Returns how many records are still unanswered after
        `timeout_ms`: 0 means all are done. Raises the first error of a `sender`."""
        self._check_open()
        for emitter in list(self._senders):
            emitter.hand_over()
        left = self._delivery.flush(timeout_ms)
        for emitter in list(self._senders):
            emitter.raise_first_error()
        return left

    def partitions_for(self, topic: str) -> list[int]:
        """The numbers of a topic's partitions; the topic is created if it may be."""
        sender = self._topics.get(topic) or self._open_topic(topic)
        return list(range(len(sender.queues)))

    def metrics(self) -> dict[str, float]:
        """Counts since the start: records and batches acknowledged and failed, bytes in the buffer."""
        return self._delivery.metrics()

    def _open_topic(self, topic: str) -> TopicSender:
        self._check_open()
        info = self._delivery.find_topic(topic)
        with self.lock:
            found = self._topics.get(topic)
            if found is None:
                queues = [self._delivery.queue(topic, number) for number in range(len(info.partitions))]
                found = self._topics[topic] = TopicSender(topic, queues, self.settings.partitioner)
            return found

    def _queue_at(self, sender: TopicSender, partition: int) -> PartitionQueue:
        """The queue of a named partition, which may have been added a moment ago."""
        if partition >= sender.count:
            self._check_open()
            view = self._connection.metadata([sender.topic], refresh=True, timeout_ms=self.settings.max_block_ms)
            self._grow_topic(view.topic(sender.topic))
        return sender.at(partition)

    def _grow_topic(self, info: TopicInfo) -> None:
        with self.lock:
            sender = self._topics.get(info.name)
            if sender is not None and len(info.partitions) > sender.count:
                numbers = range(sender.count, len(info.partitions))
                sender.grow([self._delivery.queue(info.name, number) for number in numbers])

    def _check_open(self) -> None:
        self._connection.check_usable()
        if self._is_closed:
            raise ClosedError("this producer is closed")

    def _wait_for_room(self) -> None:
        self._check_open()
        limit = self.settings.buffer_memory
        if not self._delivery.wait_for(lambda: self._delivery.used_bytes <= limit, self.settings.max_block_ms):
            raise BufferFullError(
                f"the buffer of {limit} bytes stayed full for {self.settings.max_block_ms} ms "
                "(buffer_memory, max_block_ms; zbroker status shows whether the worker lives)"
            )

    def close(self, *, timeout_ms: int | None = None) -> None:
        """Send what is queued, wait for its answers at most `timeout_ms` (None: delivery_timeout_ms), and disconnect.

        What is not answered then fails with TimeoutError_. Closing twice is closing once.
        """
        if self._is_closed:
            return
        try:
            self._connection.check_usable()
        except (ClosedError, RuntimeError):
            self._is_closed = True
            return
        try:
            for emitter in list(self._senders):
                emitter.hand_over()
            self._delivery.flush(timeout_ms)
        finally:
            with self.lock:
                self._is_closed = True
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
        self._topics = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error, Ctrl-C above all, a full flush could take the whole delivery time-out.
        self.close(timeout_ms=None if kind is None else EXIT_FLUSH_MS)

    def __reduce__(self) -> Any:
        raise TypeError("a Producer cannot be pickled: create one per process (celery: worker_process_init)")
