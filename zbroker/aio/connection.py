"""A client's connection on an event loop: the loop watches its descriptors and delivers what has come.

Everything happens in the loop's thread; `wake` alone may come from another. Between two turns of the loop the
connection is asleep in the sense of `exchange`: the lanes' workers know that they have to ring. What would wait there
raises here, unless `replayed` runs it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from zbroker import ids
from zbroker.aio.replay import Needed, Pause, Replay
from zbroker.client.connection import (
    CONNECT_TIMEOUT_MS,
    HELLO_ATTEMPT_MS,
    LANE_RETRY_NS,
    LANE_TIMEOUT_MS,
)
from zbroker.client.exchange import ATTEMPT_TIMEOUT_MS
from zbroker.client.lanes import ClientLane, Frame
from zbroker.client.process_watch import ProcessWatch
from zbroker.client.settings import ConnectionSettings
from zbroker.client.sleep import WakeableConnection
from zbroker.clock import NS_PER_MS
from zbroker.errors import (
    BrokerError,
    BrokerNotAvailableError,
    ClosedError,
    ConcurrentUseError,
    CoordinatorNotAvailableError,
    LaneRefusedError,
    LeaderNotAvailableError,
    RequestTimedOutError,
    ThrottlingQuotaExceededError,
    error_for,
)
from zbroker.shm.lane import ring_bytes_for
from zbroker.wire.codec import decode, encode
from zbroker.wire.layout import Api
from zbroker.wire.messages import LaneOffer, OpenLane, Welcome

TICK_S: Final = 0.05  # between two looks at deadlines while anything is unanswered
BACKED_UP_TICK_S: Final = 0.001  # while a lane or the socket has no room
ROUNDS_A_TURN: Final = 8
_NOT_DELIVERED: Final = (CoordinatorNotAvailableError, ThrottlingQuotaExceededError)
_NOBODY: Final = Welcome(0, "", "", "", "", 0, 0, False, 0)

R = TypeVar("R")


class _LoopPoll:
    """Descriptors that an event loop watches."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_ready: Callable[[int], None]) -> None:
        self._loop = loop
        self._on_ready = on_ready

    def register(self, fd: int, _events: int) -> None:
        """See Poll."""
        self._loop.add_reader(fd, self._on_ready, fd)

    def unregister(self, fd: int) -> None:
        """See Poll."""
        self._loop.remove_reader(fd)


class LoopConnection(WakeableConnection):
    """See the module. Make it in the loop that it belongs to, then await `connect`."""

    is_replayed = True

    def __init__(
        self, settings: ConnectionSettings, *, request_bytes: int = 32 << 10, reply_bytes: int = 32 << 10
    ) -> None:
        """Raises ConfigError for an address that is none, BrokerNotAvailableError for a directory that is not there."""
        self._loop = asyncio.get_running_loop()
        self._replay: Replay | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._asked: set[asyncio.Future[Any]] = set()
        self._turns: set[asyncio.Future[None]] = set()
        self._opening: dict[int, asyncio.Task[None]] = {}
        self._lane_error: BrokerError | None = None
        self.on_turn: Callable[[], None] = lambda: None
        """Called whenever something may have come."""
        super().__init__(settings, request_bytes=request_bytes, reply_bytes=reply_bytes)

    def _say_hello(self) -> Welcome:
        return _NOBODY

    def _watch_router(self) -> bool:
        return self.welcome is not _NOBODY and super()._watch_router()

    async def connect(self) -> None:
        """Be welcomed. Raises BrokerNotAvailableError when nothing answers; it is closed then."""
        poll = _LoopPoll(self._loop, self._on_ready)
        self._watch = ProcessWatch(poll)
        poll.register(self._socket.fileno(), 0)
        poll.register(self._doorbell.fileno(), 0)
        timeout_ms = min(CONNECT_TIMEOUT_MS, self.settings.request_timeout_ms)
        try:
            frames = await self.ask(
                ids.ROUTER, Api.HELLO, [self._hello()], timeout_ms=timeout_ms, attempt_ms=HELLO_ATTEMPT_MS
            )
            self.welcome = self._checked_welcome(frames)
        except RequestTimedOutError as error:
            self.close()
            raise BrokerNotAvailableError(f"no broker answers at {self._endpoint.address}") from error
        except BaseException:
            self.close()
            raise
        self._watch_router()

    # --- turns -------------------------------------------------------------------------------------------------------

    def _on_ready(self, fd: int) -> None:
        if fd == self._doorbell.fileno():
            self._doorbell.drain()
        elif fd == self._socket.fileno():
            self._socket.needs_look = True
        else:
            self._look_for_deaths_next()
        self._turn()

    def _turn(self) -> None:
        """Deliver what has come, and go to sleep as the workers see it."""
        if self.is_closed:
            return
        for _ in range(ROUNDS_A_TURN):
            self._awake()
            self._deliver()
            if self.is_closed or self._has_gone_to_sleep():
                break
        else:
            self._loop.call_soon(self._turn)  # others have their turn, too
        self.on_turn()
        while self._turns:
            _settle(self._turns.pop())
        self._keep_ticking()

    def _awake(self) -> None:
        self._is_asleep = False
        for _, lane in self._lane_list:
            lane.awake()

    def _has_gone_to_sleep(self) -> bool:
        self._is_asleep = True
        may_sleep = all(lane.prepare_sleep() for _, lane in self._lane_list)
        if self._socket.needs_look and self._socket.has_input():
            may_sleep = False
        return may_sleep and not self._unanswered.has_lost

    def _keep_ticking(self) -> None:
        if self.is_closed or (self._ticker is not None and not self._ticker.cancelled()):
            return
        if self.is_backed_up:
            self._ticker = self._loop.call_later(BACKED_UP_TICK_S, self._tick)
        elif len(self._unanswered):
            self._ticker = self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticker = None
        self._turn()

    def submit(self, *arguments: Any, **options: Any) -> int:
        """See Exchange."""
        correlation = super().submit(*arguments, **options)
        if self._unanswered.has_lost:
            self._loop.call_soon(self._turn)
        elif self.is_backed_up and self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        self._keep_ticking()
        return correlation

    async def turned(self, timeout_ms: float) -> None:
        """Return when something may have come, or after the time."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._turns.add(future)
        timer = self._loop.call_later(max(0.0, timeout_ms) / 1000, _settle, future)
        try:
            await future
        finally:
            timer.cancel()
            self._turns.discard(future)

    async def _turned_until(self, is_done: Callable[[], bool], timeout_ms: float) -> None:
        deadline_ns = time.monotonic_ns() + int(timeout_ms * NS_PER_MS)
        while not is_done() and (left_ns := deadline_ns - time.monotonic_ns()) > 0:
            await self.turned(left_ns / NS_PER_MS)

    # --- questions ---------------------------------------------------------------------------------------------------

    async def ask(
        self,
        target: int,
        api: int,
        frames: Sequence[Frame] = (),
        *,
        topic_id: int = 0,
        partition: int = 0,
        leader_epoch: int = -1,
        timeout_ms: int | None = None,
        attempt_ms: int = ATTEMPT_TIMEOUT_MS,
        repeats: bool = True,
    ) -> list[Any]:
        """As `Connection.request`, awaited."""
        total_ms = self.settings.request_timeout_ms if timeout_ms is None else timeout_ms
        deadline_ns = time.monotonic_ns() + total_ms * NS_PER_MS
        backoff_ms = 1.0
        while True:
            left_ms = max(1, (deadline_ns - time.monotonic_ns()) // NS_PER_MS)
            once_ms = min(left_ms, attempt_ms) if repeats else left_ms
            number, body = await self._ask_once(
                target, api, frames, topic_id=topic_id, partition=partition, leader_epoch=leader_epoch,
                timeout_ms=once_ms,
            )  # fmt: skip
            if number == 0:
                return body
            error = error_for(number, bytes(body[0]).decode("utf-8", "replace") if body else "")
            may_repeat = error.retriable if repeats else isinstance(error, _NOT_DELIVERED)
            if not may_repeat or time.monotonic_ns() >= deadline_ns:
                raise error
            if number != RequestTimedOutError.code:
                await asyncio.sleep(min(backoff_ms, left_ms) / 1000)
                backoff_ms = min(backoff_ms * 2, self.settings.retry_backoff_ms)

    async def _ask_once(self, *arguments: Any, **options: Any) -> tuple[int, list[Any]]:
        future: asyncio.Future[tuple[int, list[Any]]] = self._loop.create_future()

        def answered(number: int, body: list[Any]) -> None:
            if not future.done():
                future.set_result((number, body))

        self._asked.add(future)
        correlation = self.submit(*arguments, answered, **options)
        try:
            return await future
        finally:
            self._asked.discard(future)
            if not self.is_closed:
                self.forget(correlation)

    async def ask_lane(self, target: int) -> ClientLane | None:
        """As `Connection.lane`, awaited."""
        lane = self._lanes.get(target)
        if lane is not None and not lane.is_closed_by_worker:
            return lane
        if not self.shared_memory or time.monotonic_ns() < self._lane_refused_ns.get(target, 0):
            return None
        with self._lock:
            self._drop_lane(target, "the worker has closed the lane")
        sizes = encode(OpenLane(ring_bytes_for(self._request_bytes), ring_bytes_for(self._reply_bytes)))
        try:
            frames = await self.ask(target, Api.OPEN_LANE, [sizes], timeout_ms=LANE_TIMEOUT_MS, repeats=False)
            fresh = ClientLane(decode(LaneOffer, frames[0]), self._doorbell.write_fd, self.welcome.owner_uid)
            lane = self._add_lane(target, fresh)
        except BrokerError as error:
            if self.settings.transport == "shm" and isinstance(error, LaneRefusedError):
                raise
            if not isinstance(error, LeaderNotAvailableError):
                self._lane_refused_ns[target] = time.monotonic_ns() + LANE_RETRY_NS
            return None
        self._turn()  # its worker is to know that this side sleeps
        return lane

    async def replayed(self, call: Callable[[], R], timeout_ms: float | None = None) -> R:
        """What `call` returns, which may ask and wait as if it had a thread: see `replay`. Raises what it raises, and
        after `timeout_ms` (None: request_timeout_ms) without an end the newest error of an answer."""
        if asyncio.get_running_loop() is not self._loop:
            raise ConcurrentUseError("this client belongs to the event loop that it was started in")
        total_ms = self.settings.request_timeout_ms if timeout_ms is None else timeout_ms
        deadline_ns = time.monotonic_ns() + int(total_ms * NS_PER_MS)
        replay = Replay()
        while True:
            before, self._replay = self._replay, replay
            replay.begin_run()
            try:
                return call()
            except Needed as found:
                needed = found
            finally:
                self._replay = before
            if isinstance(needed, Pause) and time.monotonic_ns() >= deadline_ns:
                raise replay.failure or RequestTimedOutError(f"not done within {total_ms:.0f} ms")
            await replay.fetch(needed)
            if isinstance(needed, Pause):
                self._seen_ns.clear()

    @property
    def is_replaying(self) -> bool:
        """Whether what runs now is run by `replayed`."""
        return self._replay is not None

    def request(self, target: int, api: int, frames: Sequence[Frame] = (), **options: Any) -> list[Any]:
        """As `Connection.request`, inside `replayed`."""
        place = (options.get("topic_id", 0), options.get("partition", 0))
        key = (target, int(api), place, b"".join(frames))
        found: list[Any] = self._answer(key, lambda: self.ask(target, api, frames, **options))
        return found

    def lane(self, target: int) -> ClientLane | None:
        """As `Connection.lane`, inside `replayed`; elsewhere None while it is being opened."""
        lane = self._lanes.get(target)
        if lane is not None and not lane.is_closed_by_worker:
            return lane
        if self._replay is not None:
            found: ClientLane | None = self._replay.answer(("lane", target), lambda: self.ask_lane(target))
            return found
        if self._lane_error is not None:
            error, self._lane_error = self._lane_error, None
            raise error
        if self.shared_memory and target not in self._opening:
            self._opening[target] = self._loop.create_task(self._open_behind(target))
        return None

    async def _open_behind(self, target: int) -> None:
        try:
            await self.ask_lane(target)
        except BrokerError as error:
            self._lane_error = error
        finally:
            del self._opening[target]

    def wait_for(self, is_done: Callable[[], bool], timeout_ms: float) -> bool:
        """As `Exchange.wait_for`, inside `replayed`."""
        if is_done():
            return True
        self._needs_replay()
        raise Pause("pause", lambda: self._turned_until(is_done, timeout_ms))

    def _answer(self, key: object, get: Callable[[], Any]) -> Any:
        return self._needs_replay().answer(key, get)

    def _needs_replay(self) -> Replay:
        if self._replay is None:
            raise ConcurrentUseError("this would wait inside an event loop: await the call of zbroker.aio instead")
        return self._replay

    def close(self) -> None:
        """See Exchange. Questions that are under way raise ClosedError."""
        if self.is_closed:
            return
        if self._ticker is not None:
            self._ticker.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_reader(self._doorbell.fileno())
        super().close()
        for task in self._opening.values():
            task.cancel()
        for future in [*self._asked, *self._turns]:
            if not future.done():
                future.set_exception(ClosedError("this client is closed"))


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
