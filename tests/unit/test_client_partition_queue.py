"""A partition's batches: their order whatever fails, their retries and deadlines, and who is told."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from zbroker.client.batches import Batch
from zbroker.client.partition_queue import (
    DAMAGED_ATTEMPTS_MAX,
    FILLED_FAST_NS,
    FILLED_SLOWLY_NS,
    ROOM_FIRST_BYTES,
    PartitionQueue,
    Sent,
)
from zbroker.clock import NS_PER_MS
from zbroker.errors import (
    BrokerError,
    CorruptRecordError,
    InvalidRecordError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    RequestTimedOutError,
    StorageError,
)
from zbroker.wire.layout import PRODUCED

DEADLINE_MS = 1_000


class ScriptedSending:
    """A producer without threads: the test answers what was transmitted."""

    def __init__(self, *, acks: int = -1, retries: int = 1_000_000, max_in_flight: int = 5) -> None:
        self.lock = threading.RLock()
        self.acks, self.retries, self.max_in_flight = acks, retries, max_in_flight
        self.backoff_max_ms = 100
        self.is_idempotent = False
        self.compression = "none"
        self.compression_level: int | None = None
        self.sent: list[Batch] = []
        self.outcome = Sent.YES
        self.deferred: list[Callable[[], None]] = []
        self.now = 0
        self.used_bytes = 0

    def count_closed(self, batch: Batch) -> None:
        self.used_bytes += batch.size_bytes

    def count_done(self, batch: Batch) -> None:
        self.used_bytes -= batch.size_bytes

    def transmit(self, queue: PartitionQueue, batch: Batch) -> Sent:
        if self.outcome is Sent.YES:
            self.sent.append(batch)
        return self.outcome

    def fence(self, error: BrokerError) -> list[Callable[[], None]]:
        raise AssertionError("nothing is numbered here")

    def defer(self, calls: list[Callable[[], None]]) -> None:
        self.deferred += calls

    def hurry(self) -> None: ...

    def wait_done(self, batch: Batch, timeout_ms: float) -> bool:
        raise AssertionError("nobody waits here")

    def now_ns(self) -> int:
        return self.now

    def wall_ms(self) -> int:
        return 1_700_000_000_000


def add(queue: PartitionQueue, value: Any = b"x") -> Batch:
    """Close a batch of one record."""
    batch = queue.open = Batch(queue, queue.producer.now_ns())
    batch.deadline_ns = queue.producer.now_ns() + DEADLINE_MS * NS_PER_MS
    batch.values.append(value)
    batch.size_bytes = 17
    queue.close_open()
    return batch


def produced(offset: int) -> list[bytes]:
    return [PRODUCED.pack(offset, -1, 0)]


def test_at_most_max_in_flight_batches_are_on_their_way() -> None:
    sending = ScriptedSending(max_in_flight=2)
    queue = PartitionQueue(sending, "t", 0)
    batches = [add(queue) for _ in range(4)]
    assert sending.sent == batches[:2]
    queue.answered(batches[0], 0, produced(0))
    assert sending.sent == batches[:3]


def test_batches_grow_while_they_fill_up_fast_and_shrink_when_time_closes_them() -> None:
    sending = ScriptedSending()
    queue = PartitionQueue(sending, "t", 0)

    def fill(takes_ns: int, room_max: int) -> int:
        queue.open = Batch(queue, sending.now)
        queue.open.values.append(b"x")
        sending.now += takes_ns
        queue.close_full(room_max)
        return queue.room_bytes

    assert queue.room_bytes == ROOM_FIRST_BYTES
    assert fill(1, ROOM_FIRST_BYTES // 2) == ROOM_FIRST_BYTES  # what it may not be is the accumulator's to say
    assert fill(1, 3 * ROOM_FIRST_BYTES) == 2 * ROOM_FIRST_BYTES
    assert fill(1, 3 * ROOM_FIRST_BYTES) == 3 * ROOM_FIRST_BYTES
    assert fill(FILLED_FAST_NS, 4 * ROOM_FIRST_BYTES) == 3 * ROOM_FIRST_BYTES
    assert fill(FILLED_SLOWLY_NS + 1, 4 * ROOM_FIRST_BYTES) == 3 * ROOM_FIRST_BYTES // 2
    queue.close_old()
    assert queue.room_bytes == ROOM_FIRST_BYTES


def test_after_a_failure_nothing_newer_is_sent_until_all_are_answered_and_the_failed_go_first() -> None:
    sending = ScriptedSending(max_in_flight=3)
    queue = PartitionQueue(sending, "t", 0)
    batches = [add(queue) for _ in range(5)]
    queue.answered(batches[1], RequestTimedOutError.code, [])
    queue.answered(batches[0], NotLeaderForPartitionError.code, [])
    assert sending.sent == batches[:3], "one is unanswered: nothing goes out"
    queue.answered(batches[2], NotLeaderForPartitionError.code, [])
    assert queue.needs_leader
    sending.sent.clear()
    queue.leader_found()
    assert sending.sent == batches[:3]


def test_an_unknown_leader_is_asked_for_and_one_that_must_wait_is_not() -> None:
    sending = ScriptedSending()
    queue = PartitionQueue(sending, "t", 0)
    sending.outcome = Sent.NOT_YET
    first = add(queue)
    assert not queue.needs_leader
    sending.outcome = Sent.NO_LEADER
    add(queue)
    assert queue.needs_leader
    sending.outcome = Sent.YES
    queue.leader_found()
    assert sending.sent[0] is first


def test_a_thousand_waiting_batches_without_acks_go_out_in_a_loop_not_in_a_recursion() -> None:
    sending = ScriptedSending(acks=0)
    queue = PartitionQueue(sending, "t", 0)
    sending.outcome = Sent.NO_LEADER
    batches = [add(queue) for _ in range(3_000)]
    sending.outcome = Sent.YES
    queue.leader_found()
    assert sending.sent == batches
    assert all(batch.is_done and batch.error is None for batch in batches)
    assert sending.used_bytes == 0


@pytest.mark.parametrize("retries", [0, 2])
def test_a_batch_is_sent_again_as_often_as_retries_says(retries: int) -> None:
    sending = ScriptedSending(retries=retries)
    queue = PartitionQueue(sending, "t", 0)
    batch = add(queue)
    for attempt in range(retries + 1):
        assert not batch.is_done, attempt
        queue.answered(batch, StorageError.code, [b"no"])
        queue.leader_found()
    assert isinstance(batch.error, StorageError)
    assert len(sending.sent) == retries + 1


def test_a_batch_that_was_damaged_on_its_way_is_sent_again_and_one_that_is_damaged_here_is_not() -> None:
    sending = ScriptedSending()
    queue = PartitionQueue(sending, "t", 0)
    batch = add(queue)
    queue.answered(batch, CorruptRecordError.code, [b"its CRC"])
    queue.leader_found()
    assert (len(sending.sent), batch.is_done) == (2, False)
    queue.answered(batch, 0, produced(0))
    assert batch.error is None
    damaged = add(queue)
    assert damaged.encoded is not None
    encoded = bytearray(damaged.encoded)
    encoded[-9] ^= 1
    damaged.encoded = encoded
    queue.answered(damaged, CorruptRecordError.code, [b"its CRC"])
    assert isinstance(damaged.error, CorruptRecordError)


def test_a_leader_that_calls_everything_damaged_is_not_asked_for_ever() -> None:
    sending = ScriptedSending()
    queue = PartitionQueue(sending, "t", 0)
    batch = add(queue)
    while not batch.is_done:
        assert len(sending.sent) <= DAMAGED_ATTEMPTS_MAX + 1
        queue.answered(batch, CorruptRecordError.code, [b"magic"])
        queue.leader_found()
    assert isinstance(batch.error, CorruptRecordError)


def test_an_error_that_will_not_pass_fails_its_batch_alone() -> None:
    sending = ScriptedSending()
    queue = PartitionQueue(sending, "t", 0)
    first, second = add(queue), add(queue)
    queue.answered(first, MessageSizeTooLargeError.code, [b"too large"])
    queue.answered(second, 0, produced(0))
    assert isinstance(first.error, MessageSizeTooLargeError)
    assert (second.error, second.base_offset) == (None, 0)


def test_after_its_deadline_a_batch_fails_and_a_late_answer_changes_nothing() -> None:
    sending = ScriptedSending()
    queue = PartitionQueue(sending, "t", 0)
    batch = add(queue)
    sending.now = DEADLINE_MS * NS_PER_MS
    queue.answered(batch, NotLeaderForPartitionError.code, [])
    assert isinstance(batch.error, NotLeaderForPartitionError)
    queue.answered(batch, 0, produced(7))
    assert batch.base_offset == -1
    assert sending.used_bytes == 0


def test_waiting_batches_expire_with_the_reason_for_which_they_wait() -> None:
    sending = ScriptedSending()
    queue = PartitionQueue(sending, "t", 0)
    sending.outcome = Sent.NO_LEADER
    old = add(queue)
    sending.now = NS_PER_MS
    young = add(queue)
    sending.now = DEADLINE_MS * NS_PER_MS
    queue.expire(sending.now, StorageError("why"))
    assert isinstance(old.error, StorageError)
    assert not young.is_done


def test_a_record_that_is_no_bytes_fails_its_batch_and_holds_up_nobody() -> None:
    sending = ScriptedSending()
    queue = PartitionQueue(sending, "t", 0)
    bad, good = add(queue, "text"), add(queue)
    assert isinstance(bad.error, InvalidRecordError)
    assert sending.sent == [good]
    queue.answered(good, 0, produced(0))
    assert queue.is_empty
    assert sending.used_bytes == 0


def test_the_back_off_grows_up_to_its_bound_and_begins_anew_after_a_success() -> None:
    sending = ScriptedSending()
    queue = PartitionQueue(sending, "t", 0)
    waits_ms = []
    for _ in range(17):
        queue.leader_unknown()
        waits_ms.append((queue.retry_ns - sending.now) // NS_PER_MS)
    assert waits_ms == [1, 1, 1, 1, 2, 2, 2, 5, 5, 10, 10, 10, 10, 20, 50, 100, 100]
    queue.answered(add(queue), 0, produced(0))
    queue.leader_unknown()
    assert queue.retry_ns == NS_PER_MS


def test_a_flush_waits_for_what_was_closed_before_it() -> None:
    sending = ScriptedSending()
    queue = PartitionQueue(sending, "t", 0)
    before = add(queue)
    mark = queue.closed_count
    add(queue)
    assert not queue.is_done_until(mark)
    queue.answered(before, 0, produced(0))
    assert queue.is_done_until(mark)


def test_abandoning_fails_everything_once() -> None:
    sending = ScriptedSending(max_in_flight=1)
    queue = PartitionQueue(sending, "t", 0)
    batches = [add(queue), add(queue)]
    queue.open = Batch(queue, 0)
    queue.open.values.append(b"open")
    batches.append(queue.open)
    told: list[Batch] = []
    for batch in batches:
        batch.on_done(told.append)
    for call in queue.abandon(StorageError("closed")):
        call()
    assert told == batches
    assert queue.is_empty
    assert sending.used_bytes == 0


class FlakyLeader:
    """A partition's leader behind a lane: it takes batches in order, and from its death on none, until the sender has
    found the next one. Acknowledgements may get lost after the append."""

    def __init__(self, random_: random.Random) -> None:
        self.random = random_
        self.log: list[int] = []
        self.is_dead = False

    def serve(self, sending: ScriptedSending, queue: PartitionQueue) -> None:
        arrived, sending.sent = sending.sent, []
        answers: list[tuple[Batch, int, list[bytes]]] = []
        for batch in arrived:
            self.is_dead = self.is_dead or self.random.random() < 0.15
            if self.is_dead:
                code = self.random.choice([NotLeaderForPartitionError.code, RequestTimedOutError.code])
                answers.append((batch, code, [b"no"]))
                continue
            self.log.append(batch.number)
            is_lost = self.random.random() < 0.1
            answers.append((batch, RequestTimedOutError.code if is_lost else 0, produced(len(self.log) - 1)))
        # Time-outs and answers of two ways come in any order.
        self.random.shuffle(answers)
        for batch, code, body in answers:
            queue.answered(batch, code, body)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_fails_in_whatever_order_first_appends_are_in_order_and_nothing_is_lost(seed: int) -> None:
    random_ = random.Random(seed)
    sending = ScriptedSending(max_in_flight=random_.randint(1, 6))
    queue = PartitionQueue(sending, "t", 0)
    leader = FlakyLeader(random_)
    batches: list[Batch] = []
    for _ in range(200):
        batches += [add(queue) for _ in range(random_.randint(0, 3))]
        leader.serve(sending, queue)
        if queue.needs_leader and random_.random() < 0.7:
            leader.is_dead = False
            queue.leader_found()
    for _ in range(10_000):
        if queue.is_empty:
            break
        leader.is_dead = leader.is_dead and not queue.needs_leader
        queue.leader_found()
        leader.serve(sending, queue)
    assert all(batch.is_done and batch.error is None for batch in batches)
    firsts = list(dict.fromkeys(leader.log))
    assert firsts == [batch.number for batch in batches]
    assert all(leader.log[batch.base_offset] == batch.number for batch in batches)
    assert sending.used_bytes == 0
