"""The leader's side of the streams: whose old word counts no more."""

from __future__ import annotations

from zbroker.core import partition_events as ev
from zbroker.core import replication_events as rv
from zbroker.core.replication import Replication
from zbroker.core.replication_events import Effect


class OneEpoch:
    """The log of a leader that has been the only one, up to offset 10."""

    def end_offset_for(self, epoch: int) -> tuple[int, int]:
        return (epoch, 10) if epoch == 1 else (-1, -1)

    def batch_base(self, offset: int) -> int:
        return offset


def leader_of(*copy_ids: int) -> Replication:
    return Replication(1, copy_ids, 0, 10, 10, OneEpoch())


def subscribe(leader: Replication, copy_id: int, subscription: int, log_end: int = 10) -> list[Effect]:
    last_epoch = 1 if log_end else -1
    return leader.handle(rv.Subscribed("session", copy_id, subscription, 77, 1, last_epoch, log_end, log_end), 0)


def informed(effects: list[Effect]) -> list[object]:
    return [effect.event for effect in effects if isinstance(effect, rv.Inform)]


def test_a_doubted_copy_counts_as_gone_and_is_told_to_come_again() -> None:
    leader = leader_of(2, 3)
    subscribe(leader, 2, 5)
    subscribe(leader, 3, 6)
    effects = leader.handle(rv.CopiesKnown((2, 3), (2,)), 0)
    assert informed(effects) == [ev.FollowerLost(2, 77)]
    assert [(one.copy_id, one.subscription) for one in effects if isinstance(one, rv.Reject)] == [(2, 5)]
    assert set(leader.streams) == {3}


def test_what_a_doubted_copy_said_before_counts_no_more_and_what_it_says_anew_does() -> None:
    leader = leader_of(2)
    subscribe(leader, 2, 5)
    leader.handle(rv.CopiesKnown((2,), (2,)), 0)
    old = leader.handle(rv.Copied("session", 2, 5, 1, 10, 10), 0)
    assert informed(old) == []
    assert [one.subscription for one in old if isinstance(one, rv.Reject)] == [5]
    assert informed(subscribe(leader, 2, 8, log_end=0)) == [ev.FollowerAt(2, 77, 0, 0)]


def test_doubt_about_a_copy_that_has_not_come_yet_changes_nothing() -> None:
    leader = leader_of(2, 3)
    subscribe(leader, 3, 6)
    assert leader.handle(rv.CopiesKnown((2, 3), (2,)), 0) == []
    assert set(leader.streams) == {3}
