"""Subscriptions, assignments and positions, without a broker."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest

from zbroker.client.assigned import Assigned
from zbroker.client.cluster_view import ClusterView
from zbroker.client.subscription import Subscription
from zbroker.errors import IllegalTransition, InvalidTopicError, UnknownTopicOrPartitionError
from zbroker.ids import TopicPartition
from zbroker.record.batch import stamp
from zbroker.record.columns import encode_columns
from zbroker.record.compacted import Records, hole, thinned
from zbroker.record.view import RecordBatch
from zbroker.wire.messages import MetadataReply, PartitionInfo, TopicInfo


def view(**partitions: int) -> ClusterView:
    topics = [
        TopicInfo(name, 10 + index, 0, {}, [PartitionInfo(n, -1, 0, 0, [], [], [], "", 0) for n in range(count)])
        for index, (name, count) in enumerate(partitions.items())
    ]
    return ClusterView(MetadataReply(1, "c", "", [], topics))


def tps(*names: str) -> set[TopicPartition]:
    return {TopicPartition(name[:-1], int(name[-1])) for name in names}


def test_topics_are_read_with_all_their_partitions_and_new_ones_from_the_start() -> None:
    one = Subscription("latest")
    one.subscribe(["a"], None)
    one.follow(view(a=1, b=1))
    assert set(one.assigned) == tps("a0")
    assert one.assigned[TopicPartition("a", 0)].reset == "latest"
    one.follow(view(a=2))
    assert set(one.assigned) == tps("a0", "a1")
    assert one.assigned[TopicPartition("a", 1)].reset == "earliest", "all that is in it came after the subscription"


def test_a_pattern_takes_whole_names_and_topics_that_appear_later() -> None:
    one = Subscription("latest")
    one.subscribe((), "a.*")
    assert one.names is None
    one.follow(view(a1=1, ba=1))
    assert one.followed() == {"a1"}
    one.follow(view(a1=1, a2=1))
    assert one.followed() == {"a1", "a2"}
    assert [one.assigned[tp].reset for tp in sorted(tps("a10", "a20"))] == ["latest", "earliest"]


def test_a_topic_that_does_not_exist_is_an_error_and_the_others_are_read() -> None:
    one = Subscription("earliest")
    one.subscribe(["a", "absent"], None)
    with pytest.raises(UnknownTopicOrPartitionError, match="'absent'"):
        one.follow(view(a=1))
    assert set(one.assigned) == tps("a0")
    assert one.absent == {"absent"}


def test_deleted_partitions_go_and_listeners_hear_of_all_changes() -> None:
    heard: list[tuple[str, list[TopicPartition]]] = []

    class Listener:
        def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
            heard.append(("assigned", list(assigned)))

        def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
            heard.append(("revoked", list(revoked)))

        def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
            raise AssertionError("groups only")

    one = Subscription("earliest")
    one.subscribe((), "a|b", Listener(), on_revoke=lambda gone: heard.append(("call", list(gone))))
    one.follow(view(a=1, b=1))
    one.follow(view(b=1))
    one.follow(view(b=1))
    assert sorted(heard[0][1]) == sorted(tps("a0", "b0"))
    assert heard[1][1] == heard[2][1] == list(tps("a0"))
    assert [kind for kind, _ in heard] == ["assigned", "call", "revoked"]


def test_subscribing_anew_keeps_the_positions_of_topics_that_stay() -> None:
    one = Subscription("latest")
    one.subscribe(["a", "b"], None)
    one.follow(view(a=1, b=1))
    kept = one.assigned[TopicPartition("a", 0)]
    kept.seek(5)
    one.subscribe(["a"], None)
    assert one.assigned == {kept.tp: kept}
    assert kept.offset == 5


def test_assigning_keeps_positions_and_excludes_subscribing() -> None:
    one = Subscription("latest")
    one.assign([("a", 0), ("a", 1)])
    one.get(("a", 1)).seek(7)
    one.assign([("a", 1)])
    assert one.get(("a", 1)).offset == 7
    with pytest.raises(IllegalTransition):
        one.get(("a", 0))
    with pytest.raises(IllegalTransition, match="unsubscribe"):
        one.subscribe(["a"], None)
    one.unsubscribe()
    one.subscribe(["a"], None)
    with pytest.raises(IllegalTransition, match="unsubscribe"):
        one.assign([("a", 0)])


@pytest.mark.parametrize(("topics", "pattern"), [((), None), (("a",), "a")])
def test_a_subscription_needs_topics_or_a_pattern(topics: Sequence[str], pattern: str | None) -> None:
    with pytest.raises(ValueError, match="topics or a pattern"):
        Subscription("latest").subscribe(topics, pattern)


def test_bad_names_are_refused() -> None:
    with pytest.raises(InvalidTopicError):
        Subscription("latest").subscribe(["no spaces"], None)
    with pytest.raises(InvalidTopicError):
        Subscription("latest").assign([("no/slash", 0)])


class FakeSource:
    """Batches of `size` records each up to `end`."""

    is_local = True
    leader = 16
    topic_id = 1

    def __init__(self, end: int, size: int = 4) -> None:
        self.end, self.size = end, size
        self.reads: list[int] = []
        self.fails_at = -1

    def high_watermark(self) -> int:
        return self.end

    def held_back(self, offset: int) -> int:
        return 0

    def has_more(self, offset: int) -> bool:
        return offset != self.end

    def read(self, offset: int, max_bytes: int) -> list[RecordBatch]:
        self.reads.append(offset)
        if offset == self.fails_at:
            raise ArithmeticError("as told")
        base = offset - offset % self.size
        end = min(self.end, base + 2 * self.size, self.fails_at if self.fails_at > offset else self.end)
        found = []
        for start in range(base, end, self.size):
            batch = bytearray(encode_columns([b"%d" % (start + i) for i in range(self.size)], timestamp_ms=0))
            stamp(batch, start, 0)
            found.append(RecordBatch("a", 0, memoryview(bytes(batch))))
        return found

    def range(self) -> tuple[int, int]:
        return 0, self.end

    def bytes_ahead(self, offset: int) -> int | None:
        return None

    def is_moved(self) -> bool:
        return False

    def is_leader_alive(self) -> bool:
        return True


def placed(end: int, offset: int = 0) -> Assigned:
    one = Assigned(TopicPartition("a", 0), "latest")
    one.source = FakeSource(end)
    one.seek(offset)
    return one


def taken(one: Assigned, count: int) -> list[int]:
    return [record.offset for record in one.take(count, 1 << 20)]


def test_records_come_once_in_order_in_pieces_of_any_size() -> None:
    one = placed(40)
    found: list[int] = []
    for count in (1, 2, 5, 1, 9, 100):
        piece = taken(one, count)
        assert len(piece) == min(count, 40 - len(found))
        found += piece
        assert one.offset == len(found)
    assert found == list(range(40))


def test_a_position_inside_a_batch_skips_the_records_before_it() -> None:
    one = placed(40, 6)
    assert taken(one, 3) == [6, 7, 8]


def test_a_list_that_was_given_out_belongs_to_its_taker() -> None:
    one = placed(8)
    one.take(4, 1 << 20).clear()
    one.seek(0)
    assert taken(one, 8) == list(range(8))


def test_going_back_gives_the_same_records_again() -> None:
    one = placed(40)
    taken(one, 5)
    one.go_back(2)
    assert taken(one, 5) == [2, 3, 4, 5, 6]


def test_an_error_comes_after_the_records_before_it_and_keeps_the_position() -> None:
    one = placed(40)
    source: Any = one.source
    source.fails_at = 8
    assert taken(one, 20) == list(range(8))
    for _ in range(2):
        with pytest.raises(ArithmeticError):
            taken(one, 20)
        assert one.offset == 8


def test_batches_fetched_for_another_position_are_dropped() -> None:
    one = placed(40)
    assert one.fill(1 << 20)
    one.offset = 30
    assert taken(one, 2) == [30, 31]


class CompactedSource(FakeSource):
    """The same batches with only the records at `kept` in them, and holes for batches without any."""

    def __init__(self, end: int, kept: set[int]) -> None:
        super().__init__(end)
        self.kept = kept

    def read(self, offset: int, max_bytes: int) -> list[RecordBatch]:
        return [self._compacted(batch) for batch in super().read(offset, max_bytes)]

    def _compacted(self, batch: RecordBatch) -> RecordBatch:
        kept = [index for index, at in enumerate(batch.offsets()) if at in self.kept]
        if len(kept) == len(batch):
            return batch
        header = batch.header
        records = Records(memoryview(batch.raw()), header)
        less = thinned(header, records, kept) if kept else hole(header.base_offset, header.next_offset, 0)
        return RecordBatch("a", 0, memoryview(bytes(less)))


@pytest.mark.parametrize("kept", [{0, 3, 4, 5, 6, 7, 13, 19}, {2}, {16, 17, 18}, set(), set(range(20)) - {8}])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 100])
def test_records_are_found_over_gaps_from_every_position(kept: set[int], count: int) -> None:
    for start in range(20):
        one = placed(20, start)
        one.source = source = CompactedSource(20, kept)
        found: list[int] = []
        while piece := taken(one, count):
            found += piece
            assert one.offset is not None
            assert one.offset > found[-1]
        assert found == [offset for offset in sorted(kept) if offset >= start]
        assert one.offset == 20
        assert len(source.reads) <= 10, "what was read already is not read again"


@pytest.mark.parametrize("kept", [{0, 3, 4, 5, 6, 7, 13, 19}, {9, 10}])
def test_iteration_goes_over_gaps(kept: set[int]) -> None:
    one = placed(20)
    one.source = CompactedSource(20, kept)
    found: list[int] = []
    while one.current(1 << 20) is not None:
        for record in one.rest():
            one.offset = record.offset + 1
            found.append(record.offset)
            if record.offset == 4:
                break  # as a seek or a pause of the user ends a run
    assert found == sorted(kept)
