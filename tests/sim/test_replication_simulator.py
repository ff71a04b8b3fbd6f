"""What the simulated world itself got wrong once: each broke a promise, in one seed of some hundreds, though the state
machines did nothing wrong."""

from __future__ import annotations

import pytest

from tests.replication_coordinator import GrantAnswer
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
