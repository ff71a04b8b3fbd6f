"""What a producer does behind its `send`: transmit, receive, look for leaders, send again, give up.

Whoever waits does it: a thread in `result` or `flush`, else the one in the background.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from zbroker.client.background import Background, Emits
from zbroker.client.batches import Batch, State
from zbroker.client.complaints import Complaints
from zbroker.client.connection import Connection
from zbroker.client.leaders import METADATA_ATTEMPT_MS, Leaders
from zbroker.client.partition_queue import PartitionQueue, Sent
from zbroker.client.producer_ids import ProducerIds
from zbroker.client.settings import ProducerSettings
from zbroker.clock import NS_PER_MS
from zbroker.errors import BrokerError, TimeoutError_, error_for
from zbroker.wire.layout import FLAG_AWAITED, FLAG_FIRST, Api

RECEIVE_MS: Final = 5
SERVICE_MIN_MS: Final = 0.2

_PRODUCE: Final = int(Api.PRODUCE)  # packing a member takes longer
_DONE: Final = State.DONE

_log = logging.getLogger(__name__)


class Delivery:
    """See the module. It is the `Sending` of all queues of one producer."""

    def __init__(self, connection: Connection, settings: ProducerSettings) -> None:
        assert isinstance(settings.acks, int)
        self._connection = connection
        self._settings = settings
        self.lock = threading.RLock()
        self.acks = settings.acks
        self.retries = settings.retries
        self.backoff_max_ms = settings.retry_backoff_ms
        self.max_in_flight = settings.max_in_flight_requests_per_connection
        self.is_idempotent = settings.enable_idempotence
        self.fatal: BrokerError | None = None
        self._producer_ids = ProducerIds(connection, settings.transactional_id or "")
        self.compression: str = settings.compression_type
        # Held until the end: what a forgotten emitter has not handed over would go with it.
        self.emitters: set[Emits] = set()
        self.compression_level = settings.compression_level
        self.used_bytes = 0
        self.failed_at_close = 0
        self.waited_ns = 0
        self.tended_ns = 0
        self._delivery_timeout_ns = settings.delivery_timeout_ms * NS_PER_MS
        self._awaited_flag = 0
        self._is_rousing = len(os.sched_getaffinity(0)) > 1
        self.background = Background(self, connection, settings.linger_ms)
        self._queues: dict[tuple[str, int], PartitionQueue] = {}
        self.leaders = Leaders(connection, settings)
        self._acknowledged, self._failed = [0, 0], [0, 0]  # batches, records
        self._complaints = Complaints()
        self._deferred: deque[Callable[[], None]] = deque()
        self._service_lock = threading.Lock()

    def now_ns(self) -> int:
        """The monotonic clock."""
        return time.monotonic_ns()

    def wall_ms(self) -> int:
        """The wall clock."""
        return time.time_ns() // NS_PER_MS

    def queue(self, topic: str, partition: int) -> PartitionQueue:
        """The queue of a partition. The lock is held."""
        key = (topic, partition)
        found = self._queues.get(key)
        if found is None:
            found = self._queues[key] = PartitionQueue(self, topic, partition)
            found.needs_leader = True
        return found

    def new_batch(self, queue: PartitionQueue) -> Batch:
        """A new batch of a queue, with its deadline."""
        now_ns = time.monotonic_ns()
        return Batch(queue, now_ns, now_ns + self._delivery_timeout_ns)

    def transmit(self, queue: PartitionQueue, batch: Batch) -> Sent:
        """Send a closed batch to its leader, if that is known. The lock is held."""
        route = self.leaders.route(queue.place)
        if route is None:
            return Sent.NO_LEADER
        target, topic_id, epoch = route
        assert batch.encoded is not None
        frames = (batch.encoded,) if batch.options is None else (batch.encoded, batch.options)
        lane = self._connection.way(target, *map(len, frames))
        if queue.in_flight and (lane is None or queue.lane is not lane or queue.route != route):
            # What goes by messages may get lost alone, and two ways have no order between them.
            return Sent.NOT_YET
        queue.route, queue.lane = route, lane
        left_ms = (batch.deadline_ns - time.monotonic_ns()) // NS_PER_MS
        self._connection.submit(
            target, _PRODUCE, frames, partial(self._answered, queue, batch) if self.acks else None,
            topic_id=topic_id, partition=queue.partition, leader_epoch=epoch, acks=self.acks,
            flags=self._awaited_flag if queue.in_flight else self._awaited_flag | FLAG_FIRST,
            timeout_ms=max(1, min(self._settings.request_timeout_ms, left_ms)), over=lane,
        )  # fmt: skip
        return Sent.YES

    def close_alone(self, queue: PartitionQueue, *, is_awaited: bool) -> None:
        """Close and send a batch of one record, or one that somebody waits for. The lock is held."""
        if self._is_rousing:
            # Its worker, if it sleeps, wakes up while the batch is made.
            route = self.leaders.route(queue.place)
            if route is not None and not queue.in_flight:
                self._connection.rouse(route[0])
            if is_awaited and self.acks in (1, -1):
                self._awaited_flag = FLAG_AWAITED
        try:
            queue.close_open()
        finally:
            self._awaited_flag = 0

    def fence(self, error: BrokerError) -> list[Callable[[], None]]:
        """See Sending. The lock is held."""
        self.fatal = error
        return [call for queue in self._queues.values() for call in queue.abandon(error)]

    def defer(self, calls: list[Callable[[], None]]) -> None:
        """See Sending."""
        self._deferred.extend(calls)

    def _make_calls(self, calls: list[Callable[[], None]]) -> None:
        """Make calls into a user's code, and those that were deferred. What they raise is logged: the thread that
        happens to make them has nothing to do with it. The lock is not held."""
        self._deferred.extend(calls)
        while self._deferred:
            try:
                call = self._deferred.popleft()
            except IndexError:
                return  # another thread has made it
            try:
                call()
            except Exception:
                _log.exception("a delivery callback failed")

    def _answered(self, queue: PartitionQueue, batch: Batch, number: int, body: list[Any]) -> None:
        with self.lock:
            if number and error_for(number).retriable:
                self.leaders.forget(queue.topic, queue.partition)
            calls = queue.answered(batch, number, body)
        if number:
            self._complaints.note(queue.place, number, body)
        if calls or self._deferred:
            self._make_calls(calls)
        if number and self.background.is_idle:
            self.background.wake()

    def count_closed(self, batch: Batch) -> None:
        """A batch takes memory until it is done. The lock is held."""
        self.used_bytes += batch.size_bytes

    def count_done(self, batch: Batch) -> None:
        """A batch is acknowledged or failed. The lock is held."""
        self.used_bytes -= batch.size_bytes
        counts = self._acknowledged if batch.error is None else self._failed
        counts[0] += 1
        counts[1] += batch.count

    def receive_some(self, queue: PartitionQueue, *, is_alone: bool = False) -> None:
        """After a batch of `queue` was closed, `is_alone`: with one record in it, or awaited: deliver acknowledgements
        that have come, without waiting.

        Not after each batch: several at a time are received for little more than one.
        """
        if len(queue.in_flight) > self.max_in_flight // 2:
            self.tended_ns = time.monotonic_ns()
            self._connection.try_pump()
        if self._deferred:
            self._make_calls([])
        if is_alone and queue.in_flight and not queue.waiting:
            self.background.doze()
        elif self.background.is_idle:
            self.background.wake()

    def hurry(self) -> None:
        """See Sending."""
        if self.background.is_idle:
            self.background.wake()

    def wait_done(self, batch: Batch, timeout_ms: float) -> bool:
        """Send the batch now, linger or not, and receive until it is done."""
        if self._connection.is_closed:
            self._connection.check_usable()
        self.waited_ns = time.monotonic_ns()
        queue = batch.queue
        if queue.open is batch:
            with self.lock:
                if queue.open is batch:
                    self.close_alone(queue, is_awaited=True)
        queue.is_awaited = batch.count == 1
        if self._deferred:
            self._make_calls([])
        if queue.needs_leader:
            self._serve_queues()

        def is_done() -> bool:
            return batch.state is _DONE

        first_ms = 0.0 if queue.needs_leader else min(timeout_ms, RECEIVE_MS)  # nothing else can be due before
        return self._connection.wait_for(is_done, first_ms) or self.wait_for(is_done, timeout_ms - first_ms)

    def wait_for(self, is_done: Callable[[], bool], timeout_ms: float) -> bool:
        """Receive, and send again what is due, until `is_done`, at most `timeout_ms`."""
        deadline_ns = time.monotonic_ns() + int(timeout_ms * NS_PER_MS)
        while not is_done():
            left_ms = (deadline_ns - time.monotonic_ns()) / NS_PER_MS
            if left_ms <= 0:
                return is_done()
            if self._connection.is_closed:
                self._connection.check_usable()
            if self._connection.wait_for(is_done, min(left_ms, self.until_service_ms())):
                return True
            self._serve_queues()
        return True

    def flush(self, timeout_ms: int | None, *, is_local: bool = False) -> int:
        """Send everything and wait for its answers; `is_local`: until it was sent. Returns how many records were not
        answered, or not sent, in time."""
        marks = self.close_all()
        limit_ms = self._settings.delivery_timeout_ms + 1_000 if timeout_ms is None else timeout_ms
        has_passed = self._is_in_lane if is_local else PartitionQueue.is_done_until
        self._serve_queues()

        def is_done() -> bool:
            with self.lock:
                while marks and has_passed(*marks[-1]):
                    marks.pop()
            return not marks and not self._is_backed_up()

        self.wait_for(is_done, limit_ms)
        return self._unsent_records() if is_local else self.unanswered_records()

    def close_all(self) -> list[tuple[PartitionQueue, int]]:
        """Close every open batch. Gives the queues, and how many batches of each `is_done_until` has to be asked for:
        what is sent from now on is not waited for."""
        with self.lock:
            queues = list(self._queues.values())
            for queue in queues:
                queue.close_open()
            marks = [(queue, queue.closed_count) for queue in queues]
        self._make_calls([])
        return marks

    def _is_in_lane(self, queue: PartitionQueue, number: int) -> bool:
        """Whether a worker will take every batch up to that one even if this process dies now. The lock is held."""
        return queue.is_sent_until(number) and not (queue.lane is not None and queue.lane.is_backed_up)

    def _unsent_records(self) -> int:
        with self.lock:
            total = 0
            for queue in self._queues.values():
                is_backed_up = queue.lane is not None and queue.lane.is_backed_up
                # What a lane has no room for is in flight, and at the end of it: which batches is not known here.
                batches = [*queue.waiting, *queue.failed, *(queue.in_flight if is_backed_up else ())]
                total += sum(batch.count for batch in batches)
            return total

    def unanswered_records(self) -> int:
        """Records that are queued or on their way."""
        with self.lock:
            total = 0
            for queue in self._queues.values():
                batches = [*queue.waiting, *queue.in_flight, *queue.failed]
                total += sum(batch.count for batch in batches)
                total += len(queue.open.values) if queue.open is not None else 0
            return total

    def metrics(self) -> dict[str, float]:
        """Counts since the start, and what is in the buffer now."""
        found: dict[str, float] = {}
        for kind, counts in ("acknowledged", self._acknowledged), ("failed", self._failed):
            found[f"batches_{kind}"], found[f"records_{kind}"] = counts
        found["buffer_bytes"] = self.used_bytes
        found["records_unanswered"] = self.unanswered_records()
        return found

    @property
    def has_emitters(self) -> bool:
        """See Work."""
        return bool(self.emitters)

    def has_work(self) -> bool:
        """See Work. Without the lock: a thread that is interrupted while it has it holds up whoever sends."""
        return any(not queue.is_empty for queue in list(self._queues.values())) or self._is_backed_up()

    def _is_backed_up(self) -> bool:
        # With acks=0 a batch is done when it was handed over, be it to a lane without room.
        return not self.acks and self._connection.is_backed_up

    def do_what_is_due(self) -> None:
        """See Work."""
        for emitter in list(self.emitters):
            emitter.hand_over()
        self.close_old_batches()
        self._make_calls([])
        self._serve_queues()

    def close_old_batches(self) -> None:
        """Close, and so send, the batches whose linger is over."""
        oldest_ns = time.monotonic_ns() - int(self._settings.linger_ms * NS_PER_MS)
        for queue in list(self._queues.values()):
            batch = queue.open
            if batch is not None and batch.created_ns <= oldest_ns:
                with self.lock:
                    if queue.open is batch:
                        queue.close_old()
        if self._deferred:  # with acks=0 what was closed is done, and nothing else may come to say so
            self._make_calls([])

    def until_service_ms(self) -> float:
        """See Work."""
        due_ns = [queue.retry_ns for queue in list(self._queues.values()) if queue.needs_leader and not queue.is_empty]
        if not due_ns:
            return RECEIVE_MS
        return min(RECEIVE_MS, max(SERVICE_MIN_MS, (min(due_ns) - time.monotonic_ns()) / NS_PER_MS))

    def _serve_queues(self) -> None:
        """Find leaders for queues that need one and are due, and fail what is too old. One thread at a time."""
        now_ns = time.monotonic_ns()
        needy = [q for q in list(self._queues.values()) if q.needs_leader and q.retry_ns <= now_ns and not q.is_empty]
        if not needy or not self._service_lock.acquire(blocking=False):
            return
        reason: BrokerError | None = None
        self.leaders.begin_round()
        try:
            for queue in needy:
                try:
                    self._find_route(queue)
                except BrokerError as error:
                    reason = error
                    with self.lock:
                        queue.leader_unknown()
                    if error.fatal:
                        self._fail_everything(error)
                    elif not error.retriable:
                        self._fail_all(queue, error)
        finally:
            self._service_lock.release()
        calls: list[Callable[[], None]] = []
        with self.lock:
            for queue in needy:
                calls += queue.expire(time.monotonic_ns(), reason)
        self._make_calls(calls)

    def _fail_all(self, queue: PartitionQueue, error: BrokerError) -> None:
        with self.lock:
            calls = queue.abandon(error)
        self._make_calls(calls)

    def _fail_everything(self, error: BrokerError) -> None:
        with self.lock:
            calls = self.fence(error)
        self._make_calls(calls)

    def _find_route(self, queue: PartitionQueue) -> None:
        self.leaders.find(queue.topic, queue.partition)
        identity = None
        if queue.sequences is not None and queue.sequences.identity is None:
            identity = self._producer_ids.get(queue.sequences.generation, METADATA_ATTEMPT_MS)
        with self.lock:
            if identity is not None and queue.sequences is not None:
                queue.sequences.begin(identity)
            queue.leader_found()

    def close(self, error: TimeoutError_) -> None:
        """Fail what is not answered, and end the background thread."""
        self.background.close()
        self.failed_at_close = self.unanswered_records()
        for queue in list(self._queues.values()):
            self._fail_all(queue, error)
