"""What a partition takes of a producer, what it has already, and what it refuses."""

from __future__ import annotations

import pytest

from zbroker.core.dedup import BATCHES_KEPT, FOREVER_MS, FORGOTTEN, Sequences
from zbroker.errors import (
    InvalidProducerEpochError,
    OutOfOrderSequenceNumberError,
    UnknownProducerIdError,
)
from zbroker.record.batch import read_header
from zbroker.record.columns import encode_columns
from zbroker.record.layout import BatchHeader
from zbroker.record.producers import APPLICATION_IDS, SEQUENCES, application_id, last_sequence, steps_between


def batch(sequence: int, count: int = 3, *, producer_id: int = 7, epoch: int = 0) -> BatchHeader:
    encoded = encode_columns(
        [b"v"] * count, timestamp_ms=1, producer_id=producer_id, producer_epoch=epoch, base_sequence=sequence
    )
    return read_header(encoded)


def sequences(**changes: int) -> Sequences:
    limits = {"expiration_ms": 1_000, "window_ms": 100, "window_entries_max": 5}
    return Sequences(**{**limits, **changes})


class Log:
    """Appends what is new, as a leader does."""

    def __init__(self, known: Sequences) -> None:
        self.known = known
        self.end = 0
        self.now_ms = 0

    def offer(self, header: BatchHeader) -> object:
        verdict = self.known.judge(header)
        if verdict is None:
            self.known.note(header, self.end, self.now_ms)
            self.end += header.record_count
            return "appended"
        return verdict


def test_batches_in_order_are_appended_and_repeats_answered_with_their_place() -> None:
    log = Log(sequences())
    assert log.offer(batch(0)) == "appended"
    assert log.offer(batch(3, 2)) == "appended"
    assert log.offer(batch(0)) == (0, 3)
    assert log.offer(batch(3, 2)) == (3, 5)
    assert log.offer(batch(5)) == "appended"
    assert log.end == 8


def test_a_gap_is_refused_and_filled_in_order() -> None:
    log = Log(sequences())
    log.offer(batch(0))
    assert isinstance(log.offer(batch(6)), OutOfOrderSequenceNumberError)
    assert log.offer(batch(3)) == "appended"
    assert log.offer(batch(6)) == "appended"


def test_a_stranger_begins_with_0() -> None:
    log = Log(sequences())
    assert isinstance(log.offer(batch(4)), UnknownProducerIdError)
    assert log.offer(batch(0)) == "appended"


def test_an_older_epoch_is_fenced_and_a_newer_one_begins_with_0() -> None:
    log = Log(sequences())
    log.offer(batch(0, epoch=3))
    assert isinstance(log.offer(batch(3, epoch=2)), InvalidProducerEpochError)
    assert isinstance(log.offer(batch(3, epoch=4)), OutOfOrderSequenceNumberError)
    assert log.offer(batch(0, epoch=4)) == "appended"
    assert isinstance(log.offer(batch(3, epoch=3)), InvalidProducerEpochError)
    assert log.offer(batch(0, epoch=4)) == (3, 6)


def test_sequences_wrap() -> None:
    assert last_sequence(SEQUENCES - 1, 2) == 0
    assert steps_between(SEQUENCES - 1, 0) == 1
    assert steps_between(0, SEQUENCES - 1) == -1
    log = Log(sequences())
    log.known.note(batch(SEQUENCES - 3), 0, 0)
    log.end = 3
    assert log.offer(batch(0)) == "appended"
    assert log.offer(batch(SEQUENCES - 3)) == (0, 3)
    assert log.offer(batch(3)) == "appended"
    log.known.note(batch(6, 4, producer_id=9), 10, 0)
    assert log.known.judge(batch(10, producer_id=9)) is None


def test_a_repeat_whose_place_is_forgotten_is_still_a_repeat() -> None:
    log = Log(sequences())
    for number in range(2 * BATCHES_KEPT):
        assert log.offer(batch(number)) == ("appended" if number % 3 == 0 else log.known.judge(batch(number)))
    for number in range(0, 3 * BATCHES_KEPT * 2, 3):
        log.offer(batch(number))
    place = log.offer(batch(0))
    assert isinstance(place, tuple)
    assert place[0] == FORGOTTEN
    assert 0 < place[1] <= log.end


def test_who_is_not_heard_of_is_forgotten() -> None:
    log = Log(sequences())
    log.offer(batch(0))
    log.now_ms = 900
    log.offer(batch(0, producer_id=8))
    assert log.known.expire(1_500) == 1
    assert isinstance(log.offer(batch(3)), UnknownProducerIdError)
    assert log.offer(batch(3, producer_id=8)) == "appended"


def test_there_are_never_more_producers_than_allowed() -> None:
    log = Log(sequences(producers_max=3))
    for sequence, producer_id in ((0, 1), (0, 2), (0, 3), (3, 1), (0, 4)):
        assert log.offer(batch(sequence, producer_id=producer_id)) == "appended"
    assert len(log.known) == 3
    assert {producer_id for producer_id, _ in log.known.producers()} == {1, 3, 4}


def named(name: bytes, count: int = 2) -> BatchHeader:
    return batch(0, count, producer_id=application_id(name))


def test_a_name_is_taken_once_within_its_window() -> None:
    log = Log(sequences())
    assert log.offer(named(b"order-7")) == "appended"
    assert log.offer(named(b"order-8")) == "appended"
    assert log.offer(named(b"order-7")) == (0, 2)
    log.known.now_ms = 101
    assert log.offer(named(b"order-7")) == "appended"
    assert log.offer(named(b"order-7")) == (4, 6)


def test_the_window_holds_so_many_names() -> None:
    log = Log(sequences())
    for number in range(6):
        log.offer(named(b"%d" % number))
    assert log.offer(named(b"5")) == (10, 12)
    assert log.offer(named(b"1")) == (2, 4)
    assert log.offer(named(b"0")) == "appended"


def test_names_are_apart_from_producers() -> None:
    assert application_id(b"a") >= APPLICATION_IDS
    assert application_id(b"a") < 1 << 63
    assert application_id(b"a") != application_id(b"b")
    assert application_id(b"a") == application_id(b"a")


@pytest.mark.parametrize("count", [0, 3])
def test_a_copy_of_the_state_decides_the_same(count: int) -> None:
    log = Log(sequences())
    for number in range(count):
        log.offer(batch(3 * number))
        log.offer(named(b"%d" % number))
    again = sequences()
    for producer_id, producer in log.known.producers():
        again.restore(producer_id, producer)
    for header in (batch(0), batch(3), batch(9), named(b"0"), named(b"9")):
        first, second = log.known.judge(header), again.judge(header)
        assert type(first) is type(second)
        assert first == second or isinstance(first, Exception)


def test_the_version_counts_what_would_have_to_be_saved() -> None:
    known = sequences()
    assert known.version == 0
    known.note(batch(0), 0, 0)
    assert known.version == 1
    assert known.expire(500) == 0
    assert known.version == 1
    assert known.expire(5_000) == 1
    assert known.version == 2


def test_until_it_says_there_is_nobody_to_forget() -> None:
    log = Log(sequences(expiration_ms=1_000))
    assert log.known.quiet_until_ms == FOREVER_MS
    log.now_ms = 500
    log.offer(batch(0, producer_id=1))
    log.now_ms = 700
    log.offer(batch(0, producer_id=2))
    until_ms = log.known.quiet_until_ms
    assert until_ms == 1_500, "the longest unused first"
    assert log.known.expire(until_ms) == 0
    assert log.known.expire(until_ms + 1) == 1
    log.offer(batch(0, producer_id=application_id(b"name")))
    assert log.known.quiet_until_ms == 0
