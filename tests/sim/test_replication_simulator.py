"""What the simulated world itself got wrong once: each broke a promise, in one seed of some hundreds, though the state
machines did nothing wrong."""

from __future__ import annotations

import pytest

from tests.replication_coordinator import Grant, GrantAnswer
from tests.replication_log import ViolationError
from tests.replication_script import Script
from zbroker.core.partition import ACKS_FSYNC, ACKS_LEADER


def test_t13_a_copy_that_lost_something_confirms_nothing_before_that_is_known() -> None:
    world = Script()
    world.produce(world.leader, ACKS_LEADER)
    world.rest()
    world.die(2, is_lossy=True)
    world.start(world.nodes[2])
    world.only(lambda source, target, message: source != 2)
    assert world.nodes[2].follower is None
    assert any(isinstance(message, GrantAnswer) and message.is_suspect for _, _, message in world.network)
    world.rest()
    assert not world.nodes[2].is_suspect
    assert set(world.coordinator.isr) == {0, 1, 2}


def test_t13_a_copy_that_is_taken_in_as_what_it_was_before_its_loss_still_counts_as_lossy() -> None:
    world = Script()
    promises, coordinator = world.promises, world.coordinator
    dead = {(2, world.nodes[2].incarnation)}
    coordinator.isr = (0, 1)
    promises.loses(2)
    promises.look_at_isr(dead)
    coordinator.isr = (0, 1, 2)  # its leader had asked for that before the loss
    promises.look_at_isr(dead)
    assert promises.lossy == {2: False}
    promises.look_at_isr(())
    assert promises.lossy == {2: False}
    coordinator.isr = (0, 1)
    promises.look_at_isr(())
    coordinator.isr = (0, 1, 2)
    promises.look_at_isr(())
    assert promises.lossy == {}


def test_t13_a_record_that_was_deleted_needs_no_disk_to_be_acknowledged() -> None:
    world = Script()
    promises = world.promises
    promises.committed = [(0, 1), (0, 2)]
    promises.unanswered = {1: ACKS_FSYNC, 2: ACKS_FSYNC}
    world.leader.log.log_start = 1
    promises.acknowledged((1, ACKS_FSYNC), 0)
    assert promises.on_disk == {}
    with pytest.raises(ViolationError, match="0 disks"):
        promises.acknowledged((2, ACKS_FSYNC), 1)


def test_t13_a_new_leader_takes_nothing_of_its_own_epoch_or_a_later_one_from_the_leader_before() -> None:
    world = Script()
    before, after = world.nodes[0], world.nodes[1]
    for item in [(0, 1), (1, 2), (3, 3)]:
        before.log.append(item)
    after.complete_from(before.log, 2)
    assert after.log.items == [(0, 1), (1, 2)]


def test_t13_a_leader_that_was_deposed_before_it_was_told_does_not_believe_the_board_of_a_later_one() -> None:
    world = Script(min_insync=1)
    world.tail_chance = 1.0
    world.cut_off(0)
    before, deposed, later = world.nodes
    for _ in range(3):
        world.produce(before, ACKS_LEADER)
    world.die(0)
    (late,) = [one for _, _, one in world.network if isinstance(one, Grant) and one.to == one.leader == 1]
    world.drop()
    world.has_zombies = True
    world.zombies.add(1)
    world.coordinator.died(1, deposed.incarnation)  # which it is not
    world.spread()
    world.only(lambda source, target, message: target == 2)
    values = [world.produce(later, ACKS_LEADER) for _ in range(3)]
    assert later.leader is not None
    assert (later.leader.high_watermark, all(map(world.is_answered, values))) == (3, True)
    deposed.deliver(late)
    assert deposed.log.log_end == 3
    assert deposed.leader is not None
    assert deposed.leader.high_watermark == 0
    world.heal()
    assert [value for _, value in world.logs()[0]] == values
