"""T14: the failures of replication that KIPs and papers name, step by step, with the logs that must come out."""

from __future__ import annotations

from tests.replication_coordinator import AlterIsr
from tests.replication_script import Script, batches_to
from zbroker.core import follower_events as fv
from zbroker.core import partition_events as ev
from zbroker.core import replication_events as rv
from zbroker.core.partition import ACKS_ALL, ACKS_LEADER
from zbroker.errors import StaleIncarnationError

MS = 1_000_000


def test_t14_kip_101_a_follower_that_restarts_keeps_what_lies_above_its_high_watermark() -> None:
    world = Script(copies=2)
    first = world.produce(world.leader, ACKS_ALL)
    world.rest()
    second = world.produce(world.leader, ACKS_ALL)
    world.only(batches_to(1))
    world.only(lambda source, target, message: isinstance(message, rv.Copied))
    world.drop()  # copy 1 is never told that its second record was acknowledged
    assert world.is_answered(second)
    assert world.nodes[1].follower is not None
    assert world.nodes[1].follower.high_watermark == 1
    world.die(1)
    world.start(world.nodes[1])
    world.die(0)
    world.rest()
    assert world.logs()[1] == [(0, first), (0, second)]
    assert world.coordinator.leader == 1, "it was eligible: it had everything that was acknowledged"


def test_t14_kip_101_b_copies_that_diverge_after_a_hard_failure_become_one_again() -> None:
    world = Script(copies=2, min_insync=1)
    first = world.produce(world.leader, ACKS_ALL)
    world.rest()
    for node in world.nodes:
        node.log.synced = 1
    world.cut_off(1)
    lost = world.produce(world.leader, ACKS_LEADER)
    world.nodes[0].log.synced = 2
    world.power_cut()
    world.cut.clear()
    # Somebody forces copy 1 to lead although copy 0 has more.
    world.coordinator.must_compare = False
    world.coordinator.isr = (1,)
    world.start(world.nodes[1])
    world.rest()
    kept = world.produce(world.leader, ACKS_LEADER)
    world.start(world.nodes[0])
    assert world.logs() == [[(0, first), (0, lost)], [(0, first), (2, kept)]]
    world.rest()
    assert world.logs() == [[(0, first), (2, kept)]] * 2


def test_t14_kip_279_takes_as_many_rounds_as_there_are_epochs_apart() -> None:
    world = Script(copies=2, min_insync=1)
    leader, follower = world.nodes
    world.die(1)
    world.die(0)
    for epoch, value in [(0, 1), (1, 2), (1, 3), (3, 4)]:
        leader.log.append((epoch, value))
    for epoch, value in [(0, 1), (1, 2), (2, 13), (2, 14), (4, 15)]:
        follower.log.append((epoch, value))
    world.coordinator.leader_epoch = 5
    world.start(leader)
    world.start(follower)
    rounds: list[tuple[int, int]] = []
    for _ in range(1000):
        if not world.network:
            break
        message = world.network[0][2]
        if isinstance(message, fv.Diverged):
            rounds.append((message.epoch, message.end_offset))
        world.deliver(0)
    world.rest()
    assert rounds == [(3, 4), (1, 3)], "first what came before epoch 4, then what came before epoch 2"
    assert world.logs() == [[(0, 1), (1, 2), (1, 3), (3, 4)]] * 2


def test_t14_kip_320_a_leader_that_was_replaced_cannot_write_nor_acknowledge() -> None:
    world = Script()
    first = world.produce(world.leader, ACKS_ALL)
    world.rest()
    old = world.leader
    world.promises._has_zombies = True
    world.coordinator.died(old.number, old.incarnation)  # it is stuck in the kernel, and taken for dead
    world.spread()
    world.rest()
    assert world.coordinator.leader == 1
    late = world.produce(old, ACKS_ALL)
    old.tick()
    world.rest()
    assert not world.is_answered(late)
    second = world.produce(world.leader, ACKS_ALL)
    world.rest()
    assert world.is_answered(second)
    assert world.logs() == [[(0, first), (0, late)], [(0, first), (1, second)], [(0, first), (1, second)]]
    world.kill(old)
    world.start(old)
    world.rest()
    assert world.logs() == [[(0, first), (1, second)]] * 3


def test_t14_kip_320_messages_of_another_epoch_than_the_granted_one_change_nothing() -> None:
    world = Script()
    follower = world.nodes[1].follower
    assert follower is not None
    subscription = follower._subscription
    before = (follower.state, follower.log_end, follower.high_watermark)
    for epoch in (-1, 1, 7):
        assert follower.handle(fv.Entry(epoch, subscription, 0, 1, 1, 0, -1, [(epoch, 1)]), 0) == []
        assert follower.handle(fv.MustBeginAnew(epoch, subscription, 5), 0) == []
    assert (follower.state, follower.log_end, follower.high_watermark) == before


def test_t14_kip_966_last_replica_standing_loses_its_cache_and_another_leads() -> None:
    world = Script()
    first = world.produce(world.leader, ACKS_ALL)
    world.rest()
    world.die(2)
    second = world.produce(world.leader, ACKS_ALL)
    world.rest()
    world.die(1)
    assert (world.coordinator.isr, world.coordinator.elr) == ((0,), (1,))
    third = world.produce(world.leader, ACKS_LEADER)
    world.rest()
    assert world.leader.leader is not None
    assert world.leader.leader.high_watermark == 2, "one in sync is too few for the high watermark to move"
    world.die(0, is_lossy=True)
    assert world.coordinator.leader == -1
    world.start(world.nodes[0])
    world.rest()
    assert world.coordinator.leader == -1, "the last one in sync lost its cache: it must not lead"
    world.start(world.nodes[2])
    world.rest()
    assert world.coordinator.leader == -1, "it left while enough were in sync: it may lack something"
    world.start(world.nodes[1])
    world.rest()
    assert world.coordinator.leader == 1
    epoch = world.coordinator.leader_epoch
    fourth = world.produce(world.leader, ACKS_ALL)
    world.rest()
    assert third not in [value for _, value in world.logs()[0]]
    assert world.logs() == [[(0, first), (0, second), (epoch, fourth)]] * 3
    assert world.is_answered(fourth)


def test_t14_aba_a_copy_whose_process_was_replaced_does_not_join_on_its_predecessors_word() -> None:
    world = Script()
    world.die(2)
    world.start(world.nodes[2])
    coordinator = world.coordinator
    for _ in range(100):
        asked = [message for _, _, message in world.network if isinstance(message, AlterIsr)]
        if asked:
            break
        world.deliver(0)
    assert asked[0].isr == (0, 1, 2)
    world.kill(world.nodes[2], is_lossy=True)
    world.start(world.nodes[2])
    answer = coordinator.alter(asked[0])
    assert isinstance(answer.error, StaleIncarnationError), "version and set are right, the process is another"
    assert coordinator.isr == (0, 1)
    leader = world.leader.leader
    assert leader is not None
    leader.handle(ev.IsrRefused(asked[0].partition_epoch, answer.error), world.now_ns)
    world.drop()
    world.rest(20)
    assert set(coordinator.isr) == {0, 1, 2}, "it joins as itself"
