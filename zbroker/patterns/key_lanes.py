"""Several threads work on the records of one consumer; records of one key keep their order.

    with Consumer("orders", group_id="billing", enable_auto_commit=False) as consumer:
        KeyLanes(consumer, workers=8).run(work)

Guarantees: two records of one key, of one partition, are never worked on at the same time, and in the order of the log;
a record without a key waits for none. A slow key holds up no other. What is committed never passes a record that is not
finished: after a death some records are worked on again, none is left out. Before a partition goes to another member,
what is under way in it ends and is committed; what has not begun is dropped, for the next owner.

At most `in_flight_max` records are read ahead; then reading pauses, and the member stays alive. The threads share the
interpreter: they help work that waits (files, databases, networks), not work that computes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable
from typing import Any, Final, Generic, TypeVar

from zbroker.client.consumer import Consumer
from zbroker.errors import BrokerError, CommitFailedError, ConfigError
from zbroker.ids import TopicPartition
from zbroker.patterns.unfinished import Unfinished
from zbroker.record.records import ConsumerRecord

K = TypeVar("K")
V = TypeVar("V")

COMMIT_INTERVAL_MS: Final = 100
DRAIN_TIMEOUT_MS: Final = 30_000


class _Owned:
    """A partition, from when its first record comes until it goes."""

    def __init__(self, tp: TopicPartition) -> None:
        self.tp = tp
        self.unfinished = Unfinished()
        self.running = 0
        self.committed: int | None = None
        self.lanes: dict[Hashable, deque[ConsumerRecord[Any, Any]]] = {}


class KeyLanes(Generic[K, V]):
    """See the module. `stop` may be called from any thread and from a signal handler."""

    def __init__(
        self,
        consumer: Consumer[K, V],
        *,
        workers: int = 8,
        in_flight_max: int = 1_000,
        key_of: Callable[[ConsumerRecord[K, V]], Hashable] | None = None,
        on_error: Callable[[ConsumerRecord[K, V], Exception], None] | None = None,
        drain_timeout_ms: float = DRAIN_TIMEOUT_MS,
    ) -> None:
        """`key_of`: what keeps its order, in place of the record's key; None: nothing.

        `on_error(record, error)` is called by the thread whose work failed; when it returns, the record counts as done.
        Without it, or when it raises, `run` ends with the error. `drain_timeout_ms` bounds how long a partition that
        is asked for by another member is kept for work that is under way.

        Raises ConfigError for a consumer that has no group, or commits by itself what is not finished.
        """
        if consumer.settings.group_id is None or consumer.settings.enable_auto_commit:
            raise ConfigError("KeyLanes needs a consumer with a group_id and enable_auto_commit=False")
        if workers < 1 or in_flight_max < 1:
            raise ConfigError(f"workers={workers}, in_flight_max={in_flight_max}: at least 1")
        self._consumer = consumer
        self._workers = workers
        self._in_flight_max = in_flight_max
        self._key_of = key_of or (lambda record: record.key)
        self._on_error = on_error
        self._drain_timeout_s = drain_timeout_ms / 1000
        self._lock = threading.Lock()
        self._has_ready = threading.Condition(self._lock)
        self._has_ended = threading.Condition(self._lock)
        self._ready: deque[tuple[_Owned, Hashable]] = deque()
        self._owned: dict[TopicPartition, _Owned] = {}
        self._in_flight = 0
        self._is_full = False
        self._is_stopping = False
        self._error: BaseException | None = None
        consumer.add_listener(self)

    def run(self, work: Callable[[ConsumerRecord[K, V]], None]) -> None:
        """Call `work` for each record, in the threads, until `stop`. Then what was begun has ended and is committed.

        Raises what a record's work raised, and what the consumer's `poll` raises; the failed record is not committed.
        """
        self._is_stopping, self._error = False, None
        threads = [
            threading.Thread(target=self._work, args=(work,), name=f"zbroker-lane-{number}", daemon=True)
            for number in range(self._workers)
        ]
        for thread in threads:
            thread.start()
        try:
            while not self._is_stopping and self._error is None:
                self._take(self._read())
                self._commit()
        finally:
            self._end(threads)
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Have `run` return."""
        self._is_stopping = True
        self._consumer.wakeup()

    # --- the consumer's thread ---------------------------------------------------------------------------------------

    def _read(self) -> list[ConsumerRecord[K, V]]:
        consumer = self._consumer
        with self._lock:
            room = self._in_flight_max - self._in_flight
            self._is_full = room <= 0
        if room > 0:
            return consumer.consume(min(room, consumer.settings.max_poll_records), timeout_ms=COMMIT_INTERVAL_MS)
        # A poll with everything paused: partitions may come and go, and the group sees that this member lives.
        paused = consumer.assignment() - consumer.paused()
        if paused:
            consumer.pause(*paused)
        try:
            return consumer.consume(timeout_ms=COMMIT_INTERVAL_MS)
        finally:
            self._is_full = False
            still_there = paused & consumer.assignment()
            if still_there:
                consumer.resume(*still_there)

    def _take(self, records: Iterable[ConsumerRecord[K, V]]) -> None:
        for record in records:
            key = self._key_of(record)
            name: Hashable = (record.offset,) if key is None else (None, key)
            with self._lock:
                owned = self._owned.get(record.tp)
                if owned is None:
                    owned = self._owned[record.tp] = _Owned(record.tp)
                owned.unfinished.begin(record.offset)
                self._in_flight += 1
                lane = owned.lanes.get(name)
                if lane is not None:
                    lane.append(record)
                    continue
                owned.lanes[name] = deque([record])
                self._ready.append((owned, name))
                self._has_ready.notify()

    def _commit(self) -> None:
        """Begin to commit what is finished; an earlier one that failed is made up for by this."""
        for tp, offset in self._committable(self._owned.values()).items():
            self._consumer.commit_async({tp: offset}, callback=self._committed)

    def _committable(self, partitions: Iterable[_Owned]) -> dict[TopicPartition, int]:
        found = {}
        with self._lock:
            for owned in partitions:
                offset = owned.unfinished.committable
                if offset is not None and offset != owned.committed:
                    owned.committed = offset
                    found[owned.tp] = offset
        return found

    def _committed(self, offsets: Any, error: BrokerError | None) -> None:
        if error is None:
            return
        with self._lock:
            for tp in offsets:
                if tp in self._owned:
                    self._owned[tp].committed = None

    def _commit_now(self, partitions: Iterable[_Owned]) -> None:
        # Also what was begun to be committed: nobody waits for the answer to that.
        with self._lock:
            places = [(owned.tp, owned.unfinished.committable) for owned in partitions]
        found = {tp: offset for tp, offset in places if offset is not None}
        if found:
            try:
                self._consumer.commit(found)
            except CommitFailedError:
                return  # taken away meanwhile: the next owner does this part again

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """See RebalanceListener."""

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """See RebalanceListener. Returns when nothing is under way in them, or after `drain_timeout_ms`."""
        going = self._drop(revoked)
        with self._has_ended:
            self._has_ended.wait_for(lambda: not any(one.running for one in going), self._drain_timeout_s)
        self._commit_now(going)
        self._forget(revoked)

    def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        """See RebalanceListener."""
        self._drop(lost)
        self._forget(lost)

    def _drop(self, partitions: Iterable[TopicPartition]) -> list[_Owned]:
        """Begin no more of what waits in these."""
        with self._lock:
            going = [self._owned[tp] for tp in partitions if tp in self._owned]
            self._ready = deque(one for one in self._ready if one[0] not in going)
            for owned in going:
                self._in_flight -= len(owned.unfinished) - owned.running
                owned.lanes.clear()
        return going

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        with self._lock:
            for tp in partitions:
                self._owned.pop(tp, None)

    def _end(self, threads: list[threading.Thread]) -> None:
        owned = self._drop(list(self._owned))
        with self._lock:
            self._is_stopping = True
            self._has_ready.notify_all()
        deadline_s = time.monotonic() + self._drain_timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        self._commit_now(owned)
        self._forget([one.tp for one in owned])

    # --- the threads -------------------------------------------------------------------------------------------------

    def _work(self, work: Callable[[ConsumerRecord[K, V]], None]) -> None:
        while (turn := self._next()) is not None:
            owned, name, record = turn
            try:
                self._work_on(work, record)
            except BaseException as error:
                with self._lock:
                    self._error = self._error or error
                    owned.running -= 1
                    self._has_ended.notify_all()
                self._consumer.wakeup()
                return
            self._finish(owned, name, record)

    def _work_on(self, work: Callable[[ConsumerRecord[K, V]], None], record: ConsumerRecord[K, V]) -> None:
        try:
            work(record)
        except Exception as error:
            if self._on_error is None:
                raise
            self._on_error(record, error)

    def _next(self) -> tuple[_Owned, Hashable, ConsumerRecord[K, V]] | None:
        with self._has_ready:
            self._has_ready.wait_for(lambda: self._ready or self._is_stopping or self._error is not None)
            if self._is_stopping or self._error is not None:
                return None
            owned, name = self._ready.popleft()
            owned.running += 1
            return owned, name, owned.lanes[name].popleft()

    def _finish(self, owned: _Owned, name: Hashable, record: ConsumerRecord[K, V]) -> None:
        with self._lock:
            owned.unfinished.finish(record.offset)
            owned.running -= 1
            self._in_flight -= 1
            lane = owned.lanes.get(name)
            if lane:
                self._ready.append((owned, name))
                self._has_ready.notify()
            elif lane is not None:
                del owned.lanes[name]
            has_room = self._is_full and self._in_flight <= self._in_flight_max // 2
            if has_room:
                self._is_full = False
            self._has_ended.notify_all()
        if has_room:
            self._consumer.wakeup()
