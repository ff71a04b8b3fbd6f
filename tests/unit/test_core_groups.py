"""Consumer groups: who may read what, and that commits survive every way in which a partition changes hands."""

from __future__ import annotations

import pytest

from tests.group_world import World
from zbroker.core import group_events as ev
from zbroker.errors import (
    CommitFailedError,
    FencedInstanceIdError,
    FencedMemberEpochError,
    GroupMaxSizeReachedError,
    IllegalTransition,
    InconsistentGroupProtocolError,
    InvalidGroupIdError,
    InvalidSessionTimeoutError,
    UnknownMemberIdError,
    UnreleasedInstanceIdError,
    UnsupportedAssignorError,
)
from zbroker.wire import group_messages as wire

KEYS = [(1, number) for number in range(4)]


def test_one_member_gets_everything_and_a_second_one_half_of_it() -> None:
    world = World({"t": 4})
    a = world.join("a")
    assert sorted(a.owned) == KEYS
    b = world.join("b")
    assert len(a.owned) == len(b.owned) == 2
    assert sorted(world.owners()) == KEYS
    assert len(a.revoked) == 2
    assert world.groups.groups["g"].state == "Stable"


def test_more_members_than_partitions_wait_and_take_over_when_one_dies() -> None:
    world = World({"t": 1})
    a, b = world.join("a"), world.join("b")
    assert (len(a.owned), len(b.owned)) == (1, 0)
    assert b.answer is not None
    assert b.answer.members == 2
    world.die(a)
    assert list(b.owned) == [(1, 0)]


def test_a_partition_is_granted_only_when_its_owner_has_given_it_up() -> None:
    world = World({"t": 2})
    a = world.join("a")
    a.is_slow = True
    b = world.join("b")
    assert len(a.owned) == 2
    assert b.owned == {}
    assert world.groups.groups["g"].state == "Reconciling"
    a.is_slow = False
    world.run()
    assert len(a.owned) == len(b.owned) == 1


def test_what_the_former_owner_committed_is_where_the_next_one_begins() -> None:
    world = World({"t": 1})
    a = world.join("a")
    a.commit((1, 0), 41)
    b = world.join("b")
    world.die(a)
    assert b.positions[1, 0] == 41
    assert [(entry.key, entry.committed and entry.committed.offset) for entry in world.log] == [((1, 0), 41)]


def test_a_commit_after_the_partition_was_taken_fails() -> None:
    world = World({"t": 1}, session_timeout_min_ms=100)
    a = world.join("a", session_timeout_ms=1_000)
    b = world.join("b", session_timeout_ms=100_000)
    a.commit((1, 0), 5)
    a.is_silent = True
    world.may_overlap = True  # a does not know yet, and reads on
    world.pass_ms(1_500)
    assert b.positions[1, 0] == 5
    with pytest.raises(CommitFailedError):
        a.commit((1, 0), 6)


def test_partitions_are_not_granted_while_what_was_committed_cannot_be_written() -> None:
    world = World({"t": 1})
    a, b = world.join("a"), world.join("b")
    a.commit((1, 0), 7)
    world.disk_is_full = True
    world.die(a)
    assert b.owned == {}
    world.pass_ms(500)
    assert b.owned == {}
    world.disk_is_full = False
    world.pass_ms(200)
    assert b.positions == {(1, 0): 7}
    assert ("g", "a") not in world.slots.files_of, "its file goes when it is in the log, and not before"


def test_a_member_that_is_silent_for_its_session_timeout_is_thrown_out_and_told_so() -> None:
    world = World({"t": 1})
    a, b = world.join("a", session_timeout_ms=5_000), world.join("b", session_timeout_ms=500_000)
    a.is_silent = True
    a.owned.clear()
    world.pass_ms(6_000)
    assert list(b.owned) == [(1, 0)]
    a.is_silent = False
    world.replies.pop(a.parked, None)
    a.beat()
    assert world.replies.pop(a.parked) == UnknownMemberIdError.code


def test_a_member_that_does_not_poll_is_thrown_out_although_it_beats() -> None:
    world = World({"t": 1})
    a, b = world.join("a", max_poll_interval_ms=60_000), world.join("b")
    a.polled_ago_ms = 60_001
    a.beat()
    world.run()
    assert a.error == UnknownMemberIdError.code
    assert list(b.owned) == [(1, 0)]


def test_a_member_that_never_gives_up_what_it_should_is_thrown_out() -> None:
    world = World({"t": 2})
    a = world.join("a", max_poll_interval_ms=5_000)
    a.is_slow = True
    b = world.join("b")
    world.pass_ms(4_000)
    assert b.owned == {}
    world.pass_ms(2_000)
    assert a.error == UnknownMemberIdError.code
    assert len(b.owned) == 2


def test_leaving_gives_everything_back_at_once() -> None:
    world = World({"t": 4})
    a, b = world.join("a"), world.join("b")
    (key, *_) = a.owned
    a.commit(key, 9)
    a.leave()
    assert sorted(b.owned) == KEYS
    assert b.positions[key] == 9
    assert world.ask(wire.GroupLeave("g", "a")) == UnknownMemberIdError.code


def test_the_last_one_to_leave_leaves_an_empty_group_with_its_offsets() -> None:
    world = World({"t": 1})
    a = world.join("a")
    a.commit((1, 0), 3)
    a.leave()
    assert world.ask(wire.ListGroups([])) == wire.GroupsListed([wire.GroupInfo("g", "Empty", 1, "sticky", 0)])
    b = world.join("b")
    assert b.positions == {(1, 0): 3}


def test_a_group_without_members_and_offsets_is_no_group() -> None:
    world = World({"t": 1})
    world.join("a").leave()
    assert world.ask(wire.ListGroups([])) == wire.GroupsListed([])


def test_groups_do_not_know_of_each_other() -> None:
    world = World({"t": 2})
    a = world.join("a")
    b = world.members["b"] = type(a)(world, "b", ["t"], group_id="other")
    world.may_overlap = True  # both read all, each for its group
    world.run()
    assert sorted(a.owned) == sorted(b.owned) == [(1, 0), (1, 1)]
    a.commit((1, 0), 5)
    a.leave()
    assert world.ask(wire.OffsetFetch("other", None)) == wire.OffsetsFetched([])


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_static_member_that_comes_back_moves_nobody(is_killed: bool) -> None:
    world = World({"t": 4})
    members = [world.join(f"m{index}", instance_id=f"w{index}") for index in range(3)]
    before = {member.instance_id: sorted(member.owned) for member in members}
    revoked = [list(member.revoked) for member in members]
    (key, *_) = members[1].owned
    members[1].commit(key, 77)
    if is_killed:
        world.die(members[1])
    else:
        members[1].leave(is_temporary=True)
    world.pass_ms(5_000)
    again = world.join("new", instance_id="w1")
    assert sorted(again.owned) == before["w1"]
    assert again.positions[key] == 77
    for index in (0, 2):
        assert sorted(members[index].owned) == before[f"w{index}"]
        assert members[index].revoked == revoked[index]


def test_a_static_member_that_stays_away_loses_its_place() -> None:
    world = World({"t": 2})
    a, b = world.join("a", instance_id="w1", session_timeout_ms=2_000), world.join("b")
    world.die(a)
    world.pass_ms(1_000)
    assert len(b.owned) == 1
    world.pass_ms(2_000)
    assert len(b.owned) == 2


def test_a_second_member_of_a_living_instance_id_is_refused_and_the_first_goes_on() -> None:
    world = World({"t": 2})
    a = world.join("a", instance_id="w1")
    b = world.join("b", instance_id="w1")
    assert b.error == UnreleasedInstanceIdError.code
    assert len(a.owned) == 2
    assert a.error == 0


def test_a_topic_that_appears_or_goes_is_taken_up_by_those_who_want_it() -> None:
    world = World({"t": 1})
    a, b = world.join("a", "t", "later"), world.join("b", "t", "later")
    world.make_topic("later", 4)
    world.run()
    assert sorted(world.owners()) == [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]
    world.delete_topic("later")
    world.run()
    assert sorted(world.owners()) == [(1, 0)]
    assert len(a.owned) + len(b.owned) == 1


def test_members_with_a_pattern_hear_of_new_topics() -> None:
    world = World({"t": 1})
    a = world.join("a", pattern=".*")
    version = a.topics_version
    world.make_topic("u", 1)
    world.run()
    assert a.topics_version == version + 1


def test_a_heartbeat_without_news_waits_and_a_newer_one_frees_it() -> None:
    world = World({"t": 1})
    a = world.join("a")
    first = a.parked
    assert first not in world.replies
    a.beat()
    assert isinstance(world.replies.pop(first), wire.GroupAssignment)
    assert a.parked not in world.replies
    waiting = a.parked
    world.now_ns += 3_000_000_000
    world.take(ev.GroupsTicked(world.wall_ms))
    assert isinstance(world.replies.pop(waiting), wire.GroupAssignment)


def test_a_lost_answer_is_given_again() -> None:
    world = World({"t": 1})
    a = world.join("a")
    owned = dict(a.owned)
    a.epoch = a.seen = 0
    a.owned.clear()
    a.parked = None
    world.replies.clear()
    a.parked = None
    world.run()
    assert a.owned == owned, "the same slots: nothing was given up"


def test_what_an_acted_on_assignment_named_and_the_member_leaves_out_is_granted_anew() -> None:
    world = World({"t": 1})
    a = world.join("a")
    a.commit((1, 0), 12)
    before = a.owned.pop((1, 0))
    a.beat()
    world.run()
    assert a.owned[1, 0] != before
    assert a.positions[1, 0] == 12


def test_an_epoch_that_was_never_given_is_fenced() -> None:
    world = World({"t": 1})
    a = world.join("a")
    a.epoch = a.seen = 99
    a.beat()
    assert world.replies.pop(a.parked) == FencedMemberEpochError.code


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"group_id": ""}, InvalidGroupIdError),
        ({"group_id": "a\0b"}, InvalidGroupIdError),
        ({"group_id": "x" * 256}, InvalidGroupIdError),
        ({"instance_id": "\n"}, InvalidGroupIdError),
        ({"session_timeout_ms": 1}, InvalidSessionTimeoutError),
        ({"session_timeout_ms": 10**9}, InvalidSessionTimeoutError),
        ({"assignors": ()}, UnsupportedAssignorError),
        ({"assignors": ("",)}, UnsupportedAssignorError),
    ],
)
def test_what_cannot_be_a_member_is_refused_and_leaves_no_group(
    options: dict[str, object], error: type[Exception]
) -> None:
    world = World({"t": 1})
    bad = world.join("bad", **options)
    assert bad.error == error.code  # type: ignore[attr-defined]  # BrokerErrors only
    assert world.groups.groups == {}
    assert world.slots.files_of == {}


def test_a_member_with_no_assignor_in_common_is_refused() -> None:
    world = World({"t": 1})
    world.join("a", assignors=("range", "sticky"))
    assert world.join("b", assignors=("roundrobin",)).error == InconsistentGroupProtocolError.code
    assert world.join("c", assignors=("sticky",)).error == 0
    assert world.groups.groups["g"].assignor == "sticky"


def test_a_group_has_a_largest_size() -> None:
    world = World({"t": 1}, members_max=1)
    world.join("a")
    assert world.join("b").error == GroupMaxSizeReachedError.code


def test_an_unknown_member_is_told_to_join() -> None:
    world = World({"t": 1})
    a = world.join("a")
    a.member_id = "stranger"
    a.beat()
    assert world.replies.pop(a.parked) == UnknownMemberIdError.code


def test_an_administrator_throws_members_out() -> None:
    world = World({"t": 2})
    a, b = world.join("a"), world.join("b", instance_id="w1")
    world.may_overlap = True  # b reads on until it hears of it
    found = world.ask(wire.RemoveGroupMembers("g", ["nobody"], ["w1"]))
    assert isinstance(found, wire.GroupResults)
    assert [one.error for one in found.results] == [UnknownMemberIdError.code, 0]
    world.run()
    assert b.error == FencedInstanceIdError.code
    assert len(a.owned) == 2


def test_without_room_for_slots_a_member_commits_by_message() -> None:
    world = World({"t": 1})
    world.slots.has_room = False
    a = world.join("a")
    assert a.owned == {(1, 0): (-1, -1)}
    offset = wire.OffsetToCommit("t", 0, 0, 8)
    world.ask(wire.OffsetCommit("g", "a", a.epoch, False, [offset]))
    world.slots.has_room = True
    b = world.join("b")
    a.leave()
    assert b.positions == {(1, 0): 8}


def test_one_process_with_several_members_is_watched_once_and_takes_all_with_it() -> None:
    world = World({"t": 3, "u": 3})
    a, b, c = world.join("a", incarnation=1 << 33), world.join("b", incarnation=1 << 33), world.join("c")
    assert world.watched == {1 << 33, c.incarnation}
    del world.members["b"]
    world.die(a)
    assert len(c.owned) == 3
    assert b.member_id not in world.groups.groups["g"].members


def test_events_out_of_order_change_nothing() -> None:
    world = World({"t": 1})
    with pytest.raises(IllegalTransition):
        world.groups.handle(ev.OffsetsAppended(), 0)
    with pytest.raises(IllegalTransition):
        world.groups.handle(ev.GroupsStarted([], 0), 0)
