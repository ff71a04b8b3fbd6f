"""What clients and administrators ask of groups: commits by message, offsets, lists, alterations, removal."""

from __future__ import annotations

import pytest

from tests.group_world import World
from zbroker.errors import (
    DiskFullError,
    FencedMemberEpochError,
    GroupIdNotFoundError,
    IllegalGenerationError,
    InvalidGroupIdError,
    InvalidRequestError,
    NonEmptyGroupError,
    OffsetMetadataTooLargeError,
    PolicyViolationError,
    UnknownMemberIdError,
    UnknownTopicOrPartitionError,
)
from zbroker.wire import group_messages as wire
from zbroker.wire.messages import Done

DAY_MS = 86_400_000


def offset(value: int, *, partition: int = 0, topic: str = "t", metadata: str = "") -> wire.OffsetToCommit:
    return wire.OffsetToCommit(topic, 0, partition, value, 2, metadata)


def commit_of_nobody(world: World, *offsets: wire.OffsetToCommit, group: str = "g", durable: bool = False) -> object:
    return world.ask(wire.OffsetCommit(group, "", -1, durable, list(offsets)))


def errors_of(found: object) -> list[int]:
    assert isinstance(found, wire.OffsetResults)
    return [one.error for one in found.offsets]


def fetched(world: World, group: str = "g") -> dict[tuple[int, int], tuple[int, str]]:
    found = world.ask(wire.OffsetFetch(group, None))
    assert isinstance(found, wire.OffsetsFetched)
    return {(one.topic_id, one.partition): (one.offset, one.metadata) for one in found.offsets}


def test_a_consumer_without_a_group_protocol_commits_and_reads_offsets() -> None:
    world = World({"t": 2})
    assert errors_of(commit_of_nobody(world, offset(4, metadata="x"), offset(5, partition=1))) == [0, 0]
    assert fetched(world) == {(1, 0): (4, "x"), (1, 1): (5, "")}
    found = world.ask(wire.OffsetFetch("g", [(1, 0), (1, 7), (9, 0)]))
    assert isinstance(found, wire.OffsetsFetched)
    assert [(one.topic, one.offset) for one in found.offsets] == [("t", 4), ("t", -1), ("", -1)]
    assert fetched(world, "other") == {}


def test_each_bad_offset_is_refused_alone() -> None:
    world = World({"t": 1}, offset_metadata_max_bytes=3)
    found = commit_of_nobody(
        world, offset(1), offset(1, partition=1), offset(1, topic="none"), offset(-1), offset(2**63 - 1),
        offset(1, metadata="four"),
    )  # fmt: skip
    unknown, invalid = UnknownTopicOrPartitionError.code, InvalidRequestError.code
    assert errors_of(found) == [0, unknown, unknown, invalid, invalid, OffsetMetadataTooLargeError.code]
    assert fetched(world) == {(1, 0): (1, "")}


def test_nobody_else_commits_while_a_group_has_members() -> None:
    world = World({"t": 1})
    a = world.join("a")
    assert commit_of_nobody(world, offset(5)) == UnknownMemberIdError.code
    a.leave()
    assert errors_of(commit_of_nobody(world, offset(5))) == [0]


def test_a_member_commits_by_message_only_what_it_owns() -> None:
    world = World({"t": 2})
    a = world.join("a")
    a.commit((1, 0), 7)
    found = world.ask(wire.OffsetCommit("g", "a", a.epoch, False, [offset(7, metadata="m")]))
    assert errors_of(found) == [0]
    assert fetched(world) == {(1, 0): (7, "m")}
    b = world.join("b")
    (mine,) = a.owned
    other = offset(9, partition=1 - mine[1])
    assert errors_of(world.ask(wire.OffsetCommit("g", "a", a.epoch, False, [other]))) == [IllegalGenerationError.code]
    assert len(b.owned) == 1


def test_the_slot_counts_and_a_message_adds_to_it() -> None:
    world = World({"t": 1})
    a = world.join("a")
    a.commit((1, 0), 9)
    world.ask(wire.OffsetCommit("g", "a", a.epoch, False, [offset(7, metadata="late")]))
    assert fetched(world) == {(1, 0): (9, "")}, "the store came after what the message names"
    a.commit((1, 0), 3)
    world.ask(wire.OffsetCommit("g", "a", a.epoch, False, [offset(3, metadata="back")]))
    assert fetched(world) == {(1, 0): (3, "back")}, "going back is legal"


def test_a_stale_epoch_commits_what_is_still_owned_and_a_made_up_one_nothing() -> None:
    world = World({"t": 2})
    a = world.join("a")
    a.is_slow = True
    world.join("b")
    assert a.seen > a.epoch
    a.commit((1, 0), 4)
    assert errors_of(world.ask(wire.OffsetCommit("g", "a", a.epoch, False, [offset(4)]))) == [0]
    assert world.ask(wire.OffsetCommit("g", "a", 99, False, [offset(5)])) == FencedMemberEpochError.code


def test_a_commit_that_comes_late_does_not_count_although_the_member_has_the_partition_again() -> None:
    world = World({"t": 1})
    a = world.join("a", is_remote=True)
    key = next(iter(a.owned))
    late = a.message(key, 3)
    a.topics = []
    a.beat()
    b = world.join("b", is_remote=True)
    assert world.ask(b.message(key, 7)) == results(key)
    b.leave()
    a.topics = ["t"]
    a.beat()
    world.run()
    assert list(a.owned) == [key]
    assert a.positions[key] == 7
    answer = world.ask(late)
    assert isinstance(answer, wire.OffsetResults)
    assert [one.error for one in answer.offsets] == [IllegalGenerationError.code]
    assert world.ask(a.message(key, 8)) == results(key)


def results(key: tuple[int, int]) -> wire.OffsetResults:
    return wire.OffsetResults([wire.OffsetResult("", *key, 0, "")])


def test_a_stranger_cannot_commit() -> None:
    world = World({"t": 1})
    a = world.join("a")
    assert world.ask(wire.OffsetCommit("g", "x", 1, False, [offset(5)])) == UnknownMemberIdError.code
    assert world.ask(wire.OffsetCommit("no", "a", a.epoch, False, [offset(5)])) == UnknownMemberIdError.code
    assert commit_of_nobody(world, offset(5), group="") == InvalidGroupIdError.code
    assert world.log == []


def test_a_durable_commit_is_answered_when_it_is_on_the_disk() -> None:
    world = World({"t": 2})
    a = world.join("a")
    a.commit((1, 0), 5)
    a.commit((1, 1), 6)
    assert errors_of(world.ask(wire.OffsetCommit("g", "a", a.epoch, True, []))) == []
    assert world.synced == 2
    assert fetched(world) == {(1, 0): (5, ""), (1, 1): (6, "")}


def test_a_commit_that_cannot_be_written_is_refused_and_changes_nothing() -> None:
    world = World({"t": 1})
    world.disk_is_full = True
    assert commit_of_nobody(world, offset(5)) == DiskFullError.code
    assert fetched(world) == {}
    world.disk_is_full = False
    world.pass_ms(1_000)
    assert fetched(world) == {}


def test_what_members_store_reaches_the_log_by_itself_and_once() -> None:
    world = World({"t": 1})
    a = world.join("a")
    a.commit((1, 0), 5)
    world.pass_ms(1_500)
    assert [entry.committed and entry.committed.offset for entry in world.log] == [5]
    world.disk_is_full = True
    a.commit((1, 0), 6)
    world.pass_ms(1_000)
    world.disk_is_full = False
    world.pass_ms(1_000)
    assert [entry.committed and entry.committed.offset for entry in world.log] == [5, 6]


def test_groups_are_listed_by_name_and_state() -> None:
    world = World({"t": 2})
    commit_of_nobody(world, offset(1), group="empty")
    world.join("a")
    found = world.ask(wire.ListGroups([]))
    assert isinstance(found, wire.GroupsListed)
    assert [(one.group_id, one.state, one.members) for one in found.groups] == [
        ("empty", "Empty", 0),
        ("g", "Stable", 1),
    ]
    stable = world.ask(wire.ListGroups(["Stable"]))
    assert isinstance(stable, wire.GroupsListed)
    assert [one.group_id for one in stable.groups] == ["g"]


def test_a_description_says_who_has_what_and_who_waits() -> None:
    world = World({"t": 1})
    a = world.join("a", instance_id="w1")
    world.join("b")
    a.commit((1, 0), 8)
    found = world.ask(wire.DescribeGroups(["g", "none"]))
    assert isinstance(found, wire.GroupsDescribed)
    group, none = found.groups
    assert none.error == GroupIdNotFoundError.code
    assert [(one.member_id, one.instance_id, one.owned, one.is_local) for one in group.members] == [
        ("a", "w1", [(1, 0)], True),
        ("b", "", [], True),
    ]
    assert [(one.topic, one.partition, one.offset) for one in group.offsets] == [("t", 0, 8)]
    assert (group.state, group.assignor) == ("Stable", "sticky")


def test_offsets_are_altered_and_removed_only_without_members() -> None:
    world = World({"t": 2})
    a = world.join("a")
    a.commit((1, 0), 8)
    assert world.ask(wire.AlterGroupOffsets("g", [offset(1)])) == NonEmptyGroupError.code
    a.leave()
    assert errors_of(world.ask(wire.AlterGroupOffsets("g", [offset(1), offset(2, partition=1)]))) == [0, 0]
    assert world.synced == len(world.log)
    assert errors_of(world.ask(wire.AlterGroupOffsets("g", [offset(-1), offset(-1, topic="x")]))) == [
        0,
        UnknownTopicOrPartitionError.code,
    ]
    assert fetched(world) == {(1, 1): (2, "")}


def test_groups_are_deleted_only_without_members() -> None:
    world = World({"t": 1})
    a = world.join("a")
    a.commit((1, 0), 8)
    a.leave()
    b = world.join("b")
    found = world.ask(wire.DeleteGroups(["g", "none"]))
    assert isinstance(found, wire.GroupResults)
    assert [one.error for one in found.results] == [NonEmptyGroupError.code, GroupIdNotFoundError.code]
    b.leave()
    gone = world.ask(wire.DeleteGroups(["g"]))
    assert isinstance(gone, wire.GroupResults)
    assert [one.error for one in gone.results] == [0]
    assert world.ask(wire.ListGroups([])) == wire.GroupsListed([])
    world.restart()
    assert fetched(world) == {}


def test_offsets_of_a_group_that_nobody_uses_are_forgotten_after_their_time_and_no_others() -> None:
    world = World({"t": 1}, offsets_retention_minutes=1_440)
    commit_of_nobody(world, offset(1), group="dead")
    commit_of_nobody(world, offset(1), group="young")
    a = world.join("a", session_timeout_ms=1_800_000)
    a.commit((1, 0), 5)
    world.pass_ms(1_000)
    world.wall_ms += DAY_MS // 2
    commit_of_nobody(world, offset(2), group="young")
    world.wall_ms += DAY_MS // 2 + 1_000
    world.pass_ms(70_000, 10_000)
    assert fetched(world, "dead") == {}
    assert fetched(world, "young") == {(1, 0): (2, "")}
    assert fetched(world) == {(1, 0): (5, "")}, "a group with members keeps what it has, however old"


def test_there_is_a_largest_number_of_groups() -> None:
    world = World({"t": 1}, groups_max=1)
    commit_of_nobody(world, offset(1), group="one")
    assert commit_of_nobody(world, offset(1), group="two") == PolicyViolationError.code
    world.join("a")
    assert world.join("b", group_id="h").error == PolicyViolationError.code


def test_a_question_of_another_kind_is_refused() -> None:
    world = World({"t": 1})
    assert world.ask(Done()) == InvalidRequestError.code


@pytest.mark.parametrize("works", [True, False])
def test_a_members_own_assignor_is_used_and_sticky_takes_its_place_when_it_fails(works: bool) -> None:
    world = World({"t": 3})
    a = world.join("a", assignors=("app.Mine",), works=works)
    b = world.join("b", assignors=("app.Mine",), works=works)
    assert world.groups.groups["g"].state == ("Stable" if works else "Assigning")
    world.pass_ms(6_000)
    assert world.groups.groups["g"].assignor == "app.Mine"
    if works:
        assert (len(a.owned), len(b.owned)) == (0, 3)
        assert world.warnings == []
    else:
        assert sorted((len(a.owned), len(b.owned))) == [1, 2]
        assert world.warnings


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        ([wire.MemberTarget("a", [(1, 0)])], "without a reader"),
        ([wire.MemberTarget("b", [(1, 0), (1, 1)])], "no member"),
        ([wire.MemberTarget("a", [(1, 0), (1, 1), (1, 1)])], "twice"),
        ([wire.MemberTarget("a", [(1, 0), (1, 1), (2, 0)])], "not there"),
    ],
)
def test_an_assignment_that_cannot_be_is_not_used(targets: list[wire.MemberTarget], reason: str) -> None:
    world = World({"t": 2})
    a = world.join("a", assignors=("app.Mine",), works=False)
    assert a.answer is not None
    assert a.answer.work is not None
    assert world.ask(wire.GroupAssign("g", "a", a.answer.work.number, targets)) == Done()
    world.run()
    assert reason in world.warnings[0]
    assert len(a.owned) == 2, "sticky"
    assert world.ask(wire.GroupAssign("g", "a", 1, targets)) == Done(), "an answer that comes too late is nothing"
    assert world.ask(wire.GroupAssign("g", "x", 1, targets)) == UnknownMemberIdError.code
