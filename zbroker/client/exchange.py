"""Requests out, replies in: by lane or by socket, to callbacks.

THREADS. `submit` may be called from any thread. Replies are delivered by whoever pumps: a thread that waits for its
own reply pumps itself, so an acknowledgement costs no thread switch. One thread pumps at a time; others wait until it
has delivered something, or take over. Callbacks run in the pumping thread, one at a time, outside the lock; they may
submit, and must not wait.

LOSS. ZeroMQ promises at most once, and a worker may die: each request has a deadline, after which its callback gets the
number of RequestTimedOutError. What is certain to stay unanswered is said at once: NotLeaderForPartitionError's number
when the process it was sent to is seen dead (pidfd) or its lane is gone, BrokerNotAvailableError's when the router that
was to carry it is, or the connection to it. Whether to send again is the caller's decision.

ORDER. Requests that go one way, the lane or the socket, arrive in their order. Between the two there is none: who needs
one asks for the `way` and sends `over` it alone while anything is unanswered there.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from types import EllipsisType
from typing import Any, Final

from zbroker import ids
from zbroker.client.fork_guard import check_process, guard, let_go
from zbroker.client.lanes import ClientLane, Frame
from zbroker.client.process_watch import ProcessWatch
from zbroker.client.router_way import RouterWay
from zbroker.client.unanswered import OnReply, Unanswered, pending_of
from zbroker.clock import NS_PER_MS
from zbroker.errors import (
    BrokerError,
    BrokerNotAvailableError,
    ClosedError,
    ConcurrentUseError,
    NotLeaderForPartitionError,
    ThrottlingQuotaExceededError,
)
from zbroker.shm.doorbell import Doorbell
from zbroker.shm.spin import SpinWatch
from zbroker.transport.sockets import Context, DealerSocket
from zbroker.wire.layout import Api, pack_request, unpack_reply

ATTEMPT_TIMEOUT_MS: Final = 1_000
SLEEP_MS: Final = 100
SPIN_US: Final = 200
LOOK_INTERVAL_NS: Final = NS_PER_MS
EXPIRY_INTERVAL_NS: Final = 20 * NS_PER_MS
SOCKET_FRAME_BYTES_MAX: Final = 64 << 20
_WAKE: Final = b"\0\0\0\0"
_HELLO: Final = int(Api.HELLO)


class Exchange:
    """See the module. It belongs to the process that made it."""

    def __init__(self, address: str) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._pump_lock = threading.Lock()
        self._unanswered = Unanswered()
        self._correlations = count(int.from_bytes(os.urandom(6), "little"))  # another client's answer must not fit
        self._lanes: dict[int, ClientLane] = {}
        self._lane_list: tuple[tuple[int, ClientLane], ...] = ()
        self._closing_lanes: list[ClientLane] = []
        self._is_asleep = False
        self._pumping_thread = 0
        self._next_expiry_ns = 0
        self._next_look_ns = 0
        self._spin = SpinWatch(SPIN_US, len(os.sched_getaffinity(0)))
        self.is_closed = False
        self.has_more: Callable[[], bool] = bool  # what else than an answer ends a sleep: nothing
        self.last_pump_ns = 0
        self._context = Context()
        self._socket = DealerSocket(
            self._context, address, message_max_bytes=SOCKET_FRAME_BYTES_MAX, linger_ms=200, is_watched=True
        )
        self._router_way = RouterWay(self._socket, self._unanswered)
        self._doorbell = Doorbell()
        self._bell_file = self._doorbell.fileno()
        self._poll = select.poll()
        self._watch = ProcessWatch(self._poll)
        self._poll.register(self._socket.fileno(), select.POLLIN)
        self._poll.register(self._doorbell.fileno(), select.POLLIN)
        guard(self)

    def check_usable(self) -> None:
        """Raise ForkError in another process than the one that connected, ClosedError after `close`."""
        if self.is_closed:  # as it is in every forked child: see fork_guard
            check_process(self._pid)
            raise ClosedError("this client is closed")

    def submit(
        self,
        target: int,
        api: int,
        frames: Sequence[Frame],
        on_reply: OnReply | None,
        *,
        topic_id: int = 0, partition: int = 0, leader_epoch: int = -1, acks: int = 0, flags: int = 0,
        timeout_ms: int = ATTEMPT_TIMEOUT_MS, over: ClientLane | EllipsisType | None = ...,
    ) -> int:  # fmt: skip
        """Send a request, by lane when one is open to `target`, else by socket; or `over` the one way that `way` gave,
        which loses it when that lane is gone. Returns its correlation.

        `on_reply(error number, body frames)` is called once, by a pump; None: no reply is expected. Never blocks: what
        cannot be sent now is sent by the next pump.
        """
        with self._lock:
            if self.is_closed:
                self.check_usable()
            correlation = next(self._correlations)
            header = pack_request(api, correlation, target, topic_id, partition, leader_epoch, acks, flags, timeout_ms)
            message = (header, *frames)
            lane = self.way(target, *map(len, frames)) if over is ... else over
            if on_reply is not None:
                deadline_ns = time.monotonic_ns() + timeout_ms * NS_PER_MS
                self._unanswered.add(correlation, pending_of((on_reply, deadline_ns, target, lane)))
            if lane is None:
                self._send_by_socket(message, correlation if on_reply is not None else 0, is_hello=api == _HELLO)
            elif self._lanes.get(target) is lane:
                try:
                    if not lane.send(message, correlation if on_reply is not None else 0):
                        text = "too much waits for the lane"
                        self._unanswered.lose(correlation, ThrottlingQuotaExceededError.code, text)
                except BrokerError as error:
                    self._drop_lane(target, error.message)
            else:
                self._unanswered.lose(correlation, NotLeaderForPartitionError.code, "the lane is gone")
                self._wake_pump()
            return correlation

    def _send_by_socket(self, message: tuple[Frame, ...], correlation: int, *, is_hello: bool) -> None:
        self._router_way.send(message, correlation, is_hello=is_hello)
        # Sending may swallow the signal of what has come meanwhile, and what must wait needs shorter sleeps.
        if self._is_asleep and (self._router_way.is_backed_up or self._socket.has_input()):
            self._wake_pump()

    def way(self, target: int, *sizes_bytes: int) -> ClientLane | None:
        """The way that a request with body frames of these sizes would go now: a lane, or None for the socket."""
        lane = self._lanes.get(target)
        if lane is None or (sum(sizes_bytes) > lane.body_bytes_safe and not lane.fits(sizes_bytes)):
            return None
        return lane

    def _wake_pump(self) -> None:
        if self._is_asleep:
            with contextlib.suppress(BlockingIOError):  # the pipe is full: the pump is about to wake
                os.write(self._doorbell.write_fd, _WAKE)

    def forget(self, correlation: int) -> None:
        """Give a request up: its callback will not be called."""
        with self._lock:
            self._unanswered.take(correlation, None)

    def _add_lane(self, target: int, lane: ClientLane) -> ClientLane | None:
        """Send requests for `target` through this lane from now on, unless there is one already. None: the worker that
        opened it has ended."""
        with self._lock:
            if target in self._lanes:
                lane.close()
            else:
                self._lanes[target] = lane
                self._lane_list = tuple(self._lanes.items())
                if not self._watch.watch(target, lane.worker_incarnation):
                    self._drop_lane(target, f"{ids.process_name(target)} has ended")
                # A pump that sleeps has not told this lane's worker so.
                self._wake_pump()
            return self._lanes.get(target)

    def _drop_lane(self, target: int, text: str) -> None:
        """Use a lane no more; what was sent through it and is not answered is lost. The lock is held."""
        lane = self._lanes.pop(target, None)
        if lane is None:
            return
        self._lane_list = tuple(self._lanes.items())
        # A pump may be reading it: only a pump unmaps it.
        self._closing_lanes.append(lane)
        self._unanswered.lose_where(lambda pending: pending.way is lane, NotLeaderForPartitionError.code, text)
        self._wake_pump()

    def wait_for(self, is_done: Callable[[], bool], timeout_ms: float) -> bool:
        """Pump until `is_done`, at most `timeout_ms`. Returns whether it is. Ctrl-C interrupts it.

        Raises ConcurrentUseError in a callback: nobody could deliver what it waits for.
        """
        if self._pumping_thread == threading.get_ident() and not is_done():
            raise ConcurrentUseError("a callback must not wait for the broker: it is what delivers the answers")
        deadline_ns = time.monotonic_ns() + int(timeout_ms * NS_PER_MS)
        while not is_done():
            left_ns = deadline_ns - time.monotonic_ns()
            if left_ns <= 0 or self.is_closed:
                return is_done()
            if self._pump_lock.acquire(timeout=min(left_ns / 1e9, SLEEP_MS / 1000)):
                try:
                    self._doorbell.forget_rings()  # before the question: what rings after it must end the sleep
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
            self._doorbell.forget_rings()
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
        if (delivered := self._deliver()) or timeout_ms <= 0:
            return delivered
        if self._lane_list and self._spin.watch(self._has_come):
            return self._deliver()
        self._sleep(min(timeout_ms, SLEEP_MS))
        if self._doorbell.has_rung:
            self._spin.watch_for_announced(self._has_come)
        return 0 if self.has_more() else self._deliver()  # who waits for more than answers has it: they may come later

    def _has_come(self) -> bool:
        for _, lane in self._lane_list:
            if lane.readable():
                return True
        return self.has_more()

    def _sleep(self, timeout_ms: float) -> None:
        """Block until something may have come. No lock is held while it does."""
        with self._lock:
            if self.is_closed or self._unanswered.has_lost:
                return
            lanes = self._lane_list
            is_backed_up = self._router_way.is_backed_up
            self._is_asleep = True
        ready: list[tuple[int, int]] = []
        try:
            may_sleep = True
            for _, lane in lanes:
                is_backed_up = is_backed_up or bool(lane.outbox)
                may_sleep = lane.prepare_sleep() and may_sleep
            may_sleep = may_sleep and not self.has_more()
            with self._lock:
                if self._socket.needs_look and self._socket.has_input():
                    may_sleep = False
                may_sleep = may_sleep and not self._unanswered.has_lost
            if may_sleep:
                ready = self._poll.poll(1 if is_backed_up else max(timeout_ms, 0.05))
        finally:  # also after Ctrl-C: the next sleep begins awake
            self._is_asleep = False
            for _, lane in lanes:
                lane.awake()
        for fd, _ in ready:
            if fd == self._bell_file:
                self._doorbell.has_rung = True
            elif fd == self._socket.fileno():
                self._socket.needs_look = True
            else:
                self._look_for_deaths_next()

    def _look_for_deaths_next(self) -> None:
        """A watched process has ended: said by the next delivery, for in there callbacks are known to be callbacks."""
        self._next_expiry_ns = 0

    def _process_died(self, target: int) -> None:
        lane = self._lanes.get(target)
        if lane is not None:
            # What it answered before it died is in the ring, and counts; what contradicts itself there does not.
            with contextlib.suppress(BrokerError):
                self._take_from(lane)
        text = f"{ids.process_name(target)} has ended"
        with self._lock:
            self._watch.forget(target)
            self._drop_lane(target, text)
            if target == ids.ROUTER:
                self._router_way.hold()
                self._unanswered.lose_where(lambda p: p.way is None, BrokerNotAvailableError.code, text)
            else:
                self._unanswered.lose_where(lambda p: p.target == target, NotLeaderForPartitionError.code, text)
        self.process_ended(target)

    def process_ended(self, target: int) -> None:
        """A process that was watched is gone. Called by the pump, without the lock."""

    def _deliver(self) -> int:
        """Deliver what has come. Returns how many callbacks were called."""
        self._pumping_thread = threading.get_ident()
        try:
            now_ns = self.last_pump_ns = time.monotonic_ns()
            if self._router_way.is_backed_up:
                with self._lock:
                    if not self.is_closed:
                        self._router_way.flush()
            delivered = 0
            for target, lane in self._lane_list:
                try:
                    if lane.readable():
                        delivered += self._take_from(lane)
                    if lane.outbox:
                        with self._lock:
                            lane.flush(self._unanswered.wants)
                except BrokerError as error:
                    with self._lock:
                        self._drop_lane(target, error.message)
            # Who waits for what a lane has brought need not wait for a look at the socket, or at the time, as well.
            late_ns = now_ns - (EXPIRY_INTERVAL_NS if delivered else 0)
            if self._socket.needs_look or late_ns >= self._next_look_ns:
                self._next_look_ns = now_ns + LOOK_INTERVAL_NS
                delivered += self._take_from_socket()
            if late_ns >= self._next_expiry_ns:
                self._next_expiry_ns = now_ns + EXPIRY_INTERVAL_NS
                self._look_for_losses(now_ns)
            if self._closing_lanes:
                with self._lock:
                    while self._closing_lanes:
                        self._closing_lanes.pop().close()
            return delivered + (self._unanswered.settle() if self._unanswered.lost else 0)
        finally:
            self._pumping_thread = 0

    def _look_for_losses(self, now_ns: int) -> None:
        with self._lock:
            self._unanswered.lose_late(now_ns)
            if self._socket.has_lost_connection():
                text = "the connection to the router was lost"
                self._unanswered.lose_where(lambda p: p.way is None, BrokerNotAvailableError.code, text)
            # Deaths are seen also while the answers of others leave no time to sleep.
            ended = self._watch.ended()
        for number in ended:
            self._process_died(number)

    def _take_from_socket(self) -> int:
        taken = 0
        while True:
            with self._lock:
                message = self._socket.receive() if not self.is_closed and self._socket.has_input() else None
            if message is None:
                return taken
            taken += self._take(message)

    def _take_from(self, lane: ClientLane) -> int:
        taken = 0
        while lane.readable() and (message := lane.receive()) is not None:
            taken += self._take(message)
        if taken:
            self._spin.note_work()
        return taken

    def _take(self, message: Sequence[Any]) -> int:
        try:
            error, correlation = unpack_reply(message[0])
        except BrokerError:
            return 0
        with self._lock:
            pending = self._unanswered.take(correlation, None)
        if pending is None:
            return 0
        pending.on_reply(error, list(message[1:]))
        return 1

    def close(self) -> None:
        """Close lanes and socket. Requests that are not answered are given up. In a forked child it touches nothing."""
        if self.is_closed:
            return
        if self._pumping_thread == threading.get_ident():
            raise ConcurrentUseError("a callback must not close its client: it is the client that calls it")
        with self._lock:
            self.is_closed = True
        let_go(self)
        if os.getpid() != self._pid:
            return
        with self._pump_lock, self._lock:
            for target in list(self._lanes):
                self._drop_lane(target, "this client was closed")
            while self._closing_lanes:
                self._closing_lanes.pop().close()
            self._watch.close()
            self._socket.close()
            self._context.close()
            self._doorbell.close()
            self._unanswered.clear()
            self._router_way.clear()

    def __reduce__(self) -> Any:
        raise TypeError("a client holds sockets and shared memory of its process: create one per process")
