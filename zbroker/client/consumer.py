"""The consumer: records of topics, in order within each partition, from where it stands.

    with Consumer("orders", auto_offset_reset="earliest") as consumer:
        for record in consumer: ...

Guarantees: every record behind the position is given out once, in order, and the position moves only when a record is
given out; what an exception or Ctrl-C interrupts was not given out. Local consumers map the broker's files and ask for
nothing but to be woken; with `transport="zmq"` or `tcp://` the same comes by messages. Reading goes on while the
coordinator is away, and over the death of a worker.

With a `group_id` the consumers of the group share the partitions of their topics; see `membership` for what holds then.

One thread uses a consumer at a time; `wakeup` and `close` may come from others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from zbroker.client.assigned import Assigned
from zbroker.client.commit_calls import CommitCalls, Partition
from zbroker.client.fetcher import Fetcher
from zbroker.client.membership import Membership
from zbroker.client.offsets import ask_offsets
from zbroker.client.settings import ConsumerSettings, read_settings
from zbroker.client.single_use import SingleUse
from zbroker.client.sleep import Sleep, WakeableConnection
from zbroker.client.subscription import RebalanceListener, Subscription
from zbroker.client.topic_queries import TopicQueries
from zbroker.clock import NS_PER_MS
from zbroker.errors import ClosedError, ConfigError, TimeoutError_
from zbroker.ids import TopicPartition
from zbroker.record.records import ConsumerRecord
from zbroker.record.view import RecordBatch
from zbroker.shm import barrier
from zbroker.wire.messages import EARLIEST, LATEST

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    K = TypeVarWithDefault("K", default=Any)
    V = TypeVarWithDefault("V", default=Any)
else:
    # Type checkers know defaults (PEP 696), Python 3.11 does not.
    K = TypeVar("K")
    V = TypeVar("V")
T = TypeVar("T")

WAIT_MS_MAX: Final = 3_600_000.0  # of one wait; an endless one is many
CLOSE_TIMEOUT_MS: Final = 5_000


class Consumer(TopicQueries, CommitCalls, Generic[K, V]):
    """See the module. Settings are those of `ConsumerSettings`.

    `isolation_level="read_durable"` gives out only what has been synced on the leader's disk: records of `acks="fsync"`
    at once, others when the topic's `flush_ms` or `flush_messages` has synced them. Positions, ends and lag are those
    of the high watermark either way.
    """

    def __init__(self, *topics_or_config: str | Mapping[str, object], **settings: object) -> None:
        """Connect, and subscribe to the topics that are named. A mapping holds settings, in dotted names or not. Raises
        ConfigError for a setting, BrokerNotAvailableError when no broker answers."""
        mappings = [one for one in topics_or_config if not isinstance(one, str)]
        topics = [one for one in topics_or_config if isinstance(one, str)]
        if len(mappings) > 1:
            raise ConfigError("Consumer() takes one mapping of settings")
        self.settings = read_settings(ConsumerSettings, mappings[0] if mappings else None, settings)
        if is_grouped := self.settings.group_id is not None:
            barrier.register()  # before there are threads: then it costs next to nothing
        self._subscription = Subscription(self.settings.auto_offset_reset, is_grouped=is_grouped)
        if topics:
            self._subscription.subscribe(topics, None)
        self._connection, sleep = self._connect()
        self._fetcher = Fetcher(self._connection, self.settings, self._subscription, sleep)
        self._group, self._slots = None, {}
        if is_grouped:
            group = self._group = Membership(
                self.settings, self._connection, self._subscription, self._fetcher.topology, self._fetcher.note_and_wake
            )
            self._fetcher.service, self._slots = group.service, group.commits.slots
        self._use = SingleUse("Consumer", self._fetcher.wake, self._release)

    def _connect(self) -> tuple[WakeableConnection, Sleep]:
        connection = WakeableConnection(self.settings)
        return connection, Sleep(connection, self.settings)

    # --- what is read ------------------------------------------------------------------------------------------------

    def subscribe(
        self,
        topics: Iterable[str] = (),
        *,
        pattern: str | None = None,
        listener: RebalanceListener | None = None,
        on_assign: Callable[[Collection[TopicPartition]], None] | None = None,
        on_revoke: Callable[[Collection[TopicPartition]], None] | None = None,
        on_lost: Callable[[Collection[TopicPartition]], None] | None = None,
    ) -> None:
        """Read all partitions of these topics, or of those whose whole name matches the pattern, now and later.

        Topics and partitions made later are found within `metadata_max_age_ms` and read from their beginning. A topic
        that does not exist is an error of `poll`. The callbacks run inside `poll`. Raises IllegalTransition after
        `assign`, InvalidTopicError, re.error.
        """
        with self._use:
            self._subscription.subscribe(topics, pattern, listener, on_assign, on_revoke, on_lost)

    def add_listener(self, listener: RebalanceListener) -> None:
        """Tell this one too what comes and goes, before the listener of `subscribe`. It stays until `close`."""
        self._subscription.add_listener(listener)

    def unsubscribe(self) -> None:
        """Read nothing until the next `subscribe` or `assign`; leave the group."""
        with self._use:
            if self._group is not None:
                self._group.leave(CLOSE_TIMEOUT_MS / 1000, is_final=False)
            self._subscription.unsubscribe()

    def subscription(self) -> set[str]:
        """The topics that are subscribed to; with a pattern, those that match it as far as is known."""
        with self._use:
            return self._subscription.followed()

    def assign(self, partitions: Iterable[Partition]) -> None:
        """Read exactly these partitions; one that was read before goes on at its position, another one with a
        `group_id` where the group has committed. No member of the group is to read them as well."""
        with self._use:
            self._subscription.assign(partitions)
            if self._group is not None:
                self._group.start_assigned()

    def assignment(self) -> set[TopicPartition]:
        """The partitions that are read; those of a subscription are known after the first `poll`."""
        with self._use:
            return set(self._subscription.assigned)

    def pause(self, *partitions: Partition) -> None:
        """Give out nothing of these partitions (none named: all) until `resume`; their positions stay."""
        self._set_paused(partitions, True)

    def resume(self, *partitions: Partition) -> None:
        """End a pause."""
        self._set_paused(partitions, False)

    def _set_paused(self, partitions: Collection[Partition], paused: bool) -> None:
        with self._use:
            for one in self._chosen(partitions):
                one.paused = paused
            self._subscription.moves += 1

    def paused(self) -> set[TopicPartition]:
        """The partitions that are paused."""
        with self._use:
            return {tp for tp, one in self._subscription.assigned.items() if one.paused}

    # --- records -----------------------------------------------------------------------------------------------------

    def poll(
        self, *, timeout_ms: float = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[ConsumerRecord[K, V]]]:
        """What is there, at most `max_records` (None: `max_poll_records`); waits up to `timeout_ms` for the first.

        Empty after the time or a `wakeup`. Raises OffsetOutOfRangeError (with `auto_offset_reset="none"`),
        CorruptRecordError (seek behind it to go on), UnknownTopicOrPartitionError, and what a deserializer raises; the
        position stays then.
        """
        count_max = self._count(max_records)
        with self._use:
            self._subscription.moves += 1
            return self._search(lambda: self._fetcher.collect(count_max), timeout_ms, is_poll=True)

    def consume(self, max_records: int = 1, *, timeout_ms: float | None = None) -> list[ConsumerRecord[K, V]]:
        """As `poll`, as one list. `timeout_ms` None: waits for the first record without end."""
        count_max = self._count(max_records)
        with self._use:
            self._subscription.moves += 1
            found = self._search(lambda: self._fetcher.collect(count_max), timeout_ms, is_poll=True)
        lists = iter(found.values())
        records = next(lists, [])
        for more in lists:
            records += more
        return records

    def __iter__(self) -> Iterator[ConsumerRecord[K, V]]:
        """Record after record; ends after `consumer_timeout_ms` without one (None: never), by `wakeup` or `close`."""
        self._use.check()
        return self._records(self.settings.iteration_timeout_ms)

    def _records(self, timeout_ms: float | None) -> Iterator[ConsumerRecord[K, V]]:
        subscription = self._subscription
        while (one := self._next(timeout_ms, as_batches=False)) is not None:
            moves = subscription.moves
            for record in one.rest():
                one.offset = record.offset + 1
                yield record
                if subscription.moves != moves:
                    break

    def batches(self, *, timeout_ms: float | None = None) -> Iterator[RecordBatch]:
        """Batch after batch, as views into the mapped log without a copy; ends as iteration does, after `timeout_ms`
        (None: `consumer_timeout_ms`) without one.

        A batch is given out whole: the first one after a seek may begin before the position. Its bytes stay valid while
        it, or a view of it, is held; `release()` gives them back at once.
        """
        self._use.check()
        return self._batches(self.settings.iteration_timeout_ms if timeout_ms is None else timeout_ms)

    def _batches(self, timeout_ms: float | None) -> Iterator[RecordBatch]:
        subscription = self._subscription
        while (one := self._next(timeout_ms, as_batches=True)) is not None:
            moves, ready = subscription.moves, one.ready
            while ready:
                batch = ready.popleft()
                one.offset = batch.header.next_offset
                if not batch.header.record_count:
                    continue  # compaction left nothing of it but its offsets
                yield batch
                if subscription.moves != moves:
                    break

    def _next(self, timeout_ms: float | None, *, as_batches: bool) -> Assigned | None:
        try:
            with self._use:
                one = self._search(lambda: self._fetcher.next_run(as_batches=as_batches), timeout_ms, is_poll=True)
                if one is not None:
                    one.was_read = True
                if self._group is not None:
                    self._group.running = one
                return one
        except ClosedError:
            return None

    def _search(self, find: Callable[[], T], timeout_ms: float | None, *, is_poll: bool = False) -> T:
        group = self._group
        if group is None or not is_poll:
            return self._search_on(find, timeout_ms)
        group.begin_poll()
        try:
            found = self._search_on(find, timeout_ms)
            group.in_hand = bool(found)
            return found
        finally:
            group.end_poll()

    def _search_on(self, find: Callable[[], T], timeout_ms: float | None) -> T:
        """Call `find` until it gives something, the time is over, or somebody wakes or closes this consumer."""
        found = find()
        if found:
            return found
        deadline_ns = None if timeout_ms is None else time.monotonic_ns() + int(timeout_ms * NS_PER_MS)
        is_last = False
        while True:
            if found or is_last or self._use.is_closed:
                return found
            if self._fetcher.sleep.is_woken:
                self._fetcher.sleep.is_woken = False
                return found
            left_ms = WAIT_MS_MAX if deadline_ns is None else (deadline_ns - time.monotonic_ns()) / NS_PER_MS
            is_last = left_ms <= 0
            if not self._fetcher.wait(left_ms) and is_last:
                return found
            found = find()

    def _count(self, max_records: int | None) -> int:
        if max_records is None:
            return self.settings.max_poll_records
        if max_records < 1:
            raise ValueError(f"max_records={max_records}: at least 1")
        return max_records

    # --- positions ---------------------------------------------------------------------------------------------------

    def position(self, partition: Partition) -> int:
        """The offset of the next record of an assigned partition. Raises TimeoutError_ while its leader is away."""
        with self._use:
            return self._position(self._chosen([partition])[0])

    def _position(self, one: Assigned) -> int:
        timeout_ms = self.settings.request_timeout_ms
        self._search(lambda: self._fetcher.locate(one), timeout_ms)
        if one.offset is None:
            raise TimeoutError_(f"{one.tp}: no position within {timeout_ms} ms", hint="zbroker topics describe TOPIC")
        return one.offset

    def _chosen(self, partitions: Collection[Partition]) -> list[Assigned]:
        """Assigned partitions by name, or all; a subscription that was not looked up yet is looked up."""
        if self._subscription.is_subscribed and not self._subscription.assigned:
            self._search(self._is_known, self.settings.request_timeout_ms)
        return self._subscription.chosen(partitions)

    def _is_known(self) -> bool:
        return self._fetcher.look_up() and (self._group is None or self._group.is_settled)

    def seek(self, partition: Partition, offset: int) -> None:
        """Go on at `offset`. One that the log does not have shows at the next `poll`."""
        if offset < 0:
            raise ValueError(f"offset {offset}: at least 0; seek_to_beginning() and seek_to_end() find the ends")
        with self._use:
            self._chosen([partition])[0].seek(offset)
            self._subscription.moves += 1

    def seek_to_beginning(self, *partitions: Partition) -> None:
        """Go on at the first record that is there (none named: in all partitions)."""
        with self._use:
            for one in self._chosen(partitions):
                one.seek_to("earliest")
            self._subscription.moves += 1

    def seek_to_end(self, *partitions: Partition) -> None:
        """Go on behind the last record that is there now."""
        with self._use:
            chosen = self._chosen(partitions)
            for one in chosen:
                one.seek_to("latest")
            for one in chosen:
                self._position(one)
            self._subscription.moves += 1

    def seek_to_timestamp(self, timestamp_ms: int, *partitions: Partition) -> None:
        """Go on at the first record that is as late as this; at the end where there is none."""
        with self._use:
            chosen = self._chosen(partitions)
            ends = ask_offsets(self._connection, {one.tp: LATEST for one in chosen})
            found = ask_offsets(self._connection, {one.tp: timestamp_ms for one in chosen})
            for one in chosen:
                offset = found[one.tp].offset
                one.seek(offset if offset >= 0 else ends[one.tp].offset)
            self._subscription.moves += 1

    def seek_to_last(self, count: int, *partitions: Partition) -> None:
        """Go on `count` records before the end of each partition, or at its beginning where it has fewer."""
        with self._use:
            chosen = self._chosen(partitions)
            starts = ask_offsets(self._connection, {one.tp: EARLIEST for one in chosen})
            ends = ask_offsets(self._connection, {one.tp: LATEST for one in chosen})
            for one in chosen:
                one.seek(max(starts[one.tp].offset, ends[one.tp].offset - count))
            self._subscription.moves += 1

    def highwater(self, partition: Partition) -> int | None:
        """The high watermark: live where it is mapped, else as of the last fetch; None before that."""
        with self._use:
            return self._chosen([partition])[0].high_watermark()

    def lag(self) -> dict[TopicPartition, int]:
        """How many records each assigned partition has behind the position, now."""
        with self._use:
            chosen = self._chosen([])
            positions = {one.tp: self._position(one) for one in chosen}
            remote = {one.tp: LATEST for one in chosen if one.source is None or not one.source.is_local}
            ends = {tp: answer.offset for tp, answer in ask_offsets(self._connection, remote).items()}
            for one in chosen:
                if one.source is not None and one.source.is_local:
                    ends[one.tp] = one.high_watermark() or 0
            return {tp: max(0, ends[tp] - position) for tp, position in positions.items()}

    # --- the end -----------------------------------------------------------------------------------------------------

    def wakeup(self) -> None:
        """End the `poll`, `consume` or iteration that waits, or the next one that would, with what is there.

        From any thread or signal handler.
        """
        self._fetcher.wake()

    def close(self, *, timeout_ms: float | None = None) -> None:
        """Give everything back. From any thread: a call of another one is woken and waited for, up to `timeout_ms`.

        Batches that are held stay valid. A second time does nothing.
        """
        self._use.close((CLOSE_TIMEOUT_MS if timeout_ms is None else timeout_ms) / 1000)

    def _release(self) -> None:
        self._subscription.moves += 1
        try:
            if self._group is not None:
                self._group.close(CLOSE_TIMEOUT_MS / 1000)
        finally:
            self._fetcher.close()
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._group is not None:
            self._group.is_failed = error is not None
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Consumer holds sockets and mappings of its process and cannot be pickled: create one per process"
        )
