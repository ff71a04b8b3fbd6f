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
from typing import Any, Final

from zbroker.client.background import Background, Emits
from zbroker.client.batches import Batch
from zbroker.client.connection import Connection
from zbroker.client.leaders import METADATA_ATTEMPT_MS, Leaders
from zbroker.client.partition_queue import PartitionQueue, Sent
from zbroker.client.producer_ids import ProducerIds
from zbroker.client.settings import ProducerSettings
from zbroker.clock import NS_PER_MS
from zbroker.errors import (
    BrokerError,
    BrokerNotAvailableError,
    FencedLeaderEpochError,
    LeaderNotAvailableError,
    NotLeaderForPartitionError,
    OutOfOrderSequenceNumberError,
    RequestTimedOutError,
    TimeoutError_,
    UnknownLeaderEpochError,
    UnknownProducerIdError,
    UnknownTopicOrPartitionError,
    error_for,
)
from zbroker.wire.layout import FLAG_AWAITED, FLAG_FIRST, Api

RECEIVE_MS: Final = 5
SERVICE_MIN_MS: Final = 0.2
COMPLAINT_INTERVAL_NS: Final = 60_000 * NS_PER_MS

# What a death or a move brings with it, and passes by itself.
_USUAL: Final = frozenset(
    error.code
    for error in (
        BrokerNotAvailableError,
        FencedLeaderEpochError,
        LeaderNotAvailableError,
        NotLeaderForPartitionError,
        OutOfOrderSequenceNumberError,
        RequestTimedOutError,
        UnknownLeaderEpochError,
        UnknownProducerIdError,
        UnknownTopicOrPartitionError,
    )
)

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
        self._is_awaited = False
        self._is_rousing = len(os.sched_getaffinity(0)) > 1
        self.background = Background(self, connection, settings.linger_ms)
        self._queues: dict[tuple[str, int], PartitionQueue] = {}
        self.leaders = Leaders(connection, settings)
        self._counts = {"records_acknowledged": 0, "records_failed": 0, "batches_acknowledged": 0, "batches_failed": 0}
        self._silent_until_ns: dict[tuple[str, int], int] = {}
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
        batch = Batch(queue, now_ns)
        batch.deadline_ns = now_ns + self._settings.delivery_timeout_ms * NS_PER_MS
        return batch

    def transmit(self, queue: PartitionQueue, batch: Batch) -> Sent:
        """Send a closed batch to its leader, if that is known. The lock is held."""
        route = self.leaders.route((queue.topic, queue.partition))
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
        timeout_ms = max(1, min(self._settings.request_timeout_ms, left_ms))

        def answered(number: int, body: list[Any]) -> None:
            self._answered(queue, batch, number, body)

        self._connection.submit(
            target, Api.PRODUCE, frames, answered if self.acks else None,
            topic_id=topic_id, partition=queue.partition, leader_epoch=epoch, acks=self.acks,
            flags=(0 if queue.in_flight else FLAG_FIRST) | (FLAG_AWAITED if self._is_awaited else 0),
            timeout_ms=timeout_ms, over=lane,
        )  # fmt: skip
        return Sent.YES

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
        if number and number not in _USUAL:
            self._complain(queue, error_for(number, bytes(body[0]).decode("utf-8", "replace") if body else ""))
        self._make_calls(calls)
        if number and self.background.is_idle:
            self.background.wake()

    def _complain(self, queue: PartitionQueue, error: BrokerError) -> None:
        """Say why nothing is acknowledged: what the next try may cure is otherwise told only when it was the last."""
        now_ns = time.monotonic_ns()
        place = (queue.topic, queue.partition)
        if error.retriable and now_ns >= self._silent_until_ns.get(place, 0):
            self._silent_until_ns[place] = now_ns + COMPLAINT_INTERVAL_NS
            _log.warning("%s:%d: %s; the producer tries again", queue.topic, queue.partition, error)

    def count_closed(self, batch: Batch) -> None:
        """A batch takes memory until it is done. The lock is held."""
        self.used_bytes += batch.size_bytes

    def count_done(self, batch: Batch) -> None:
        """A batch is acknowledged or failed. The lock is held."""
        self.used_bytes -= batch.size_bytes
        kind = "failed" if batch.error is not None else "acknowledged"
        self._counts[f"batches_{kind}"] += 1
        self._counts[f"records_{kind}"] += batch.count

    def receive_some(self, queue: PartitionQueue) -> None:
        """After a batch of `queue` was closed: deliver acknowledgements that have come, without waiting.

        Not after each batch: several at a time are received for little more than one.
        """
        if len(queue.in_flight) > self.max_in_flight // 2:
            self.tended_ns = time.monotonic_ns()
            self._connection.try_pump()
        if self._deferred:
            self._make_calls([])
        if self.background.is_idle:
            self.background.wake()

    def rouse(self, queue: PartitionQueue) -> None:
        """A batch is about to be made and sent: if its worker sleeps, let it wake up meanwhile."""
        route = self.leaders.route((queue.topic, queue.partition))
        if self._is_rousing and route is not None and not queue.in_flight:
            self._connection.rouse(route.process)

    def wait_done(self, batch: Batch, timeout_ms: float) -> bool:
        """Send the batch now, linger or not, and receive until it is done."""
        self._connection.check_usable()
        self.waited_ns = time.monotonic_ns()
        queue = batch.queue
        if queue.open is batch:
            self.rouse(queue)
            with self.lock:
                if queue.open is batch:
                    self._is_awaited = self._is_rousing and self.acks in (1, -1)
                    try:
                        queue.close_open()
                    finally:
                        self._is_awaited = False
        self._make_calls([])
        if batch.queue.needs_leader:
            self._serve_queues()
        return self.wait_for(lambda: batch.is_done, timeout_ms)

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
                return not marks

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
        found: dict[str, float] = {**self._counts}
        found["buffer_bytes"] = self.used_bytes
        found["records_unanswered"] = self.unanswered_records()
        return found

    @property
    def has_emitters(self) -> bool:
        """See Work."""
        return bool(self.emitters)

    def has_work(self) -> bool:
        """See Work. Without the lock: a thread that is interrupted while it has it holds up whoever sends."""
        return any(not queue.is_empty for queue in list(self._queues.values()))

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
                        queue.close_open()

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
