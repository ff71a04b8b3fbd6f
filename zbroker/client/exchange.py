"""Requests out, replies in: by lane or by socket, to callbacks.

THREADS. `submit` may be called from any thread. Replies are delivered by whoever pumps: a thread that waits for its
own reply pumps itself, so an acknowledgement costs no thread switch. One thread pumps at a time; others wait until it
has delivered something, or take over. Callbacks run in the pumping thread, one at a time, outside the lock; they may
submit, and must not wait.

LOSS. ZeroMQ promises at most once, and a worker may die: each request has a deadline, after which its callback gets the
number of RequestTimedOutError; when the process it was sent to is seen dead (pidfd), it gets
NotLeaderForPartitionError's at once. Whether to send again is the caller's decision.
"""

from __future__ import annotations

import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final, NamedTuple

from zbroker import ids
from zbroker.client.lanes import ClientLane, Frame
from zbroker.clock import NS_PER_MS
from zbroker.errors import BrokerError, ClosedError, ForkError, NotLeaderForPartitionError, RequestTimedOutError
from zbroker.shm.doorbell import Doorbell
from zbroker.transport.sockets import Context, DealerSocket
from zbroker.wire.layout import pack_request, unpack_header

OnReply = Callable[[int, list[Any]], None]

ATTEMPT_TIMEOUT_MS: Final = 1_000
SLEEP_MS: Final = 100
SPIN_NS: Final = 50_000
EXPIRY_INTERVAL_NS: Final = 20 * NS_PER_MS
OUTBOX_MAX: Final = 10_000
SOCKET_FRAME_BYTES_MAX: Final = 64 << 20

_open: weakref.WeakSet[Exchange] = weakref.WeakSet()


class _Pending(NamedTuple):
    on_reply: OnReply
    deadline_ns: int
    target: int


class Exchange:
    """See the module. It belongs to the process that made it."""

    def __init__(self, address: str) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._pump_lock = threading.Lock()
        self._pending: dict[int, _Pending] = {}
        self._correlations = count(1)
        self._lanes: dict[int, ClientLane] = {}
        self._lane_list: tuple[tuple[int, ClientLane], ...] = ()
        self._watched: dict[int, tuple[int, int]] = {}  # process number -> (pidfd, incarnation)
        self._outbox: deque[tuple[Frame, ...]] = deque()
        self._next_expiry_ns = 0
        self._last_wait_ns = 0
        self._may_spin = len(os.sched_getaffinity(0)) > 1
        self.is_closed = False
        self.last_pump_ns = time.monotonic_ns()
        self._context = Context()
        self._socket = DealerSocket(self._context, address, message_max_bytes=SOCKET_FRAME_BYTES_MAX, linger_ms=200)
        self._doorbell = Doorbell()
        self._poll = select.poll()
        self._poll.register(self._socket.fileno(), select.POLLIN)
        self._poll.register(self._doorbell.fileno(), select.POLLIN)
        _open.add(self)

    def check_usable(self) -> None:
        """Raise ForkError in another process than the one that connected, ClosedError after `close`."""
        if os.getpid() != self._pid:
            raise ForkError(
                f"a client made in pid {self._pid} was used in pid {os.getpid()}; create one per process "
                "(gunicorn: post_fork, celery: worker_process_init)"
            )
        if self.is_closed:
            raise ClosedError("this client is closed")

    def submit(
        self,
        target: int,
        api: int,
        frames: Sequence[Frame],
        on_reply: OnReply | None,
        *,
        topic_id: int = 0,
        partition: int = 0,
        leader_epoch: int = -1,
        acks: int = 0,
        timeout_ms: int = ATTEMPT_TIMEOUT_MS,
    ) -> int:
        """Send a request, by lane when one is open to `target`, else by socket. Returns its correlation.

        `on_reply(error number, body frames)` is called once, by a pump; None: no reply is expected. Never blocks: what
        cannot be sent now is sent by the next pump.
        """
        with self._lock:
            self.check_usable()
            correlation = next(self._correlations)
            header = pack_request(
                api, correlation, target, topic_id=topic_id, partition=partition, leader_epoch=leader_epoch, acks=acks,
                timeout_ms=timeout_ms,
            )  # fmt: skip
            if on_reply is not None:
                deadline_ns = time.monotonic_ns() + timeout_ms * NS_PER_MS
                self._pending[correlation] = _Pending(on_reply, deadline_ns, target)
            lane = self._lanes.get(target)
            message = (header, *frames)
            if lane is not None and lane.fits(message):
                try:
                    lane.send(message)
                except BrokerError:
                    self._drop_lane(target)
            elif (self._outbox or not self._socket.send(message)) and len(self._outbox) < OUTBOX_MAX:
                self._outbox.append(message)
            return correlation

    def forget(self, correlation: int) -> None:
        """Give a request up: its callback will not be called."""
        with self._lock:
            self._pending.pop(correlation, None)

    def _add_lane(self, target: int, lane: ClientLane) -> ClientLane:
        """Send requests for `target` through this lane from now on, unless there is one already."""
        with self._lock:
            if target in self._lanes:
                lane.close()
            else:
                self._lanes[target] = lane
                self._lane_list = tuple(self._lanes.items())
                self._watch(target, lane.worker_incarnation)
            return self._lanes.get(target, lane)

    def _watch(self, target: int, incarnation: int) -> None:
        self._unwatch(target)
        fd = ids.open_pidfd(incarnation)
        if fd is None:
            self._drop_lane(target)
            return
        self._watched[target] = (fd, incarnation)
        self._poll.register(fd, select.POLLIN)

    def _unwatch(self, target: int) -> None:
        watched = self._watched.pop(target, None)
        if watched is not None:
            self._poll.unregister(watched[0])
            os.close(watched[0])

    def _drop_lane(self, target: int) -> None:
        lane = self._lanes.pop(target, None)
        if lane is not None:
            self._lane_list = tuple(self._lanes.items())
            lane.close()
        self._unwatch(target)

    def wait_for(self, is_done: Callable[[], bool], timeout_ms: float) -> bool:
        """Pump until `is_done`, at most `timeout_ms`. Returns whether it is. Ctrl-C interrupts it."""
        deadline_ns = time.monotonic_ns() + int(timeout_ms * NS_PER_MS)
        while not is_done():
            left_ns = deadline_ns - time.monotonic_ns()
            if left_ns <= 0 or self.is_closed:
                return is_done()
            if self._pump_lock.acquire(timeout=min(left_ns / 1e9, SLEEP_MS / 1000)):
                try:
                    if not is_done():
                        self._pump(min(left_ns / NS_PER_MS, SLEEP_MS))
                finally:
                    self._pump_lock.release()
        return True

    def pump(self, timeout_ms: float) -> int:
        """Deliver what has come; wait up to `timeout_ms` for the first. Returns how many callbacks were called."""
        if not self._pump_lock.acquire(timeout=max(timeout_ms, 0) / 1000):
            return 0
        try:
            return self._pump(timeout_ms)
        finally:
            self._pump_lock.release()

    def try_pump(self) -> int:
        """Deliver what has come, unless another thread does so already."""
        if not self._pump_lock.acquire(blocking=False):
            return 0
        try:
            return self._deliver()
        finally:
            self._pump_lock.release()

    def _pump(self, timeout_ms: float) -> int:
        delivered = self._deliver()
        if delivered or timeout_ms <= 0:
            return delivered
        started_ns = time.monotonic_ns()
        if self._may_spin and self._last_wait_ns < SPIN_NS and self._lanes:
            rings = [lane.readable for lane in self._lanes.values()]
            while time.monotonic_ns() - started_ns < SPIN_NS:
                for readable in rings:
                    if readable():
                        self._last_wait_ns = time.monotonic_ns() - started_ns
                        return self._deliver()
        self._sleep(min(timeout_ms, SLEEP_MS))
        self._last_wait_ns = time.monotonic_ns() - started_ns
        return self._deliver()

    def _sleep(self, timeout_ms: float) -> None:
        """Block until something may have come. No lock is held while it does."""
        with self._lock:
            if self.is_closed:
                return
            lanes = list(self._lanes.values())
            backed_up = bool(self._outbox) or any(lane.is_backed_up for lane in lanes)
        may_sleep = True
        try:
            for lane in lanes:
                may_sleep = lane.prepare_sleep() and may_sleep
        except ValueError:
            return  # another thread has just dropped that lane
        if may_sleep and not self._socket.has_input():
            ready = self._poll.poll(1 if backed_up else max(timeout_ms, 0.05))
        else:
            ready = []
        with self._lock:
            for lane in self._lanes.values():
                lane.awake()
        for fd, _ in ready:
            if fd == self._doorbell.fileno():
                self._doorbell.drain()
            elif fd != self._socket.fileno():
                self._process_died(fd)

    def _process_died(self, fd: int) -> None:
        with self._lock:
            target = next((number for number, (pidfd, _) in self._watched.items() if pidfd == fd), None)
            if target is None:
                return
            lane = self._lanes.get(target)
        if lane is not None:
            # What it answered before it died is in the ring, and counts.
            try:
                self._take_from(lane)
            except (BrokerError, ValueError):
                pass
        with self._lock:
            self._drop_lane(target)
            lost = [number for number, pending in self._pending.items() if pending.target == target]
            calls = [self._pending.pop(number).on_reply for number in lost]
        text = f"{ids.process_name(target)} has ended".encode()
        for call in calls:
            call(NotLeaderForPartitionError.code, [text])

    def _deliver(self) -> int:
        now_ns = self.last_pump_ns = time.monotonic_ns()
        delivered = 0
        if self._outbox:
            with self._lock:
                while self._outbox and self._socket.send(self._outbox[0]):
                    self._outbox.popleft()
        for target, lane in self._lane_list:
            try:
                if lane.readable():
                    delivered += self._take_from(lane)
                if lane.is_backed_up:
                    with self._lock:
                        lane.flush()
            except (BrokerError, ValueError):
                with self._lock:
                    self._drop_lane(target)
        while True:
            with self._lock:
                # Asking costs a microsecond, an empty receive ten.
                message = self._socket.receive() if not self.is_closed and self._socket.has_input() else None
            if message is None:
                break
            delivered += self._take(message)
        if now_ns >= self._next_expiry_ns:
            self._next_expiry_ns = now_ns + EXPIRY_INTERVAL_NS
            delivered += self._expire(now_ns)
        return delivered

    def _take_from(self, lane: ClientLane) -> int:
        taken = 0
        while (message := lane.receive()) is not None:
            taken += self._take(message)
        return taken

    def _take(self, message: Sequence[Any]) -> int:
        try:
            header = unpack_header(message[0])
        except BrokerError:
            return 0
        with self._lock:
            pending = self._pending.pop(header.correlation, None)
        if pending is None:
            return 0
        pending.on_reply(header.error, list(message[1:]))
        return 1

    def _expire(self, now_ns: int) -> int:
        with self._lock:
            late = [number for number, pending in self._pending.items() if pending.deadline_ns <= now_ns]
            calls = [self._pending.pop(number).on_reply for number in late]
        for call in calls:
            call(RequestTimedOutError.code, [b"the broker did not answer in time"])
        return len(calls)

    @property
    def pending_count(self) -> int:
        """Requests that are not answered yet."""
        return len(self._pending)

    def close(self) -> None:
        """Close lanes and socket. Requests that are not answered are given up. In a forked child it touches nothing."""
        if self.is_closed:
            return
        self.is_closed = True
        _open.discard(self)
        if os.getpid() != self._pid:
            return
        with self._pump_lock, self._lock:
            for target in list(self._lanes):
                self._drop_lane(target)
            for target in list(self._watched):
                self._unwatch(target)
            self._socket.close()
            self._context.close()
            self._doorbell.close()
            self._pending.clear()

    def __reduce__(self) -> Any:
        raise TypeError("a client holds sockets and shared memory of its process: create one per process")


def _mark_forked() -> None:
    for exchange in list(_open):
        exchange.is_closed = True


os.register_at_fork(after_in_child=_mark_forked)
