"""The producer for asyncio: `zbroker.Producer` with its calls awaited.

    async with Producer() as producer:
        sent = await producer.send("orders", b"value")     # queued; waits while the buffer is full
        metadata = await sent                              # acknowledged

Guarantees: those of `zbroker.client.producer`. `send` gives an `asyncio.Future`; cancelling that one gives up waiting,
not the record. What one turn of the loop sends goes in one batch for each partition, even with `linger_ms=0`. All of it
happens in the loop's thread; `on_delivery` and `partitioner` are plain functions.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from zbroker.aio.connection import LoopConnection
from zbroker.client.accumulator import BATCH_OVERHEAD_BYTES
from zbroker.client.background import Background
from zbroker.client.batch_builder import BatchBuilder
from zbroker.client.batches import AppendedRange, BatchFuture, SendFuture
from zbroker.client.connection import Connection
from zbroker.client.delivery import Delivery
from zbroker.client.process_end import note_closed
from zbroker.client.producer import REPLY_BYTES
from zbroker.client.producer import Producer as BlockingProducer
from zbroker.client.settings import ProducerSettings, read_settings
from zbroker.clock import NS_PER_MS
from zbroker.errors import BrokerError, BufferFullError, ClosedError, TimeoutError_
from zbroker.record.records import Headers, RecordMetadata
from zbroker.record.view import RecordBatch

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    K = TypeVarWithDefault("K", default=Any)
    V = TypeVarWithDefault("V", default=Any)
else:
    K = TypeVar("K")
    V = TypeVar("V")
R = TypeVar("R")

SENDS_A_TURN: Final = 500  # of one task, before the others have their turn
NAP_MS: Final = 5.0

_log = logging.getLogger(__name__)


class _LoopWork(Background):
    """What the background thread does for the other producer, as a task that lives while there is work."""

    def __init__(self, delivery: Delivery, connection: LoopConnection, linger_ms: float) -> None:
        super().__init__(delivery, connection, linger_ms)
        self._delivery = delivery
        self._loop_connection = connection
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """There is work. The loop's thread alone calls it."""
        self.is_idle = self.is_asleep = False
        if self._task is None and not self._is_closing:
            self._task = asyncio.get_running_loop().create_task(self._serve())

    def close(self) -> None:
        """Do nothing more."""
        self._is_closing = True
        if self._task is not None:
            self._task.cancel()

    async def _serve(self) -> None:
        delivery = self._delivery
        try:
            while delivery.has_work():
                try:
                    await self._loop_connection.replayed(delivery.do_what_is_due)
                except Exception as error:
                    # What failed is tried again at its own time; the future that waits for it hears the reason.
                    if self._is_closing:
                        return
                    if not isinstance(error, BrokerError):
                        _log.exception("the producer goes on after an error")
                await asyncio.sleep(min(self._nap_ms, delivery.until_service_ms()) / 1000)
        finally:
            self._task = None
            self.is_idle = self.is_asleep = True


class _Calls(BlockingProducer[Any, Any]):
    """The other producer on a connection of this loop, without its thread."""

    def __init__(self, connection: LoopConnection, config: Mapping[str, object] | None, **settings: object) -> None:
        self._given = connection
        super().__init__(config, **settings)
        note_closed(self)  # its loop is gone when the process ends: `close` has to be awaited before
        self.work = _LoopWork(self._delivery, connection, self.settings.linger_ms)
        self._delivery.background = self.work

    def _connect(self, request_bytes: int) -> Connection:
        return self._given


class Producer(Generic[K, V]):
    """See the module. Settings are those of `zbroker.Producer`; `start`, or `async with`, connects."""

    def __init__(self, config: Mapping[str, object] | None = None, /, **settings: object) -> None:
        """Raises ConfigError for a setting."""
        self.settings: ProducerSettings = read_settings(ProducerSettings, config, settings)
        self._arguments = (config, settings)
        self._calls: _Calls | None = None
        self._is_closed = False
        self._is_closing_batches = False
        self._sends = 0

    async def start(self) -> None:
        """Connect, in the loop that is running. Raises BrokerNotAvailableError when no broker answers."""
        if self._calls is None:
            request_bytes = self.settings.max_request_size + BATCH_OVERHEAD_BYTES
            connection = LoopConnection(self.settings, request_bytes=request_bytes, reply_bytes=REPLY_BYTES)
            await connection.connect()
            self._loop = asyncio.get_running_loop()
            self._calls = _Calls(connection, self._arguments[0], **self._arguments[1])

    def _started(self) -> _Calls:
        if self._calls is None:
            raise ClosedError("this Producer is not started: async with Producer(...), or await start()")
        if self._is_closed:
            raise ClosedError("this producer is closed")
        return self._calls

    # --- sending -----------------------------------------------------------------------------------------------------

    async def send(
        self,
        topic: str,
        value: V | None = None,
        key: K | None = None,
        *,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
        on_delivery: Callable[..., None] | None = None,
        dedup_id: str | bytes | None = None,
        expected_offset: int | None = None,
    ) -> asyncio.Future[RecordMetadata]:
        """Queue a record; see `zbroker.Producer.send`. Returns when it is queued, with the future of its
        acknowledgement. Waits for a topic's first metadata and for room in the buffer, at most max_block_ms."""

        def send(calls: _Calls) -> SendFuture:
            return calls.send(
                topic, value, key, headers=headers, partition=partition, timestamp_ms=timestamp_ms,
                on_delivery=on_delivery, dedup_id=dedup_id, expected_offset=expected_offset,
            )  # fmt: skip

        sent = await self._queue(topic, partition is None, send)
        future: asyncio.Future[RecordMetadata] = self._loop.create_future()
        sent.add_done_callback(lambda done: _settle(future, done.exception, done.result))
        return future

    async def send_and_wait(
        self, topic: str, value: V | None = None, key: K | None = None, *, timeout_ms: int | None = None, **rest: Any
    ) -> RecordMetadata:
        """Send a record and wait for its acknowledgement. Raises the delivery's error or TimeoutError_."""
        future = await self.send(topic, value, key, **rest)
        return await _within(future, timeout_ms)

    async def send_many(
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
    ) -> asyncio.Future[list[AppendedRange]]:
        """Queue many records at once; see `zbroker.Producer.send_many`. The future is of all of them."""

        def send(calls: _Calls) -> BatchFuture:
            return calls.send_many(
                topic, values, keys, headers=headers, partition=partition, timestamps_ms=timestamps_ms, atomic=atomic,
                dedup_id=dedup_id, expected_offset=expected_offset,
            )  # fmt: skip

        return self._future_of(await self._queue(topic, False, send))

    def create_batch(self, topic: str, *, partition: int) -> BatchBuilder:
        """A batch to fill by hand: `append(value, key=None, ...) -> bool`, then `send_batch`."""
        return self._started().create_batch(topic, partition=partition)

    async def send_batch(
        self,
        batch: BatchBuilder | RecordBatch,
        *,
        dedup_id: str | bytes | None = None,
        expected_offset: int | None = None,
    ) -> asyncio.Future[list[AppendedRange]]:
        """Queue a whole batch; see `zbroker.Producer.send_batch`."""

        def send(calls: _Calls) -> BatchFuture:
            return calls.send_batch(batch, dedup_id=dedup_id, expected_offset=expected_offset)

        return self._future_of(await self._queue(batch.topic, False, send))

    async def _queue(self, topic: str, is_simple: bool, send: Callable[[_Calls], R]) -> R:
        calls = self._started()
        self._sends += 1
        if self._sends % SENDS_A_TURN == 0:
            await asyncio.sleep(0)
        if calls._delivery.used_bytes > self.settings.buffer_memory:
            await self._wait_for_room(calls)
        if is_simple and topic in calls._accumulator.topics:
            sent = send(calls)
        else:
            sent = await calls._given.replayed(lambda: send(calls), self.settings.max_block_ms)
        if not self.settings.linger_ms and not self._is_closing_batches:
            self._is_closing_batches = True
            self._loop.call_soon(self._close_batches)
        return sent

    def _close_batches(self) -> None:
        self._is_closing_batches = False
        if self._calls is not None and not self._is_closed:
            self._calls._delivery.close_old_batches()

    async def _wait_for_room(self, calls: _Calls) -> None:
        limit, limit_ms = self.settings.buffer_memory, self.settings.max_block_ms
        if not await self._until(lambda: calls._delivery.used_bytes <= limit, limit_ms):
            raise BufferFullError(
                f"the buffer of {limit} bytes stayed full for {limit_ms} ms "
                "(buffer_memory, max_block_ms; zbroker status shows whether the worker lives)"
            )

    async def _until(self, is_so: Callable[[], bool], timeout_ms: float) -> bool:
        """Receive until it is so, at most `timeout_ms`. Returns whether it is."""
        calls = self._started()
        deadline_ns = time.monotonic_ns() + int(timeout_ms * NS_PER_MS)
        while not is_so():
            left_ms = (deadline_ns - time.monotonic_ns()) / NS_PER_MS
            if left_ms <= 0:
                return False
            await calls._given.turned(min(left_ms, NAP_MS))
        return True

    def _future_of(self, sent: BatchFuture) -> asyncio.Future[list[AppendedRange]]:
        future: asyncio.Future[list[AppendedRange]] = asyncio.get_running_loop().create_future()
        sent.add_done_callback(lambda done: _settle(future, done.exception, done.result))
        return future

    # --- the rest ----------------------------------------------------------------------------------------------------

    async def flush(self, *, timeout_ms: int | None = None) -> int:
        """Send everything and wait until all that was sent before is answered. Returns how many records are still
        unanswered after `timeout_ms`."""
        calls = self._started()
        delivery = calls._delivery
        marks = delivery.close_all()
        delivery.background.wake()
        limit_ms = self.settings.delivery_timeout_ms + 1_000 if timeout_ms is None else timeout_ms

        def is_done() -> bool:
            while marks and marks[-1][0].is_done_until(marks[-1][1]):
                marks.pop()
            return not marks

        await self._until(is_done, limit_ms)
        return delivery.unanswered_records()

    async def partitions_for(self, topic: str) -> list[int]:
        """The numbers of a topic's partitions; the topic is created if it may be."""
        calls = self._started()
        return await calls._given.replayed(lambda: calls.partitions_for(topic), self.settings.max_block_ms)

    def metrics(self) -> dict[str, float]:
        """Counts since the start: records and batches acknowledged and failed, bytes in the buffer."""
        return self._started().metrics()

    def unanswered_records(self) -> int:
        """How many records are queued or on their way."""
        return self._started().unanswered_records()

    async def close(self, *, timeout_ms: int | None = None) -> None:
        """Send what is queued, wait for its answers at most `timeout_ms` (None: delivery_timeout_ms), and disconnect.

        What is not answered then fails with TimeoutError_.
        """
        if self._calls is None or self._is_closed:
            self._is_closed = True
            return
        calls = self._calls
        try:
            await self.flush(timeout_ms=timeout_ms)
        finally:
            self._is_closed = True
            calls._accumulator.is_closed = True
            calls._delivery.close(TimeoutError_("the producer was closed before this was acknowledged"))
            calls._given.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a Producer holds sockets and shared memory of its process: create one per process")


def _settle(
    future: asyncio.Future[R], error_of: Callable[[], BaseException | None], result_of: Callable[[], R]
) -> None:
    """Pass an outcome that is known on, unless nobody waits for it any more."""
    if future.done():
        return
    error = error_of()
    if error is None:
        future.set_result(result_of())
    else:
        future.set_exception(error)


async def _within(future: asyncio.Future[R], timeout_ms: int | None) -> R:
    if timeout_ms is None:
        return await future
    try:
        return await asyncio.wait_for(future, timeout_ms / 1000)
    except TimeoutError as error:
        if future.done() and not future.cancelled():
            return future.result()
        raise TimeoutError_(f"not acknowledged within {timeout_ms} ms", hint="delivery_timeout_ms bounds it") from error
