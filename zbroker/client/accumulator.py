"""Where records wait to be sent: the topics, their partitions' open batches, and the room that they may take.

There is one lock. A thread that opens every batch, because it alone sends, owns them: it appends without the lock
(`Producer.send`; taking the lock costs as much as all the rest). Any other thread may close such a batch, and appends
to a new one. The owner looks at `is_open` after its append; the closer clears `is_open` before it counts. So a record
that the owner sees in an open batch is counted, and for any other the count says whether it is.

A batch is opened and filled up by `add`, which takes the lock; what lies in between may go without.

With `linger_ms` 0 a record that comes after a pause is sent by `add` itself: nothing would join it, and the thread in
the background would have to wake up first. So is one of a thread that waited for the one before it. Those that come
within the time of a pause, or while a batch of several is on its way, gather, as Nagle's algorithm has it.

A batch costs its producer and its worker some 150 us besides its bytes, and its first record waits for the last. With
`linger_ms` 0 batches are therefore as large as what is sent in a few milliseconds: see `PartitionQueue.room_bytes`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from threading import get_ident
from typing import Final

from zbroker.client.batches import Batch, SendFuture
from zbroker.client.connection import Connection
from zbroker.client.delivery import Delivery
from zbroker.client.filling import add_extras, add_key
from zbroker.client.partition_queue import PartitionQueue
from zbroker.client.serialize import RECORD_OVERHEAD_BYTES
from zbroker.client.settings import ProducerSettings
from zbroker.client.terms import Terms
from zbroker.client.topic_refresh import TopicRefresh
from zbroker.client.topic_sender import TopicSender
from zbroker.clock import NS_PER_MS
from zbroker.errors import BufferFullError, ClosedError, MessageSizeTooLargeError
from zbroker.record.batch import read_header
from zbroker.record.records import Header
from zbroker.wire.codec import encode
from zbroker.wire.messages import TopicInfo

RECORDS_PER_BATCH_MAX: Final = 10_000
BATCH_OVERHEAD_BYTES: Final = 256
ALONE_AFTER_BATCHES: Final = 64
PAUSE_NS: Final = NS_PER_MS // 4
AHEAD_BATCHES_MAX: Final = 2  # of a `send_many`, besides those on their way
PACE_MS: Final = 5


class Accumulator:
    """See the module."""

    def __init__(self, connection: Connection, delivery: Delivery, settings: ProducerSettings) -> None:
        self.settings = settings
        self.lock = delivery.lock
        self.topics: dict[str, TopicSender] = {}
        self.plain_topics: dict[str, TopicSender] = {}
        """Those whose records need nothing but a place."""
        self.is_closed = False
        self.request_bytes_max = min(settings.max_request_size, connection.welcome.message_max_bytes)
        self.batch_limit = self.request_bytes_max - BATCH_OVERHEAD_BYTES
        self.batch_max = min(settings.batch_size, self.batch_limit)
        self._topic_bytes_max = connection.welcome.batch_max_bytes or self.request_bytes_max
        self._connection = connection
        self._delivery = delivery
        self._buffer_memory = settings.buffer_memory
        has_serializer = settings.key_serializer is not None or settings.value_serializer is not None
        has_own_choice = callable(settings.partitioner) or settings.partitioner == "round_robin"
        self._is_plain = not (has_serializer or has_own_choice or settings.on_delivery is not None)
        self._is_prompt = settings.linger_ms == 0
        self._last_thread = self._opened_in_a_row = 0
        self._refresh = TopicRefresh(connection, settings.metadata_max_age_ms, self._grow_topic)

    def add(
        self,
        sender: TopicSender,
        named: PartitionQueue | None,
        value: bytes | None,
        key: bytes | None,
        headers: tuple[Header, ...],
        timestamp_ms: int | None,
        size: int,
    ) -> tuple[Batch, int]:
        """Put a record into an open batch; give the batch and the record's place in it. `named`: the partition's queue,
        if the caller chose it. `size`: what the record takes, in bytes."""
        delivery = self._delivery
        if delivery.used_bytes > self._buffer_memory:
            self.wait_for_room()
        with self.lock:
            queue = named if named is not None else sender.queue_for(key)
            batch = queue.open
            if batch is None or batch.room - size < sender.room_min or batch.owner not in (0, get_ident()):
                batch = self._next_batch(queue, size, sender.room)
            index = len(batch.values)
            batch.values.append(value)
            if key is not None or batch.has_keys:
                add_key(batch, index, key)
            if headers or timestamp_ms is not None or batch.has_extras:
                add_extras(batch, index, headers, timestamp_ms)
            batch.room -= size
            is_full = batch.room <= 0 or index + 1 >= RECORDS_PER_BATCH_MAX
            is_alone = index == 0 and self._is_prompt and self._goes_alone(queue, batch)
            if is_alone:
                delivery.close_alone(queue, is_awaited=queue.is_awaited)
            elif is_full:
                queue.is_awaited = False
                queue.close_full(sender.room)
            if is_full and queue is sender.sticky:
                sender.next_sticky()
        if is_full or is_alone:
            delivery.receive_some(queue, is_alone=is_alone)
        elif delivery.background.is_idle:
            delivery.background.wake()
        return batch, index

    def add_plain(self, sender: TopicSender, value: bytes, key: bytes | None) -> SendFuture:
        """`add` of a value, perhaps with a key, and no more: the short way into a batch that several threads fill."""
        size = RECORD_OVERHEAD_BYTES + len(value) + (0 if key is None else len(key))
        with self.lock:
            queue = sender.sticky if key is None else sender.queues[sender.hash_of(key) % sender.count]
            batch = queue.open
            if batch is not None and not batch.owner and batch.room > size and batch.has_keys == (key is not None):
                index = len(batch.values)
                if not batch.has_extras and index + 1 < RECORDS_PER_BATCH_MAX:
                    batch.values.append(value)
                    if key is not None:
                        batch.keys.append(key)
                    batch.room -= size
                    return SendFuture(batch, index)
        return SendFuture(*self.add(sender, None, value, key, (), None, size))

    def has_taken(self, batch: Batch, index: int) -> bool:
        """Whether a batch that was closed during an append has the record. Else nobody has."""
        with self.lock:
            return index < batch.count

    def _next_batch(self, queue: PartitionQueue, size: int, room_max: int) -> Batch:
        if size > self.batch_limit:
            raise self.too_large(size)
        if self.is_closed or self._delivery.fatal is not None:
            self._check_alive()
        if queue.open is not None:
            queue.close_open()
        batch = queue.open = self._delivery.new_batch(queue)
        batch.room = min(room_max, queue.room_bytes) if self._is_prompt else room_max
        batch.owner = self._thread_alone()
        if batch.created_ns >= self._refresh.due_ns:
            self._refresh.ask(self.topics)
        return batch

    def _goes_alone(self, queue: PartitionQueue, batch: Batch) -> bool:
        """Whether a new batch is sent with its first record: nothing waits, and it is the first for a while, or nothing
        is on its way and somebody waits for it as for the one before. The lock is held."""
        if queue.waiting or queue.failed or queue.needs_leader:
            return False
        in_flight = queue.in_flight
        if in_flight and (in_flight[-1].count > 1 or len(in_flight) >= self._delivery.max_in_flight):
            return False  # a stream of batches: what comes next gathers
        return batch.created_ns - queue.closed_ns > PAUSE_NS or (queue.is_awaited and not in_flight)

    def _thread_alone(self) -> int:
        """This thread, when it alone has opened batches for a while, else 0. The lock is held."""
        if self._last_thread == get_ident():
            self._opened_in_a_row += 1
        else:
            self._opened_in_a_row = 0 if self._last_thread == 0 else -ALONE_AFTER_BATCHES
            self._last_thread = get_ident()
        return self._last_thread if self._opened_in_a_row >= 0 else 0

    def too_large(self, size: int, what: str = "record") -> MessageSizeTooLargeError:
        """The error of a record, or a batch that must not be divided, above the limit."""
        return MessageSizeTooLargeError(f"a {what} of {size} bytes; requests take {self.batch_limit}")

    def enqueue(
        self,
        queue: PartitionQueue,
        encoded: bytearray,
        *,
        terms: Terms | None = None,
        values: Sequence[bytes | None] = (),
        keys: Sequence[bytes | None] = (),
    ) -> Batch:
        """Queue a whole batch behind what was sent before. Waits for room in the buffer as `add` does.

        `values` and `keys` are for those who ask for single records' metadata.
        """
        self._connection.check_usable()
        delivery = self._delivery
        # A list that is larger than the buffer, on an event loop: what lies before it is queued, and must not be again.
        if delivery.used_bytes > self._buffer_memory and not self._connection.is_replayed:
            self.wait_for_room()
        with self.lock:
            self._check_alive()
            queue.close_open()
            header = read_header(encoded)
            batch = delivery.new_batch(queue)
            batch.count, batch.encoded, batch.size_bytes = header.record_count, encoded, len(encoded)
            batch.timestamp_ms = header.base_timestamp
            if terms is not None:
                batch.name_id = terms.name_id
                batch.options = None if terms.options is None else encode(terms.options)
            batch.stamp = (header.producer_id, header.producer_epoch, header.base_sequence)
            batch.values, batch.keys, batch.has_keys = list(values), list(keys), bool(keys)
            queue.add_closed(batch)
        delivery.receive_some(queue)
        return batch

    def keep_pace(self, queue: PartitionQueue) -> None:
        """Before one more batch of `queue` is made: let those before it go first, for at most PACE_MS.

        What is made far ahead of its worker has left the core's caches when it goes, and takes memory that is new to
        this process. With acks=0 nothing else keeps what waits for a full lane small.
        """
        if _may_go_on(queue) or not self._connection.may_wait:
            return
        self._delivery.tended_ns = time.monotonic_ns()
        self._connection.wait_for(lambda: _may_go_on(queue), PACE_MS)

    def topic(self, topic: str) -> TopicSender:
        """A topic's sender. The first time it waits for metadata."""
        return self.topics.get(topic) or self._open_topic(topic)

    def _open_topic(self, topic: str) -> TopicSender:
        self.check_open()
        info = self._delivery.leaders.find_topic(topic)
        with self.lock:
            found = self.topics.get(topic)
            if found is None:
                queues = [self._delivery.queue(topic, number) for number in range(len(info.partitions))]
                found = self.topics[topic] = TopicSender(topic, queues, self.settings.partitioner)
                self._bound(found, info)
                if self._is_plain:
                    self.plain_topics[topic] = found
            return found

    def _bound(self, sender: TopicSender, info: TopicInfo) -> None:
        of_topic = int(info.config.get("max.message.bytes", self._topic_bytes_max))
        sender.bound(min(self.request_bytes_max, of_topic), BATCH_OVERHEAD_BYTES, self.batch_max)

    def queue_at(self, sender: TopicSender, partition: int) -> PartitionQueue:
        """The queue of a named partition, which may have been added a moment ago."""
        if partition >= sender.count:
            self.check_open()
            view = self._connection.metadata([sender.topic], refresh=True, timeout_ms=self.settings.max_block_ms)
            self._grow_topic(view.topic(sender.topic))
        return sender.at(partition)

    def _grow_topic(self, info: TopicInfo) -> None:
        with self.lock:
            sender = self.topics.get(info.name)
            if sender is not None:
                self._bound(sender, info)
                numbers = range(sender.count, len(info.partitions))
                sender.grow([self._delivery.queue(info.name, number) for number in numbers])

    def check_open(self) -> None:
        """Raise ForkError in another process, ClosedError after `close`, ProducerFencedError when fenced."""
        self._connection.check_usable()
        self._check_alive()

    def _check_alive(self) -> None:
        if self.is_closed:
            raise ClosedError("this producer is closed")
        if self._delivery.fatal is not None:
            raise self._delivery.fatal

    def wait_for_room(self) -> None:
        """Wait at most max_block_ms until the buffer has room. Raises BufferFullError."""
        self.check_open()
        limit = self._buffer_memory
        if not self._delivery.wait_for(lambda: self._delivery.used_bytes <= limit, self.settings.max_block_ms):
            raise BufferFullError(
                f"the buffer of {limit} bytes stayed full for {self.settings.max_block_ms} ms "
                "(buffer_memory, max_block_ms; zbroker status shows whether the worker lives)"
            )

    def disarm(self) -> None:
        """In a forked child: forget all topics. Looking for one raises ForkError then."""
        self.topics.clear()
        self.plain_topics.clear()


def _may_go_on(queue: PartitionQueue) -> bool:
    lane = queue.lane
    is_ahead = len(queue.waiting) >= AHEAD_BATCHES_MAX or (lane is not None and len(lane.outbox) >= AHEAD_BATCHES_MAX)
    return not is_ahead or queue.needs_leader
