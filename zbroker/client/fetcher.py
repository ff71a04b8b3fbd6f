"""Finds records for a consumer: from every assigned partition in turn, by mapped files or by messages, or sleeps.

Guarantees: partitions have equal turns: each search begins behind where the last one ended. Searching waits for nobody.
Sleeping ends with the first record, by `wake` from any thread, or after its time, and costs no request while one that
says the same is still open. Whenever nothing was found, and ten times a second while much is found, the leaders' words
on the coordinator's board are compared; a partition whose leader changed goes on being read where it was until the new
leader is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from zbroker.client.assigned import Assigned
from zbroker.client.batch_run import Decoding
from zbroker.client.local_partition import LOOK_INTERVAL_NS, Boards, LocalPartition, out_of_range
from zbroker.client.mapped_log import Mappings
from zbroker.client.rate_limit import RateLimit
from zbroker.client.remote_fetch import RemoteFetch, RemotePartition
from zbroker.client.settings import ConsumerSettings
from zbroker.client.sleep import Sleep, WakeableConnection
from zbroker.client.subscription import Subscription
from zbroker.client.topology import Topology
from zbroker.clock import NS_PER_MS
from zbroker.errors import BrokerError, OffsetOutOfRangeError
from zbroker.ids import TopicPartition
from zbroker.record.records import ConsumerRecord
from zbroker.wire.messages import PartitionInfo, TopicInfo

Found = dict[TopicPartition, list[ConsumerRecord[Any, Any]]]


class Fetcher:
    """See the module. One thread at a time; `wake` from any."""

    def __init__(
        self, connection: WakeableConnection, settings: ConsumerSettings, subscription: Subscription, sleep: Sleep
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._subscription = subscription
        self._decoding = Decoding(settings.check_crcs, settings.key_deserializer, settings.value_deserializer)
        self._is_local = connection.shared_memory
        self._is_durable_only = settings.isolation_level == "read_durable"
        self._min_bytes = settings.fetch_min_bytes if self._is_local else 1
        self._boards = Boards()
        self._mappings = Mappings()
        self._order: list[Assigned] = []
        self._order_changes = -1
        self._has_answer = False
        self._is_settled = True
        self._look_ns = 0
        self._turn = 0
        self._seen_count = 0
        self._hold_until_ns = 0
        self._error: BrokerError | None = None
        self._rate = RateLimit(settings.max_records_per_s) if settings.max_records_per_s is not None else None
        self.service: Callable[[], None] | None = None
        """What a group has to do before each search."""
        self.sleep = sleep
        self.topology = Topology(connection, self.sleep.note)
        self._remote = RemoteFetch(connection, settings, self.sleep.note)

    def collect(self, count_max: int) -> Found:
        """Up to `count_max` records of all partitions that are not paused. The positions are behind them."""
        found: Found = {}
        taken: list[tuple[Assigned, int]] = []
        order = self._prepare()
        if self._rate is not None:
            count_max = min(count_max, self._rate.allowance())
        if count_max == 0 or (self._min_bytes > 1 and self._is_held_back()):
            return found
        max_bytes = self._settings.max_partition_fetch_bytes
        count = len(order)
        try:
            for step in range(count):
                index = (self._turn + step) % count
                one = order[index]
                if one.paused or not self._has_position(one):
                    continue
                start = one.offset
                assert start is not None
                taken.append((one, start))
                records = self._take(one, count_max, max_bytes)
                if records:
                    found[one.tp] = records
                    count_max -= len(records)
                    if count_max <= 0:
                        self._turn = index + 1
                        break
        except BaseException as error:
            if found and isinstance(error, Exception):
                self._turn = index  # The error has the first turn next time: nothing is ahead of it then.
                return found
            for one, start in taken:
                one.go_back(start)
            raise
        if not self._is_local:
            self._ask_remote(order)
        elif found:
            self.sleep.tell(order)
        return found

    def next_run(self, *, as_batches: bool) -> Assigned | None:
        """The next partition that has something: a batch in `ready`, or with `as_batches` False, records to take."""
        order = self._prepare()
        if (self._rate is not None and not self._rate.allowance()) or (self._min_bytes > 1 and self._is_held_back()):
            return None
        max_bytes = self._settings.max_partition_fetch_bytes
        for step in range(len(order)):
            index = (self._turn + step) % len(order)
            one = order[index]
            if one.paused or not self._has_position(one):
                continue
            has = self._guarded(one, one.fill if as_batches else one.current, max_bytes)
            if has:
                self._turn = index + 1
                if self._rate is not None:
                    self._rate.take(one.keep_first() if as_batches else one.keep_run(self._rate.allowance()))
                if self._is_local:
                    self.sleep.tell(order)
                else:
                    self._ask_remote(order)
                return one
        return None

    def _ask_remote(self, order: list[Assigned]) -> None:
        self._remote.ask(one.source for one in order if isinstance(one.source, RemotePartition) and not one.paused)

    def _take(self, one: Assigned, count_max: int, max_bytes: int) -> list[ConsumerRecord[Any, Any]]:
        try:
            records = one.take(count_max, max_bytes)
        except OffsetOutOfRangeError as error:
            self._start_anew(one, error)
            return []
        if self._rate is not None:
            self._rate.take(len(records))
        return records

    def _guarded(self, one: Assigned, call: Any, max_bytes: int) -> Any:
        try:
            return call(max_bytes)
        except OffsetOutOfRangeError as error:
            self._start_anew(one, error)
            return None

    def look_up(self) -> bool:
        """Whether the partitions of the subscription are known."""
        self._prepare()
        return self.topology.count > 0 and self._is_covered()

    def locate(self, one: Assigned) -> bool:
        """Whether a partition has a position, found now if possible. Raises OffsetOutOfRangeError without a policy."""
        self._prepare()
        return self._has_position(one)

    # --- positions ---------------------------------------------------------------------------------------------------

    def _has_position(self, one: Assigned) -> bool:
        if one.offset is not None:
            return True
        source = one.source
        if source is None:
            return False
        if one.reset == "none":
            raise OffsetOutOfRangeError(f"{one.tp}: no position, and auto_offset_reset is 'none'; call seek()")
        found = source.range()
        if found is None:
            if isinstance(source, RemotePartition):
                self._remote.ask_range(source)
            return False
        one.offset = found[0] if one.reset == "earliest" else found[1]
        return True

    def _start_anew(self, one: Assigned, error: OffsetOutOfRangeError) -> None:
        """The position is not in the log: go where `auto_offset_reset` says, or raise."""
        reset = self._settings.auto_offset_reset
        assert one.offset is not None
        self.sleep.note()
        found = one.source.range() if one.source is not None else None
        if isinstance(one.source, RemotePartition):
            high_watermark = one.source.high_watermark()
            found = None if high_watermark is None else (0, high_watermark)
        if found is not None and one.was_read and one.offset > found[1]:
            text = out_of_range(one.tp, one.offset, *found)
            if reset == "none":
                raise OffsetOutOfRangeError(f"{text}: the log was truncated after it was read") from error
            # What was read is gone from the log; what comes next is at its end, whichever way a start would go.
            one.seek_to("latest")
            return
        if reset == "none":
            raise error
        one.seek_to(reset)

    # --- who leads what ----------------------------------------------------------------------------------------------

    def _prepare(self) -> list[Assigned]:
        """The partitions in their order, with sources for all whose leader is known."""
        subscription, topology = self._subscription, self.topology
        if self.service is not None:
            self.service()
        if topology.count != self._seen_count or subscription.changes != self._order_changes:
            if topology.count != self._seen_count:
                self._seen_count = topology.count
                self._use_answer()
            self._order_changes = subscription.changes
            self._order = list(subscription.assigned.values())
            self._attach()
            self._has_answer = self._is_covered()
        if self._is_uninformed():
            self._ask()
        elif time.monotonic_ns() >= self._look_ns:
            self._look_after_leaders([one for one in self._order if not one.paused])
        return self._order

    def _look_after_leaders(self, active: list[Assigned]) -> bool:
        """Ask for the metadata if a partition may have another leader than the one it is read from."""
        self._look_ns = time.monotonic_ns() + LOOK_INTERVAL_NS
        sources = [one.source for one in active if one.source is not None]
        # A partition whose new leader did not show it yet keeps its old source, which may be as calm as the dead are.
        is_missing = bool(self._subscription.absent) or len(sources) < len(active) or not self._is_settled
        if is_missing or self._boards.is_coordinator_gone() or any(source.is_moved() for source in sources):
            self._ask()
            return True
        return False

    def _is_uninformed(self) -> bool:
        """Whether the metadata does not tell of all that is read, or is old."""
        return not self._has_answer or self.topology.is_old

    def _is_covered(self) -> bool:
        names, covered = self._subscription.names, self.topology.covered
        return covered is None if names is None else covered is None or names <= covered

    def _ask(self) -> None:
        if self._has_names():
            self.topology.ask(self._subscription.names)

    def _has_names(self) -> bool:
        return self._subscription.names is None or bool(self._subscription.names)

    def _use_answer(self) -> None:
        if not self._is_covered():
            return
        try:
            self._subscription.follow(self.topology.view)
        except BrokerError as error:
            self._error = error

    def _attach(self) -> None:
        """Give each partition the source that its leader's metadata names; the old one stays until that can be had."""
        view = self.topology.view
        is_settled = True
        for one in self._order:
            topic = view.topics.get(one.tp.topic)
            if topic is None or topic.error or one.tp.partition >= len(topic.partitions):
                if self._is_covered() and not self._subscription.is_subscribed and self.topology.count:
                    self._error = self._absent(one.tp)
                is_settled = False
                continue
            is_settled = self._attach_one(one, topic, topic.partitions[one.tp.partition]) and is_settled
        self._is_settled = is_settled
        if is_settled:
            self.topology.calm()
        self._boards.keep({one.source.board_path for one in self._order if isinstance(one.source, LocalPartition)})

    def _absent(self, tp: TopicPartition) -> BrokerError:
        try:
            self.topology.view.partition(tp.topic, tp.partition)
        except BrokerError as error:
            return error
        raise AssertionError(f"{tp} is there")

    def _attach_one(self, one: Assigned, topic: TopicInfo, info: PartitionInfo) -> bool:
        """Returns whether the partition has a source that is up to date."""
        if one.topic_id not in (0, topic.topic_id):
            # Another topic of that name: offsets of the one before mean nothing in it.
            one.seek_to("earliest" if self._subscription.is_subscribed else self._settings.auto_offset_reset)
        one.topic_id = topic.topic_id
        if info.leader < 0:
            return False
        source = one.source
        if isinstance(source, LocalPartition | RemotePartition) and source.topic_id == topic.topic_id:
            is_same = source.info == info and not source.is_moved()
            if isinstance(source, LocalPartition):
                is_same = is_same and source.coordinator_path == self.topology.view.coordinator_board
            if is_same:
                return True
            if source.info == info and isinstance(source, RemotePartition):
                source.needs_metadata = False
                return False
        if not self._is_local:
            one.source = RemotePartition(one.tp, topic.topic_id, info, self._decoding.maker(*one.tp))
            return True
        return self._attach_local(one, topic.topic_id, info)

    def _attach_local(self, one: Assigned, topic_id: int, info: PartitionInfo) -> bool:
        view = self.topology.view
        process = view.processes.get(info.leader)
        board = None if process is None else self._boards.process_board(process.board)
        if board is None:
            return False
        coordinator = self._boards.coordinator_board(view.coordinator_board)
        make = self._decoding.maker(*one.tp)
        try:
            fresh = LocalPartition(
                one.tp, topic_id, info, board, coordinator, self._mappings, make, is_durable_only=self._is_durable_only
            )
        except LookupError:
            return False
        self._mappings.forget(info.directory)
        one.source = fresh
        return not fresh.is_moved()

    # --- sleeping ----------------------------------------------------------------------------------------------------

    def wait(self, timeout_ms: float) -> bool:
        """Nothing was found: let answers in, look after the leaders, and sleep until something may be there. Returns
        whether it may be."""
        order = self._prepare()
        active = [one for one in order if not one.paused]
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        # What could not be asked now, a moment after a question that nobody answered, is to be asked soon.
        if self._look_after_leaders(active) or (self._is_uninformed() and self._has_names()):
            timeout_ms = min(timeout_ms, self.topology.wait_ms)
        if self._hold_until_ns:
            timeout_ms = min(timeout_ms, max(0.1, (self._hold_until_ns - time.monotonic_ns()) / NS_PER_MS))
        if not self._is_local:
            self._ask_remote(order)
            timeout_ms = min(timeout_ms, self._remote.retry_ms(one.source for one in active if one.source is not None))
        if self._rate is not None and not self._rate.allowance():
            active, timeout_ms = [], min(timeout_ms, self._rate.wait_ms())
        return self.sleep.until_news(active, timeout_ms)

    def _is_held_back(self) -> bool:
        """Whether less than fetch_min_bytes are there, and fetch_max_wait_ms not over since the first of them."""
        ahead_bytes = 0
        for one in self._order:
            one.goal = 0
            source = one.source
            if one.paused or one.offset is None or source is None:
                continue
            # The goal first: what comes after it was looked at is news.
            goal = source.high_watermark() or 0
            found = None if one.has_some else source.bytes_ahead(one.offset)
            if found is None:
                return False
            one.goal = goal
            ahead_bytes += found
        if not 0 < ahead_bytes < self._min_bytes:
            self._hold_until_ns = 0
            return False
        now_ns = time.monotonic_ns()
        if self._hold_until_ns == 0:
            self._hold_until_ns = now_ns + self._settings.fetch_max_wait_ms * NS_PER_MS
        if now_ns < self._hold_until_ns:
            return True
        self._hold_until_ns = 0
        return False

    def note_and_wake(self) -> None:
        """There is something else to do than to read: whoever sleeps should look. Any thread."""
        self.sleep.note()
        self._connection.wake()

    def wake(self) -> None:
        """End the sleep that is under way, or the next one. Any thread."""
        self.sleep.wake()

    def close(self) -> None:
        """Drop mappings and boards. Views that the user holds stay valid."""
        self._remote.cancel()
        for one in self._subscription.assigned.values():
            one.source = None
            one.drop()
        self._order = []
        self._mappings.clear()
        self._boards.close()
