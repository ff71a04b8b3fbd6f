"""A partition's queue against a leader that follows the rules of KIP-98 and is as unreliable as can be.

The twin of what must come out is one line: what was acknowledged is in the log once, in the order of sending; what
failed for good is there at most once; nothing else is.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zbroker.client.batches import Batch
from zbroker.client.partition_queue import PartitionQueue, Sent
from zbroker.client.sequences import SEQUENCE_MAX, Identity, after
from zbroker.clock import NS_PER_MS
from zbroker.core.dedup import Appended, Producer, Sequences
from zbroker.errors import (
    BrokerError,
    DiskFullError,
    NotEnoughReplicasAfterAppendError,
    NotEnoughReplicasError,
    NotLeaderForPartitionError,
    OutOfOrderSequenceNumberError,
    ProducerFencedError,
    RequestTimedOutError,
    UnknownProducerIdError,
    WrongExpectedOffsetError,
)
from zbroker.record.batch import check_batch
from zbroker.record.columns import Columns
from zbroker.record.layout import BatchHeader
from zbroker.wire.layout import PRODUCED

REMEMBERED = 5


class Twin:
    """The broker's rules, as simply as they can be said: a list of what came, for each producer."""

    def __init__(self) -> None:
        self._came: dict[int, list[tuple[int, int]]] = {}  # id -> (the sequence that follows, offset) of each batch

    def judge(self, header: BatchHeader) -> tuple[int, int] | BrokerError | None:
        came = self._came.get(header.producer_id)
        if came is None:
            return None if header.base_sequence == 0 else UnknownProducerIdError()
        following = after(header.base_sequence, header.record_count)
        for place, (known, offset) in enumerate(reversed(came)):
            if known == following:
                return (offset if place < REMEMBERED else -1), 0
        return None if header.base_sequence == came[-1][0] else OutOfOrderSequenceNumberError()

    def note(self, header: BatchHeader, offset: int, now_ms: int) -> None:
        following = after(header.base_sequence, header.record_count)
        self._came.setdefault(header.producer_id, []).append((following, offset))


class Leader:
    """A log and whoever judges what comes: the core's own class, or its twin."""

    def __init__(self, is_core: bool) -> None:
        self.log: list[bytes] = []
        core = Sequences(expiration_ms=1 << 40, window_ms=1 << 40, window_entries_max=1_000)
        self._known: Sequences | Twin = core if is_core else Twin()

    def append(self, encoded: bytes, refusal: int) -> tuple[int, list[bytes]]:
        """Check, append and answer; `refusal` is the error that this batch meets if it is not a repeat."""
        view = memoryview(encoded)
        header = check_batch(view, size_bytes_max=1 << 20, records_max=10_000)
        judged = self._known.judge(header)
        if isinstance(judged, tuple):
            return 0, [PRODUCED.pack(judged[0], -1, 0)]
        if refusal or judged is not None:
            return refusal or judged.code, [b""]  # type: ignore[union-attr]  # not None if there is no refusal
        offset = len(self.log)
        self.log += [value or b"" for value in Columns(view, header).values()]
        self._known.note(header, offset, 1)
        return 0, [PRODUCED.pack(offset, -1, 0)]


class Story:
    """A producer of one partition, the way to its leader, and chance."""

    def __init__(self, seed: int, *, is_core: bool, definite: float, lost: float) -> None:
        self.random = random.Random(seed)
        self.leader = Leader(is_core)
        self.lock = threading.RLock()
        self.acks, self.retries, self.max_in_flight, self.backoff_max_ms = -1, 1_000_000, 5, 100
        self.is_idempotent = True
        self.compression = "none"
        self.compression_level: int | None = None
        self.now = 0
        self.way: deque[tuple[Batch, bytes]] = deque()
        self.generations = 0
        self.futures: list[tuple[Batch, list[bytes]]] = []
        self.fenced: BrokerError | None = None
        self._definite, self._lost = definite, lost
        self.queue = PartitionQueue(self, "t", 0)

    def count_closed(self, batch: Batch) -> None: ...

    def count_done(self, batch: Batch) -> None: ...

    def defer(self, calls: list[Callable[[], None]]) -> None: ...

    def hurry(self) -> None:
        raise AssertionError("nobody waits here")

    def wait_done(self, batch: Batch, timeout_ms: float) -> bool:
        raise AssertionError("nobody waits here")

    def fence(self, error: BrokerError) -> list[Callable[[], None]]:
        self.fenced = error
        return self.queue.abandon(error)

    def now_ns(self) -> int:
        return self.now

    def wall_ms(self) -> int:
        return 1_700_000_000_000

    def transmit(self, queue: PartitionQueue, batch: Batch) -> Sent:
        assert batch.encoded is not None
        self.way.append((batch, bytes(batch.encoded)))
        return Sent.YES

    def send(self) -> None:
        number = len(self.futures)
        values = [b"%d.%d" % (number, index) for index in range(self.random.randint(1, 3))]
        batch = self.queue.open = Batch(self.queue, self.now)
        batch.deadline_ns = self.now + self.random.randint(20, 400) * NS_PER_MS
        batch.values += values
        self.futures.append((batch, values))
        self.queue.close_open()

    def find_leader(self) -> None:
        if self.queue.needs_leader:
            sequences = self.queue.sequences
            assert sequences is not None
            if sequences.identity is None:
                sequences.begin(Identity(100 + sequences.generation, 0, sequences.generation))
                self.generations = sequences.generation
            self.queue.leader_found()

    def answer(self, *, is_reliable: bool = False) -> None:
        if not self.way:
            return
        batch, encoded = self.way.popleft()
        chance = 1.0 if is_reliable else self.random.random()
        if chance < self._lost / 2:
            number, body = RequestTimedOutError.code, [b"never arrived"]
        elif chance < self._lost:
            self.leader.append(encoded, 0)
            doubtful = (NotLeaderForPartitionError, RequestTimedOutError, NotEnoughReplicasAfterAppendError)
            number, body = self.random.choice(doubtful).code, [b"the answer was lost"]
        elif chance < self._lost + self._definite:
            refusals = (DiskFullError, NotEnoughReplicasError, WrongExpectedOffsetError)
            number, body = self.leader.append(encoded, self.random.choice(refusals).code)
        else:
            number, body = self.leader.append(encoded, 0)
        self.queue.answered(batch, number, body)

    def step(self) -> None:
        self.now += self.random.randint(0, 8) * NS_PER_MS
        self.random.choice((self.send, self.answer, self.answer, self.find_leader))()
        if not self.random.randrange(8):
            self.queue.expire(self.now, None)

    def finish(self) -> None:
        for _ in range(10_000):
            if self.queue.is_empty:
                return
            self.find_leader()
            self.answer(is_reliable=True)
        raise AssertionError("batches are left that nothing can deliver")

    def check(self) -> None:
        position = {value: offset for offset, value in enumerate(self.leader.log)}
        assert len(position) == len(self.leader.log), "something is stored twice"
        last = -1
        for batch, values in self.futures:
            places = [position.get(value) for value in values]
            if batch.error is None:
                first = places[0]
                assert first is not None, "acknowledged, not there"
                assert places == list(range(first, first + len(values)))
                assert batch.base_offset in (first, -1)
                assert first > last, "out of order"
                last = first
            elif isinstance(batch.error, WrongExpectedOffsetError) and not batch.is_doubtful:
                assert places == [None] * len(values), "refused, and stored"
        stored = list(self.leader.log)
        sent = [value for _, values in self.futures for value in values]
        assert stored == [value for value in sent if value in position], "the log has another order"


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    is_core=st.booleans(),
    definite=st.sampled_from([0.0, 0.1, 0.4]),
    lost=st.sampled_from([0.0, 0.1, 0.3, 0.6]),
    steps=st.integers(1, 150),
)
def test_t27_what_is_acknowledged_is_stored_once_in_order_whatever_is_lost_or_refused(
    seed: int, is_core: bool, definite: float, lost: float, steps: int
) -> None:
    story = Story(seed, is_core=is_core, definite=definite, lost=lost)
    for _ in range(steps):
        story.step()
    story.finish()
    story.check()
    assert story.fenced is None


def test_t27_the_stories_reach_every_way_out() -> None:
    found = {"acknowledged": 0, "expired": 0, "refused": 0, "renewed": 0}
    for seed in range(60):
        story = Story(seed, is_core=False, definite=0.2, lost=0.4)
        for _ in range(150):
            story.step()
        story.finish()
        story.check()
        for batch, _ in story.futures:
            kind = "acknowledged" if batch.error is None else "refused"
            found["expired" if isinstance(batch.error, RequestTimedOutError) else kind] += 1
        found["renewed"] += story.generations > 0
    assert min(found.values()) > 0, found


def test_t27_numbers_wrap_to_zero_after_the_largest() -> None:
    assert after(SEQUENCE_MAX, 1) == 0
    assert after(SEQUENCE_MAX - 2, 5) == 2
    story = Story(1, is_core=True, definite=0, lost=0.3)
    story.send()
    story.finish()
    sequences = story.queue.sequences
    assert sequences is not None
    # As after two thousand million records.
    sequences._next = sequences._acknowledged = SEQUENCE_MAX - 20
    known = story.leader._known
    assert isinstance(known, Sequences)
    known.restore(100, Producer(0, [Appended(0, SEQUENCE_MAX - 21, 0, len(story.leader.log))], 1))
    for _ in range(300):
        story.step()
    story.finish()
    story.check()
    assert story.generations == 0
    assert 0 < sequences._next < SEQUENCE_MAX - 20


def test_t27_a_fenced_producer_is_told_so() -> None:
    story = Story(1, is_core=True, definite=0, lost=0)
    for _ in range(3):
        story.send()
    story.find_leader()
    story.queue.answered(story.way[0][0], 47, [b"epoch 0 is older than 1"])
    assert isinstance(story.fenced, ProducerFencedError)
    for batch, _ in story.futures:
        assert batch.is_done
        assert isinstance(batch.error, ProducerFencedError)
    with pytest.raises(ProducerFencedError):
        story.futures[0][0].metadata(0)
