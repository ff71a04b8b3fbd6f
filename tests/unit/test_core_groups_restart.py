"""A coordinator that dies at any moment: its successor has slot files and the log of offsets, and nothing else."""

from __future__ import annotations

from tests.group_world import MS, World
from zbroker.errors import CommitFailedError, UnknownMemberIdError


def test_a_stable_group_stays_as_it_is() -> None:
    world = World({"t": 4})
    members = [world.join(name) for name in "abc"]
    before = {member.member_id: dict(member.owned) for member in members}
    revoked = [len(member.revoked) for member in members]
    members[0].commit(next(iter(members[0].owned)), 5)
    world.restart()
    world.run()
    world.pass_ms(1_000)
    assert {member.member_id: member.owned for member in members} == before, "the very same slots"
    assert [len(member.revoked) for member in members] == revoked
    assert world.groups.groups["g"].state == "Stable"


def test_nothing_moves_before_every_member_of_before_was_heard() -> None:
    world = World({"t": 4})
    a, b = world.join("a"), world.join("b", session_timeout_ms=5_000)
    b.is_silent = True
    world.restart()
    c = world.join("c")
    assert c.owned == {}
    assert len(b.owned) == 2
    b.is_silent = False
    world.run()
    assert len(c.owned) == 1
    assert len(a.owned) + len(b.owned) == 3


def test_a_member_that_died_meanwhile_is_replaced_as_soon_as_the_kernel_says_so() -> None:
    world = World({"t": 2})
    a, b = world.join("a"), world.join("b")
    (key,) = a.owned
    a.commit(key, 66)
    world.restart()
    assert {a.incarnation, b.incarnation} <= world.watched
    world.die(a)
    assert len(b.owned) == 2
    assert b.positions[key] == 66


def test_a_member_that_stays_silent_is_thrown_out_after_its_session() -> None:
    world = World({"t": 2})
    a, b = world.join("a", session_timeout_ms=3_000), world.join("b")
    a.is_silent = True
    world.may_overlap = True
    world.restart()
    world.pass_ms(2_000)
    assert len(b.owned) == 1
    world.pass_ms(2_000)
    assert len(b.owned) == 2


def test_a_slot_that_was_closed_but_not_in_the_log_is_put_there_before_it_is_granted() -> None:
    world = World({"t": 1})
    a, b = world.join("a"), world.join("b")
    a.commit((1, 0), 31)
    world.disk_is_full = True
    world.die(a)
    world.restart()
    world.run()
    assert b.owned == {}
    world.disk_is_full = False
    world.pass_ms(300)
    assert b.positions == {(1, 0): 31}


def test_a_revocation_under_way_is_finished_by_the_successor() -> None:
    world = World({"t": 2})
    a = world.join("a")
    a.is_slow = True
    b = world.join("b")
    world.restart()
    a.is_slow = False
    world.run()
    assert len(a.owned) == len(b.owned) == 1


def test_what_a_member_gave_up_unheard_is_granted_anew_and_not_from_an_old_offset() -> None:
    world = World({"t": 2})
    a = world.join("a")
    for key in a.owned:
        a.commit(key, 10)
    a.is_slow = True
    world.join("b")
    a.is_slow = False
    assert a.answer is not None
    gone = set(a.owned) - {(topic.topic_id, one.partition) for topic in a.answer.topics for one in topic.partitions}
    world.restart()
    world.run()
    for key in gone:
        owner = world.members[world.owners()[key]]
        assert owner.positions[key] == 10


def test_static_members_that_were_away_still_have_their_place() -> None:
    world = World({"t": 2})
    a, b = world.join("a", instance_id="w1", session_timeout_ms=10_000), world.join("b")
    before = sorted(a.owned)
    a.leave(is_temporary=True)
    world.restart()
    world.run()
    assert len(b.owned) == 1
    again = world.join("a2", instance_id="w1")
    assert sorted(again.owned) == before
    assert b.revoked == []


def test_a_static_member_away_for_too_long_over_a_restart_loses_its_place() -> None:
    world = World({"t": 2})
    a, b = world.join("a", instance_id="w1", session_timeout_ms=4_000), world.join("b")
    a.leave(is_temporary=True)
    world.pass_ms(2_000)
    world.restart()
    world.pass_ms(3_000)
    assert len(b.owned) == 2


def test_epochs_go_on_where_they_were() -> None:
    world = World({"t": 2})
    a = world.join("a")
    world.join("b")
    epoch = a.epoch
    world.restart()
    world.run()
    assert a.epoch >= epoch
    world.join("c")
    assert a.error == 0


def test_without_slot_files_members_join_again_and_late_commits_fail() -> None:
    world = World({"t": 1})
    a = world.join("a")
    world.slots.files_of.clear()
    world.restart()
    a.beat()
    world.now_ns += MS
    world.run()
    assert a.error == UnknownMemberIdError.code
    try:
        a.owned = {(1, 0): (0, 0)}
        a.commit((1, 0), 3)
    except CommitFailedError:
        return
    raise AssertionError("a commit into a file that is gone was taken")
