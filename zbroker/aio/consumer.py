"""The consumer for asyncio: `zbroker.Consumer` with its calls awaited.

    async with Consumer("orders", group_id="billing") as consumer:
        async for record in consumer:
            await work(record)
            await consumer.commit(record)

Guarantees: those of `zbroker.client.consumer`. A call that is cancelled has given nothing out, and its position stays.
One task uses a consumer at a time; `wakeup` and `close` may come from others. Listeners are plain functions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from functools import wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar

from zbroker.aio.connection import LoopConnection
from zbroker.aio.one_task import OneTask
from zbroker.aio.rest import Rest
from zbroker.client.assigned import Assigned
from zbroker.client.consumer import CLOSE_TIMEOUT_MS, WAIT_MS_MAX
from zbroker.client.consumer import Consumer as BlockingConsumer
from zbroker.client.settings import ConsumerSettings, read_settings
from zbroker.client.sleep import Sleep, WakeableConnection
from zbroker.clock import NS_PER_MS
from zbroker.errors import ClosedError, ConfigError
from zbroker.ids import TopicPartition
from zbroker.record.records import ConsumerRecord
from zbroker.record.view import RecordBatch

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    K = TypeVarWithDefault("K", default=Any)
    V = TypeVarWithDefault("V", default=Any)
else:
    K = TypeVar("K")
    V = TypeVar("V")
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

LOOK_S: Final = 0.002
THREAD_END_S: Final = 2.0


class _Calls(BlockingConsumer[Any, Any]):
    """The other consumer on a connection of this loop: what it waits for is awaited by who calls it."""

    def __init__(self, connection: LoopConnection, *topics_or_config: str | Mapping[str, object], **settings: object):
        self._given = connection
        super().__init__(*topics_or_config, **settings)

    def _connect(self) -> tuple[WakeableConnection, Sleep]:
        return self._given, Rest(self._given, self.settings)

    def _release(self) -> None:
        self._subscription.moves += 1
        if self._group is not None:
            self._group.end(0)
        self._fetcher.close()
        self._connection.close()


def _awaited(
    method: Callable[Concatenate[BlockingConsumer[Any, Any], P], R],
) -> Callable[Concatenate[Consumer[Any, Any], P], Coroutine[Any, Any, R]]:
    @wraps(method)
    async def call(self: Consumer[Any, Any], /, *arguments: P.args, **options: P.kwargs) -> R:
        with self._task:
            calls = self._started()
            return await calls._given.replayed(lambda: method(calls, *arguments, **options))

    return call


def _at_once(
    method: Callable[Concatenate[BlockingConsumer[Any, Any], P], R],
) -> Callable[Concatenate[Consumer[Any, Any], P], R]:
    @wraps(method)
    def call(self: Consumer[Any, Any], /, *arguments: P.args, **options: P.kwargs) -> R:
        return method(self._started(), *arguments, **options)

    return call


class Consumer(Generic[K, V]):
    """See the module. Settings are those of `zbroker.Consumer`; `start`, or `async with`, connects."""

    def __init__(self, *topics_or_config: str | Mapping[str, object], **settings: object) -> None:
        """Raises ConfigError for a setting."""
        mappings = [one for one in topics_or_config if not isinstance(one, str)]
        if len(mappings) > 1:
            raise ConfigError("Consumer() takes one mapping of settings")
        self.settings: ConsumerSettings = read_settings(ConsumerSettings, mappings[0] if mappings else None, settings)
        self._arguments = (topics_or_config, settings)
        self._task = OneTask("Consumer")
        self._calls: _Calls | None = None

    async def start(self) -> None:
        """Connect, in the loop that is running. Raises BrokerNotAvailableError when no broker answers."""
        if self._calls is None:
            connection = LoopConnection(self.settings)
            await connection.connect()
            try:
                self._calls = _Calls(connection, *self._arguments[0], **self._arguments[1])
            except BaseException:
                connection.close()
                raise

    def _started(self) -> _Calls:
        if self._calls is None:
            raise ClosedError("this Consumer is not started: async with Consumer(...), or await start()")
        return self._calls

    # --- records -----------------------------------------------------------------------------------------------------

    async def poll(
        self, *, timeout_ms: float = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[ConsumerRecord[K, V]]]:
        """See `zbroker.Consumer.poll`."""
        with self._task:
            calls = self._started()
            count_max = calls._count(max_records)
            calls._subscription.moves += 1
            return await self._search(calls, lambda: calls._fetcher.collect(count_max), timeout_ms)

    async def consume(self, max_records: int = 1, *, timeout_ms: float | None = None) -> list[ConsumerRecord[K, V]]:
        """See `zbroker.Consumer.consume`."""
        with self._task:
            calls = self._started()
            count_max = calls._count(max_records)
            calls._subscription.moves += 1
            found = await self._search(calls, lambda: calls._fetcher.collect(count_max), timeout_ms)
            return [record for records in found.values() for record in records]

    async def __aiter__(self) -> AsyncIterator[ConsumerRecord[K, V]]:
        """Record after record; ends after `consumer_timeout_ms` without one (None: never), by `wakeup` or `close`."""
        timeout_ms = self.settings.iteration_timeout_ms
        while (one := await self._next(timeout_ms, as_batches=False)) is not None:
            subscription = self._started()._subscription
            moves = subscription.moves
            for record in one.rest():
                one.offset = record.offset + 1
                yield record
                if subscription.moves != moves:
                    break

    async def batches(self, *, timeout_ms: float | None = None) -> AsyncIterator[RecordBatch]:
        """See `zbroker.Consumer.batches`."""
        timeout_ms = self.settings.iteration_timeout_ms if timeout_ms is None else timeout_ms
        while (one := await self._next(timeout_ms, as_batches=True)) is not None:
            subscription = self._started()._subscription
            moves, ready = subscription.moves, one.ready
            while ready:
                batch = ready.popleft()
                one.offset = batch.header.next_offset
                if not batch.header.record_count:
                    continue  # compaction left nothing of it but its offsets
                yield batch
                if subscription.moves != moves:
                    break

    async def _next(self, timeout_ms: float | None, *, as_batches: bool) -> Assigned | None:
        try:
            with self._task:
                calls = self._started()
                one = await self._search(calls, lambda: calls._fetcher.next_run(as_batches=as_batches), timeout_ms)
                if one is not None:
                    one.was_read = True
                if calls._group is not None:
                    calls._group.running = one
                return one
        except ClosedError:
            if self._calls is None:
                raise
            return None

    async def _search(self, calls: _Calls, find: Callable[[], T], timeout_ms: float | None) -> T:
        """As `Consumer._search`. Nothing is awaited between finding and giving out: a cancellation loses no record."""
        await asyncio.sleep(0)  # however much there is to read, others have their turn
        group = calls._group
        if group is not None:
            group.begin_poll()
        try:
            found = await self._search_on(calls, find, timeout_ms)
            if group is not None:
                group.in_hand = bool(found)
            return found
        finally:
            if group is not None:
                group.end_poll()

    async def _search_on(self, calls: _Calls, find: Callable[[], T], timeout_ms: float | None) -> T:
        fetcher, connection = calls._fetcher, calls._given
        rest = fetcher.sleep
        assert isinstance(rest, Rest)
        found = await connection.replayed(find)
        deadline_ns = None if timeout_ms is None else time.monotonic_ns() + int(timeout_ms * NS_PER_MS)
        is_last = False
        while not (found or is_last or self._task.is_closed):
            if rest.is_woken:
                rest.is_woken = False
                break
            left_ms = WAIT_MS_MAX if deadline_ns is None else (deadline_ns - time.monotonic_ns()) / NS_PER_MS
            is_last = left_ms <= 0
            fetcher.wait(left_ms)
            await rest.rest()
            if self._task.is_closed:
                break
            found = await connection.replayed(find)
        return found

    # --- what is the same, at once or awaited ------------------------------------------------------------------------

    subscribe = _at_once(BlockingConsumer.subscribe)
    add_listener = _at_once(BlockingConsumer.add_listener)
    subscription = _at_once(BlockingConsumer.subscription)
    assignment = _at_once(BlockingConsumer.assignment)
    paused = _at_once(BlockingConsumer.paused)
    group_metadata = _at_once(BlockingConsumer.group_metadata)
    wakeup = _at_once(BlockingConsumer.wakeup)

    assign = _awaited(BlockingConsumer.assign)
    pause = _awaited(BlockingConsumer.pause)
    resume = _awaited(BlockingConsumer.resume)
    position = _awaited(BlockingConsumer.position)
    seek = _awaited(BlockingConsumer.seek)
    seek_to_beginning = _awaited(BlockingConsumer.seek_to_beginning)
    seek_to_end = _awaited(BlockingConsumer.seek_to_end)
    seek_to_timestamp = _awaited(BlockingConsumer.seek_to_timestamp)
    seek_to_last = _awaited(BlockingConsumer.seek_to_last)
    highwater = _awaited(BlockingConsumer.highwater)
    lag = _awaited(BlockingConsumer.lag)
    offsets_for_times = _awaited(BlockingConsumer.offsets_for_times)
    beginning_offsets = _awaited(BlockingConsumer.beginning_offsets)
    end_offsets = _awaited(BlockingConsumer.end_offsets)
    topics = _awaited(BlockingConsumer.topics)
    partitions_for_topic = _awaited(BlockingConsumer.partitions_for_topic)
    commit = _awaited(BlockingConsumer.commit)
    commit_async = _awaited(BlockingConsumer.commit_async)
    committed = _awaited(BlockingConsumer.committed)

    async def unsubscribe(self) -> None:
        """Read nothing until the next `subscribe` or `assign`; leave the group."""
        with self._task:
            calls = self._started()
            await self._leave(calls, is_final=False)
            calls._subscription.unsubscribe()

    async def _leave(self, calls: _Calls, *, is_final: bool) -> None:
        group = calls._group
        if group is None:
            return
        told = await calls._given.replayed(lambda: group.leave(0, is_final=is_final))
        await _until(told.is_set, CLOSE_TIMEOUT_MS / 1000)

    async def close(self) -> None:
        """Leave the group and give everything back. A call that another task has under way ends with what it has."""
        calls = self._calls
        if self._task.is_closed:
            return
        if calls is None:
            self._task.is_closed = True
            return
        calls.wakeup()
        await self._task.end()
        try:
            await self._leave(calls, is_final=True)
        finally:
            calls.close()
            if calls._group is not None:
                await _until(lambda: calls._group is None or calls._group.has_ended, THREAD_END_S)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._calls is not None and self._calls._group is not None:
            self._calls._group.is_failed = error is not None
        await self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a Consumer holds sockets and mappings of its process: create one per process")


async def _until(is_so: Callable[[], bool], timeout_s: float) -> None:
    """Wait for what another thread does in a moment."""
    deadline_s = time.monotonic() + timeout_s
    while not is_so() and time.monotonic() < deadline_s:
        await asyncio.sleep(LOOK_S)
