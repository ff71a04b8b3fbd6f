"""The partition leader's state machine: events in, effects out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from zbroker.clock import NS_PER_MS
from zbroker.config.schema import TopicConfig
from zbroker.core import partition_events as ev
from zbroker.core.partition import FLUSH_SHARED_FROM, FLUSH_WAITERS_MAX, Partition, State
from zbroker.errors import (
    BrokerError,
    DiskFullError,
    IllegalTransition,
    InvalidRequiredAcksError,
    NotEnoughReplicasError,
    NotLeaderForPartitionError,
    OffsetOutOfRangeError,
    StorageError,
    ThrottlingQuotaExceededError,
    TooManyOpenFilesError,
    UnknownLeaderEpochError,
)


def partition(log_end: int = 0, **config: Any) -> Partition:
    return Partition(leader_epoch=3, log_start=0, log_end=log_end, durable=0, config=TopicConfig(**config))


def kinds(effects: list[ev.Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def append(one: Partition, request: object, count: int = 1, *, acks: int = 1, now_ns: int = 0) -> list[ev.Effect]:
    """Produce and report the append."""
    (write,) = one.handle(ev.Produce(request, acks, -1), now_ns)
    assert isinstance(write, ev.Write)
    return one.handle(ev.Appended(request, acks, write.base_offset, write.base_offset + count), now_ns)


def refusal(effects: list[ev.Effect]) -> type[BaseException]:
    (effect,) = effects
    assert isinstance(effect, ev.Refuse)
    return type(effect.error)


def test_a_batch_is_written_published_and_acknowledged_in_this_order() -> None:
    one = partition(log_end=10)
    assert one.handle(ev.Produce("a", 1, 3), 0) == [ev.Write("a", 1, 10, 3)]
    assert one.log_end == 10, "nothing is given out before the append is reported"
    assert one.handle(ev.Appended("a", 1, 10, 15), 0) == [ev.Publish(15), ev.Acknowledge("a", 10)]
    assert (one.log_end, one.high_watermark) == (15, 15)


def test_a_waiting_reader_is_woken_before_the_producer_is_answered() -> None:
    one = partition()
    assert one.handle(ev.WaitFor(7, 0), 0) == []
    assert kinds(append(one, "a")) == ["Publish", "Wake", "Acknowledge"]


@pytest.mark.parametrize("acks", [1, -1])
def test_acks_one_and_all_are_the_same_with_one_copy(acks: int) -> None:
    assert kinds(append(partition(), "a", acks=acks)) == ["Publish", "Acknowledge"]


def test_acks_none_is_never_answered() -> None:
    assert kinds(append(partition(), "a", acks=0)) == ["Publish"]


@pytest.mark.parametrize("acks", [3, -2, 127])
def test_other_acks_are_refused(acks: int) -> None:
    assert refusal(partition().handle(ev.Produce("a", acks, -1), 0)) is InvalidRequiredAcksError


@pytest.mark.parametrize("acks", [-1, 2])
def test_too_few_copies_in_sync_refuse_before_the_append(acks: int) -> None:
    one = partition(min_insync_replicas=2)
    assert refusal(one.handle(ev.Produce("a", acks, -1), 0)) is NotEnoughReplicasError
    assert kinds(append(one, "b", acks=1)) == ["Publish", "Acknowledge"], "acks=1 does not ask for copies"


def test_an_epoch_newer_than_known_is_refused_and_an_older_one_is_not() -> None:
    one = partition()
    assert refusal(one.handle(ev.Produce("a", 1, 4), 0)) is UnknownLeaderEpochError
    assert kinds(one.handle(ev.Produce("a", 1, 2), 0)) == ["Write"]


def test_fsync_is_answered_by_the_flush_that_covers_it_and_shares_it_with_others() -> None:
    one = partition()
    assert kinds(append(one, "a", acks=2)) == ["Flush", "Publish"]
    assert kinds(append(one, "b", acks=2)) == ["Publish"], "one flush at a time"
    assert kinds(append(one, "c", acks=2)) == ["Publish"]
    done = one.handle(ev.Flushed(1), 0)
    assert done == [ev.PublishDurable(1), ev.Acknowledge("a", 0), ev.Flush()]
    assert one.handle(ev.Flushed(3), 0) == [ev.PublishDurable(3), ev.Acknowledge("b", 1), ev.Acknowledge("c", 2)]
    assert not one.is_flushing


def test_a_flush_after_one_that_answered_many_is_shared_and_after_one_that_answered_few_is_not() -> None:
    one = partition()
    for number in range(FLUSH_SHARED_FROM + 1):
        append(one, number, acks=2)
    assert one.handle(ev.Flushed(FLUSH_SHARED_FROM), 0)[-1] == ev.Flush(is_shared=True)
    append(one, "last", acks=2)
    assert one.handle(ev.Flushed(FLUSH_SHARED_FROM + 1), 0)[-1] == ev.Flush(is_shared=False)


def test_a_flush_that_covers_too_little_answers_nobody() -> None:
    one = partition()
    append(one, "a", 5, acks=2)
    assert one.handle(ev.Flushed(4), 0) == [ev.PublishDurable(4), ev.Flush()]


def test_waiters_for_a_flush_are_bounded() -> None:
    one = partition()
    for number in range(FLUSH_WAITERS_MAX):
        append(one, number, acks=2)
    assert refusal(one.handle(ev.Produce("more", 2, -1), 0)) is ThrottlingQuotaExceededError
    assert kinds(one.handle(ev.Produce("one", 1, -1), 0)) == ["Write"]


def test_flush_messages_counts_records_since_the_last_flush() -> None:
    one = partition(flush_messages=10)
    assert kinds(append(one, "a", 9)) == ["Publish", "Acknowledge"]
    assert kinds(append(one, "b", 1)) == ["Publish", "Acknowledge", "Flush"]
    assert kinds(append(one, "c", 1)) == ["Publish", "Acknowledge"]
    one.handle(ev.Flushed(11), 0)
    assert kinds(append(one, "d", 9)) == ["Publish", "Acknowledge"]


def test_flush_ms_counts_for_what_the_leader_before_has_left() -> None:
    """A new leader's log may end behind what its disk has, and nobody may ever append to it again."""
    one = Partition(3, 0, 10, 4, TopicConfig(flush_ms=50), now_ns=NS_PER_MS)
    assert one.handle(ev.Tick(), 50 * NS_PER_MS) == []
    assert one.handle(ev.Tick(), 51 * NS_PER_MS) == [ev.Flush()]


def test_flush_ms_counts_from_the_first_record_that_is_not_on_the_disk() -> None:
    one = partition(flush_ms=100)
    assert one.handle(ev.Tick(), 10**9) == [], "nothing to flush"
    append(one, "a", now_ns=0)
    append(one, "b", now_ns=90 * NS_PER_MS)
    assert one.handle(ev.Tick(), 99 * NS_PER_MS) == []
    assert kinds(one.handle(ev.Tick(), 100 * NS_PER_MS)) == ["Flush"]
    assert one.handle(ev.Tick(), 101 * NS_PER_MS) == [], "it is under way"


def test_a_finished_segment_is_flushed_once() -> None:
    one = partition()
    append(one, "a")
    assert kinds(one.handle(ev.Rolled(), 0)) == ["Restate", "Flush"]
    one.handle(ev.Flushed(1), 0)
    assert kinds(one.handle(ev.Rolled(), 0)) == ["Restate"]


def test_a_wait_for_what_is_there_ends_at_once_and_others_when_it_comes() -> None:
    one = partition(log_end=5)
    assert one.handle(ev.WaitFor(1, 4), 0) == [ev.Wake([1])]
    for wait, offset in ((2, 5), (3, 6), (4, 50)):
        assert one.handle(ev.WaitFor(wait, offset), 0) == []
    assert ev.Wake([2]) in append(one, "a")
    assert ev.Wake([3]) in append(one, "b")
    assert one.handle(ev.StopWaiting(4), 0) == []
    assert one.wait_count == 0
    one.handle(ev.StopWaiting(4), 0)


def test_a_full_disk_refuses_producers_and_no_reader_until_there_is_room() -> None:
    one = partition()
    append(one, "a")
    (write,) = one.handle(ev.Produce("b", 1, -1), 0)
    assert isinstance(write, ev.Write)
    assert refusal(one.handle(ev.AppendFailed("b", DiskFullError()), 0)) is DiskFullError
    assert one.state is State.FULL
    assert one.log_end == 1
    assert refusal(one.handle(ev.Produce("c", 1, -1), 0)) is DiskFullError
    assert one.handle(ev.WaitFor(1, 0), 0) == [ev.Wake([1])]
    assert kinds(one.handle(ev.DeleteBefore("d", 1), 0)) == ["Trim"], "deletion makes room"
    one.handle(ev.RoomFound(), 0)
    assert kinds(append(one, "e")) == ["Publish", "Acknowledge"]


@pytest.mark.parametrize("error", [TooManyOpenFilesError, StorageError])
def test_an_error_that_may_pass_refuses_one_batch_and_the_next_is_tried(error: type[BrokerError]) -> None:
    one = partition()
    one.handle(ev.Produce("a", 1, -1), 0)
    assert refusal(one.handle(ev.AppendFailed("a", error()), 0)) is error
    assert kinds(append(one, "b")) == ["Publish", "Acknowledge"]


def test_a_flush_that_cannot_begin_refuses_who_waits_for_it_and_the_next_is_tried() -> None:
    one = partition()
    append(one, "a", acks=2)
    assert refusal(one.handle(ev.FlushFailed(StorageError()), 0)) is StorageError
    assert kinds(append(one, "b", acks=2)) == ["Flush", "Publish"]


def test_damage_ends_producing_for_good_and_answers_everybody_who_waits_for_the_disk() -> None:
    one = partition()
    append(one, "a", acks=2)
    append(one, "b", acks=2)
    refused = one.handle(ev.Damaged(StorageError("fdatasync: EIO")), 0)
    assert [(e.request, type(e.error)) for e in refused if isinstance(e, ev.Refuse)] == [
        ("a", StorageError),
        ("b", StorageError),
    ]
    assert one.state is State.OFFLINE
    assert refusal(one.handle(ev.Produce("c", 1, -1), 0)) is StorageError
    assert refusal(one.handle(ev.DeleteBefore("d", 1), 0)) is StorageError
    one.handle(ev.RoomFound(), 0)
    assert one.state is State.OFFLINE, "room is not what was missing"
    assert one.handle(ev.Flushed(2), 0) == [], "the flush that was under way proves nothing any more"
    assert one.handle(ev.Damaged(StorageError()), 0) == []


def test_deletion_is_bounded_by_the_high_watermark() -> None:
    one = partition(log_end=10)
    assert one.handle(ev.DeleteBefore("a", 4), 0) == [ev.Trim("a", 4)]
    assert one.handle(ev.Trimmed(4, "a"), 0) == [ev.Restate(), ev.AnswerLogStart("a", 4)]
    assert one.handle(ev.DeleteBefore("b", 3), 0) == [ev.AnswerLogStart("b", 4)]
    assert one.handle(ev.DeleteBefore("c", -1), 0) == [ev.Trim("c", 10)]
    assert refusal(one.handle(ev.DeleteBefore("d", 11), 0)) is OffsetOutOfRangeError
    assert refusal(one.handle(ev.DeleteBefore("e", -2), 0)) is OffsetOutOfRangeError
    assert one.handle(ev.Trimmed(7), 0) == [ev.Restate()], "retention answers nobody"


def test_revocation_retires_wakes_and_refuses_and_is_the_end() -> None:
    one = partition()
    one.handle(ev.WaitFor(1, 5), 0)
    append(one, "a", acks=2)
    effects = one.handle(ev.Revoked(), 0)
    assert kinds(effects) == ["Retire", "Wake", "Refuse"]
    assert isinstance(effects[2], ev.Refuse)
    assert type(effects[2].error) is NotLeaderForPartitionError
    before = (one.log_end, one.state)
    with pytest.raises(IllegalTransition):
        one.handle(ev.Produce("b", 1, -1), 0)
    assert (one.log_end, one.state) == before


def test_a_higher_epoch_is_stamped_from_the_next_batch_on_and_a_lower_one_is_ignored() -> None:
    one = partition()
    assert one.handle(ev.EpochRaised(5), 0) == [ev.Restate()]
    assert one.handle(ev.Produce("a", 1, 5), 0) == [ev.Write("a", 1, 0, 5)]
    assert one.handle(ev.EpochRaised(4), 0) == []
    assert one.leader_epoch == 5


def test_settings_change_at_once() -> None:
    one = partition()
    one.handle(ev.Reconfigured(TopicConfig(min_insync_replicas=2)), 0)
    assert refusal(one.handle(ev.Produce("a", -1, -1), 0)) is NotEnoughReplicasError


def test_an_append_that_contradicts_the_offset_given_out_is_a_programmers_error() -> None:
    one = partition(log_end=3)
    with pytest.raises(AssertionError):
        one.handle(ev.Appended("a", 1, 4, 5), 0)


def test_every_event_has_a_handler() -> None:
    events = [kind for kind in vars(ev).values() if isinstance(kind, type) and issubclass(kind, ev.Event)]
    assert len(events) > 10
    from zbroker.core.partition import _HANDLERS

    assert set(events) - {ev.Event} == set(_HANDLERS)
    assert all(issubclass(kind, msgspec.Struct) for kind in events)
