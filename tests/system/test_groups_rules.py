"""The rules of a group's consumer, on each way: what it may commit, who is told what, what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import pytest

from tests.consuming import broker_with_tcp, fill, make_topic, numbers, read_records, read_values
from zbroker.client.consumer import Consumer
from zbroker.errors import (
    CommitFailedError,
    ConfigError,
    InconsistentGroupProtocolError,
    InvalidGroupIdError,
    NonEmptyGroupError,
    OffsetOutOfRangeError,
    RebalanceListenerError,
    UnknownTopicOrPartitionError,
    UnreleasedInstanceIdError,
)
from zbroker.ids import TopicPartition
from zbroker.record.records import OffsetAndMetadata
from zbroker.testing import Broker
from zbroker.wire.group_messages import AssignableTopic, SubscribedMember

QUICK: dict[str, Any] = {"heartbeat_interval_ms": 50, "auto_offset_reset": "earliest"}
BY_HAND: dict[str, Any] = {**QUICK, "enable_auto_commit": False}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(workers=2)
    with broker:
        yield broker, address


def drive(consumers: Collection[Consumer[Any, Any]], is_done: Callable[[], bool], timeout_s: float = 20) -> list[Any]:
    """Let consumers of one thread poll in turn until it is so; the values that came meanwhile."""
    found = []
    deadline_s = time.monotonic() + timeout_s
    while not is_done():
        assert time.monotonic() < deadline_s, [sorted(consumer.assignment()) for consumer in consumers]
        for consumer in consumers:
            found += [record.value for record in consumer.consume(100, timeout_ms=2)]
    return found


def count(consumer: Consumer[Any, Any]) -> int:
    """How many partitions it has, without a wait."""
    return len(consumer._subscription.assigned)


def is_settled(consumer: Consumer[Any, Any]) -> bool:
    assert consumer._group is not None
    return consumer._group.is_settled


def share(consumers: Sequence[Consumer[Any, Any]], *counts: int) -> list[Any]:
    return drive(consumers, lambda: sorted(map(count, consumers)) == sorted(counts))


def end_of_commit(consumers: Sequence[Consumer[Any, Any]], offsets: Any) -> Any:
    """What the callback of an asynchronous commit of the first one is given."""
    ended: list[Any] = []
    consumers[0].commit_async(offsets, callback=lambda *how: ended.append(how))
    drive(consumers, lambda: bool(ended))
    return ended[0]


class Told:
    """What a listener was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self.failures = 0

    def _note(self, what: str, partitions: Collection[TopicPartition]) -> None:
        self.calls.append((what, sorted(tp.partition for tp in partitions)))
        if self.failures:
            self.failures -= 1
            raise ValueError("no")

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self._note("assigned", assigned)

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        self._note("revoked", revoked)

    def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        self._note("lost", lost)


def test_positions_are_committed_by_themselves_and_at_the_end(way: dict[str, Any], topic: str) -> None:
    fill(way, topic, numbers(30))
    with Consumer(topic, group_id=topic, auto_commit_interval_ms=1, **QUICK, **way) as consumer:
        assert read_values(consumer, 10) == numbers(10)
        with Consumer(group_id=topic, **way) as other:
            drive([consumer], lambda: other.committed((topic, 0)) is not None)
        position = consumer.position((topic, 0))
    with Consumer(topic, group_id=topic, **QUICK, **way) as consumer:
        assert consumer.committed((topic, 0)) == OffsetAndMetadata(position)
        assert consumer.position((topic, 0)) == position


def test_what_an_exception_interrupts_is_not_committed(way: dict[str, Any], topic: str) -> None:
    fill(way, topic, numbers(30))

    def fail() -> None:
        with Consumer(topic, group_id=topic, **QUICK, **way) as consumer:
            assert read_values(consumer, 10) == numbers(10)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with Consumer(topic, group_id=topic, **QUICK, **way) as consumer:
        assert read_values(consumer, 1) == [b"0"]


def test_a_commit_reaches_every_member_with_its_note(way: dict[str, Any], topic: str) -> None:
    fill(way, topic, numbers(30))
    tp = TopicPartition(topic, 0)
    with Consumer(topic, group_id=topic, **BY_HAND, **way) as consumer:
        records = read_records(consumer, 20)
        assert consumer.committed(tp) is None
        consumer.commit(records[4])
        assert consumer.committed(tp) == OffsetAndMetadata(5)
        consumer.commit({tp: OffsetAndMetadata(7, "half", 0)})
        assert consumer.committed([tp]) == {tp: OffsetAndMetadata(7, "half", 0)}
        consumer.commit({(topic, 0): 3})
        assert consumer.committed(tp) == OffsetAndMetadata(3), "the last one counts"
        offsets, error = end_of_commit([consumer], None)
        assert error is None
        assert consumer.committed(tp) == offsets[tp]
        consumer.commit({tp: 11}, durable=True)
    with Consumer(topic, group_id=topic, **BY_HAND, **way) as consumer:
        assert read_values(consumer, 1) == [b"11"]


def test_what_is_not_its_own_is_not_committed(way: dict[str, Any], topic: str) -> None:
    fill(way, topic, numbers(5))
    with (
        Consumer(topic, group_id=topic, **BY_HAND, **way) as first,
        Consumer(topic, group_id=topic, **BY_HAND, **way) as second,
    ):
        with pytest.raises(CommitFailedError):
            first.commit({(topic, 0): 1})
        share([first, second], 1, 2)
        for one, other in ((first, second), (second, first)):
            foreign, own = min(other.assignment()), min(one.assignment())
            with pytest.raises(CommitFailedError, match="is not this consumer's"):
                one.commit({own: 1, foreign: 1})
            assert one.committed([own, foreign]) == {own: None, foreign: None}, "all or nothing"
            assert isinstance(end_of_commit([one, other], {foreign: 1})[1], CommitFailedError)
        with pytest.raises(CommitFailedError):
            first.commit({("no-such-topic", 0): 1})
        with pytest.raises(ValueError, match="neither an offset"):
            first.commit({min(first.assignment()): -1})


def test_a_commit_in_the_listener_is_the_last_and_counts(way: dict[str, Any], topic: str) -> None:
    for number in range(3):
        fill(way, topic, numbers(10, 100 * number), number)
    first: Consumer[Any, Any] = Consumer(group_id=topic, **BY_HAND, **way)
    done: list[Any] = []

    def commit(revoked: Collection[TopicPartition]) -> None:
        first.commit({tp: first.position(tp) for tp in revoked})
        done.append(sorted(revoked))

    with first, Consumer(topic, group_id=topic, **BY_HAND, **way) as second:
        first.subscribe([topic], on_revoke=commit)
        values = read_values(first, 30)
        values += share([first, second], 1, 2)
        assert len(done) == 1
        for number in range(3):
            fill(way, topic, numbers(5, 100 * number + 10), number)
        values += [record.value for record in first.consume(3, timeout_ms=5_000)]
        first.close()
        values += share([second], 3)
        values += drive([second], lambda: sum(second.position(tp) for tp in second.assignment()) == 45)
    assert len(done) == 2
    assert sorted(map(int, values)) == [100 * number + index for number in range(3) for index in range(15)]


def test_a_listener_that_raises_is_told_again(way: dict[str, Any], topic: str) -> None:
    fill(way, topic, numbers(3))
    told = Told()
    told.failures = 1
    with Consumer(group_id=topic, **BY_HAND, **way) as first:
        first.subscribe([topic], listener=told)
        with pytest.raises(RebalanceListenerError, match="ValueError: no"):
            read_values(first, 1)
        assert first._subscription.assigned == {}
        assert read_values(first, 3) == numbers(3)
        assert told.calls == [("assigned", [0, 1, 2])] * 2
        told.failures = 1
        with Consumer(topic, group_id=topic, **BY_HAND, **way) as second:
            with pytest.raises(RebalanceListenerError):
                share([first, second], 1, 2)
            assert count(first) == 3
            share([first, second], 1, 2)
            assert told.calls[2] == told.calls[3]
            assert told.calls[2][0] == "revoked"
        share([first], 3)
        told.failures = 1
        with pytest.raises(RebalanceListenerError):
            first.close()
    with Consumer(topic, group_id=topic, **BY_HAND, **way) as third:
        share([third], 3)


def test_a_pattern_finds_topics_and_one_that_matches_none_says_so(way: dict[str, Any], topic: str) -> None:
    with Consumer(group_id=topic, metadata_max_age_ms=50, **BY_HAND, **way) as consumer:
        consumer.subscribe(pattern=topic + "-x-.*")
        with pytest.raises(UnknownTopicOrPartitionError, match="no topic matches"):
            consumer.consume(1, timeout_ms=5_000)
        make_topic(way, f"{topic}-x-1", 2)
        assert poll_on(consumer, 2) == []
        make_topic(way, f"{topic}-x-2", 1)
        make_topic(way, f"{topic}-y", 1)
        assert poll_on(consumer, 3) == []
        assert consumer.subscription() == {f"{topic}-x-1", f"{topic}-x-2"}
        fill(way, f"{topic}-x-2", numbers(2))
        assert read_values(consumer, 2) == numbers(2)


def poll_on(consumer: Consumer[Any, Any], wanted: int, timeout_s: float = 20) -> list[Any]:
    """Poll over the errors of topics that are not there yet."""
    found: list[Any] = []
    deadline_s = time.monotonic() + timeout_s
    while count(consumer) != wanted:
        assert time.monotonic() < deadline_s, consumer.assignment()
        try:
            found += [record.value for record in consumer.consume(10, timeout_ms=10)]
        except UnknownTopicOrPartitionError:
            continue
    return found


def test_a_topic_that_does_not_exist_is_an_error_and_is_read_once_it_does(way: dict[str, Any], topic: str) -> None:
    with Consumer(topic, group_id=topic, metadata_max_age_ms=50, **BY_HAND, **way) as consumer:
        consumer.subscribe([topic, f"{topic}-later"])
        with pytest.raises(UnknownTopicOrPartitionError, match="later"):
            consumer.consume(1, timeout_ms=5_000)
        make_topic(way, f"{topic}-later", 1)
        fill(way, f"{topic}-later", numbers(2))
        values = poll_on(consumer, 4)
        assert values + read_values(consumer, 2 - len(values)) == numbers(2)


def test_without_a_reset_an_offset_that_is_missing_is_an_error(way: dict[str, Any], topic: str) -> None:
    fill(way, topic, numbers(5))
    settings = {**BY_HAND, "auto_offset_reset": "none"}
    with Consumer(topic, group_id=topic, **settings, **way) as consumer:
        with pytest.raises(OffsetOutOfRangeError):
            read_values(consumer, 1)
        for number in range(3):
            consumer.seek((topic, number), 0)
        assert read_values(consumer, 5) == numbers(5)
        consumer.commit({(topic, 0): 1_000})
    with Consumer(topic, group_id=topic, **settings, **way) as consumer:
        for number in (1, 2):
            consumer.seek((topic, number), 0)
        with pytest.raises(OffsetOutOfRangeError):
            read_values(consumer, 1)


def test_a_group_with_members_is_not_set_from_outside(way: dict[str, Any], topic: str) -> None:
    with Consumer(topic, group_id=topic, **BY_HAND, **way) as member, Consumer(group_id=topic, **way) as other:
        share([member], 3)
        member.commit({(topic, 0): 5})
        other.assign([(topic, 0)])
        with pytest.raises((NonEmptyGroupError, CommitFailedError)):
            other.commit({(topic, 0): 2})
        assert member.committed((topic, 0)) == OffsetAndMetadata(5)
        member.close()
        other.commit({(topic, 0): 2})
        assert other.committed((topic, 0)) == OffsetAndMetadata(2)


def test_an_instance_id_has_one_living_member(way: dict[str, Any], topic: str) -> None:
    settings = {"group_id": topic, "group_instance_id": "w", "session_timeout_ms": 2_000, **BY_HAND, **way}
    with Consumer(topic, **settings) as first, Consumer(topic, **settings) as second:
        share([first], 3)
        with pytest.raises(UnreleasedInstanceIdError):
            drive([first, second], lambda: False)
        assert count(first) == 3
        first.commit({(topic, 0): 1})
        first.close()
        share([second], 3)


def test_without_a_group_nothing_is_committed(way: dict[str, Any], topic: str) -> None:
    with Consumer(topic, **way) as consumer:
        for call in (consumer.commit, consumer.commit_async, consumer.group_metadata, lambda: consumer.committed([])):
            with pytest.raises(InvalidGroupIdError, match="no group"):
                call()
    for wrong in ("", "a/b", "x" * 250):
        with pytest.raises(ConfigError, match="group_id"):
            Consumer(topic, group_id=wrong, **way)


# --- who gets what ---------------------------------------------------------------------------------------------------


def to_one(members: Sequence[SubscribedMember], topics: Sequence[AssignableTopic]) -> Mapping[str, Any]:
    """All to the member whose id comes first."""
    first = min(member.member_id for member in members)
    return {first: [(topic.name, number) for topic in topics for number in range(topic.partition_count)]}


def raising(members: Sequence[SubscribedMember], topics: Sequence[AssignableTopic]) -> Mapping[str, Any]:
    raise ValueError("cannot")


def lying(members: Sequence[SubscribedMember], topics: Sequence[AssignableTopic]) -> Mapping[str, Any]:
    """The same partition to all."""
    return {member.member_id: [(topics[0].name, 0)] for member in members}


@pytest.mark.parametrize(
    ("strategy", "counts"),
    [
        ("sticky", (1, 2)),
        ("range", (1, 2)),
        ("roundrobin", (1, 2)),
        ("single-active", (0, 3)),
        (to_one, (0, 3)),
        (raising, (1, 2)),
        (lying, (1, 2)),
        ([to_one, "sticky"], (0, 3)),
    ],
)
def test_assignors(way: dict[str, Any], topic: str, strategy: Any, counts: tuple[int, int]) -> None:
    fill(way, topic, numbers(9))
    settings = {"group_id": topic, "partition_assignment_strategy": strategy, **BY_HAND, **way}
    with Consumer(topic, **settings) as first, Consumer(topic, **settings) as second:
        share([first], 3)
        share([first, second], *counts)
        drive([first, second], lambda: is_settled(first) and is_settled(second))
        assert sorted([count(first), count(second)]) == list(counts)
        assert not first.assignment() & second.assignment()


def test_members_without_a_common_assignor_are_refused(way: dict[str, Any], topic: str) -> None:
    with (
        Consumer(topic, group_id=topic, partition_assignment_strategy="range", **BY_HAND, **way) as first,
        Consumer(topic, group_id=topic, partition_assignment_strategy="sticky", **BY_HAND, **way) as second,
    ):
        share([first], 3)
        with pytest.raises(InconsistentGroupProtocolError):
            second.consume(1, timeout_ms=5_000)
        assert count(first) == 3


def test_unsubscribe_and_other_topics(way: dict[str, Any], topic: str) -> None:
    make_topic(way, f"{topic}-2", 2)
    told = Told()
    with (
        Consumer(group_id=topic, **BY_HAND, **way) as first,
        Consumer(topic, group_id=topic, **BY_HAND, **way) as second,
    ):
        first.subscribe([topic], listener=told)
        share([first, second], 1, 2)
        first.subscribe([f"{topic}-2"], listener=told)
        drive([first, second], lambda: (count(first), count(second)) == (2, 3))
        assert {tp.topic for tp in first.assignment()} == {f"{topic}-2"}
        first.unsubscribe()
        assert first.assignment() == set()
        assert told.calls[-1] == ("revoked", [0, 1])
        first.subscribe([topic])
        share([first, second], 1, 2)
