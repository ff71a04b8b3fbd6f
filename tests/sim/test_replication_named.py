"""T14: the failures of replication that have names, each told step by step, with the logs that must come out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.replication_coordinator import AlterIsr
from tests.replication_log import Item
from tests.replication_node import Node
from tests.replication_world import World
from zbroker.config.schema import TopicConfig
from zbroker.core import follower_events as fv
from zbroker.core import partition_events as ev
from zbroker.core import replication_events as rv
from zbroker.core.dedup import Sequences
from zbroker.core.follower import State
from zbroker.core.partition import ACKS_ALL, ACKS_FSYNC, ACKS_LEADER, Partition
from zbroker.errors import FencedLeaderEpochError, InvalidUpdateVersionError, StaleIncarnationError
from zbroker.record.layout import BatchHeader

MS = 1_000_000


class Script(World):
    """A world in which only what the test says happens. Every process is up, copy 0 leads, all are in sync."""

    def __init__(self, copies: int = 3, min_insync: int = 2) -> None:
        super().__init__(copies=copies, min_insync=min_insync, fault_rate=0.0)
        self.tail_chance = 0.0
        self.rest()

    def rest(self, rounds: int = 12) -> None:
        """Let everything that is under way arrive, and two seconds pass."""
        for _ in range(rounds):
            self.settle()

    def only(self, wanted: Callable[[int, int, Any], bool]) -> None:
        """Deliver the messages that `wanted` picks, and what follows from them, until none is left."""
        while True:
            found = [index for index, one in enumerate(self.network) if wanted(*one)]
            if not found:
                return
            self.deliver(found[0])

    def drop(self, wanted: Callable[[int, int, Any], bool] = lambda *_: True) -> None:
        self.network = [one for one in self.network if not wanted(*one)]

    def cut_off(self, number: int) -> None:
        """Nothing passes between this copy and the others; the coordinator is still heard."""
        others = [node.number for node in self.nodes if node.number != number]
        self.cut |= {(number, other) for other in others} | {(other, number) for other in others}

    def die(self, number: int, *, is_lossy: bool = False) -> None:
        """A death that the coordinator sees at once."""
        self.kill(self.nodes[number], is_lossy=is_lossy)
        self.prove(number)

    @property
    def leader(self) -> Node:
        node = self.nodes[self.coordinator.leader]
        assert node.leader is not None
        return node

    def logs(self) -> list[list[Item]]:
        return [node.log.items for node in self.nodes]

    def is_answered(self, value: int) -> bool:
        return value not in self.promises.unanswered


def batches_to(number: int) -> Callable[[int, int, Any], bool]:
    return lambda source, target, message: target == number and isinstance(message, fv.Entry)


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


def test_t14_a_pending_shrink_holds_the_high_watermark_until_it_is_answered() -> None:
    world = Script()
    world.cut_off(2)
    value = world.produce(world.leader, ACKS_ALL)
    world.cut |= {(0, 99)}  # the coordinator does not hear the leader
    world.rest()
    leader = world.leader.leader
    assert leader is not None
    assert leader.progress is not None
    assert leader.progress.proposed == (0, 1)
    assert not world.is_answered(value), "the coordinator may still elect copy 2"
    world.cut.discard((0, 99))
    world.rest()
    assert world.coordinator.isr == (0, 1)
    assert world.is_answered(value)


def test_t14_a_pending_expansion_counts_before_it_is_answered() -> None:
    world = Script()
    world.die(2)
    world.rest()
    world.start(world.nodes[2])
    world.cut |= {(99, 0)}  # the coordinator agrees, and the leader does not hear of it
    world.rest(2)
    assert set(world.coordinator.isr) == {0, 1, 2}
    leader = world.leader.leader
    assert leader is not None
    assert leader.isr_size == 2
    world.cut |= {(0, 2), (2, 0)}
    value = world.produce(world.leader, ACKS_ALL)
    world.only(lambda source, target, message: True)
    assert not world.is_answered(value), "copy 2 may be elected, and does not have it"
    world.cut.clear()
    world.rest()
    assert world.is_answered(value)


def test_t14_an_answer_that_was_lost_is_made_good_by_news() -> None:
    world = Script()
    leader = world.leader.leader
    assert leader is not None
    world.cut_off(2)
    world.cut |= {(0, 99)}
    world.produce(world.leader, ACKS_ALL)
    world.rest()
    assert leader.progress is not None
    assert leader.progress.proposed == (0, 1)
    version = leader.progress.copies.partition_epoch
    assert leader.handle(ev.IsrRefused(version, InvalidUpdateVersionError()), world.now_ns) == []
    for _ in range(10):
        world.now_ns += 200 * MS
        assert leader.handle(ev.Tick(), world.now_ns) == [], "asking again would be refused again"
    leader.handle(ev.CopiesChanged(ev.Copies((0, 1, 2), (0, 1), (), version + 1)), world.now_ns)
    assert leader.isr_size == 2
    assert leader.progress.proposed is None


def test_t14_a_fenced_leader_asks_no_more() -> None:
    world = Script()
    leader = world.leader.leader
    assert leader is not None
    world.cut_off(2)
    world.cut |= {(0, 99)}
    world.produce(world.leader, ACKS_ALL)
    world.rest()
    assert leader.progress is not None
    version = leader.progress.copies.partition_epoch
    leader.handle(ev.IsrRefused(version, FencedLeaderEpochError()), world.now_ns)
    assert leader.handle(ev.Tick(), world.now_ns + 60_000 * MS) == []
    assert leader.high_watermark == 0


def test_t14_a_leader_that_was_stopped_takes_nobody_for_late() -> None:
    world = Script()
    leader = world.leader.leader
    assert leader is not None
    world.produce(world.leader, ACKS_ALL)
    world.rest()
    world.produce(world.leader, ACKS_ALL)
    world.now_ns += 60_000 * MS  # stopped before it heard that they have it
    world.leader.tick()
    assert leader.progress is not None
    assert leader.progress.proposed is None
    world.only(lambda source, target, message: isinstance(message, rv.Copied))
    assert leader.progress.proposed is None
    world.rest()
    assert set(world.coordinator.isr) == {0, 1, 2}


def test_t14_a_successor_with_a_tail_of_an_older_epoch_does_not_take_over_its_predecessors() -> None:
    world = Script()
    first = world.produce(world.leader, ACKS_ALL)
    world.rest()
    stray = [world.produce(world.leader, ACKS_LEADER) for _ in range(2)]
    world.only(batches_to(1))  # copy 1 has the strays, nobody else
    world.drop()
    world.nodes[1].is_paused = True  # and sees nothing of what comes
    world.die(0)
    world.coordinator.isr = (2, 1)
    world.coordinator.elect()
    world.spread()
    world.rest(2)
    assert world.coordinator.leader == 2
    epoch = world.coordinator.leader_epoch
    later = [world.produce(world.leader, ACKS_LEADER) for _ in range(3)]
    world.tail_chance = 1.0
    world.die(2)
    world.nodes[1].is_paused = False
    world.rest()
    assert world.coordinator.leader == 1
    kept = [(0, first), (0, stray[0]), (0, stray[1])]
    assert world.logs()[1] == kept
    assert world.logs()[2] == [(0, first), *((epoch, value) for value in later)]
    for node in (world.nodes[0], world.nodes[2]):
        world.start(node)
    world.rest(20)
    assert world.logs() == [kept] * 3


def test_t14_a_successor_takes_over_what_only_the_dead_leader_had() -> None:
    world = Script()
    first = world.produce(world.leader, ACKS_ALL)
    world.rest()
    second = world.produce(world.leader, ACKS_LEADER)  # answered, and nobody else has it
    world.drop()
    world.tail_chance = 1.0
    world.die(0)
    world.rest()
    assert world.is_answered(second)
    assert world.logs()[1] == world.logs()[2] == [(0, first), (0, second)]


def test_t14_a_confirmation_of_an_older_subscription_does_not_count() -> None:
    world = Script()
    streams = world.leader.streams
    assert streams is not None
    world.produce(world.leader, ACKS_ALL)
    world.rest()
    one = streams.streams[1]
    old = rv.Copied(1, 1, one.subscription, 0, 1, 1)
    new = rv.Subscribed(1, 1, one.subscription + 1, one.incarnation, 0, -1, 0, 0)
    effects = streams.handle(new, world.now_ns)
    assert [type(effect).__name__ for effect in effects] == ["Inform", "Accept", "Inform", "Send"]
    (reject,) = streams.handle(old, world.now_ns)
    assert isinstance(reject, rv.Reject)
    assert streams.streams[1].acked == 0
    assert streams.handle(rv.Subscribed(1, 1, one.subscription, one.incarnation, 0, 0, 1, 1), world.now_ns) == []


def test_t14_a_follower_behind_the_log_start_begins_anew_there() -> None:
    world = Script()
    world.die(2)
    values = [world.produce(world.leader, ACKS_ALL) for _ in range(30)]
    world.rest()
    world.leader.trim()  # all but the last 20
    world.leader.log.base, world.leader.log.items = 10, world.leader.log.items[10:]
    world.leader.log.starts = [(0, 10)]
    world.rest()
    world.start(world.nodes[2])
    world.rest()
    assert world.nodes[2].log.base == 10
    assert world.logs()[2] == [(0, value) for value in values[10:]]
    assert set(world.coordinator.isr) == {0, 1, 2}


def test_t14_a_leader_that_steps_down_alive_lets_go_of_what_was_not_copied() -> None:
    world = Script()
    first = world.produce(world.leader, ACKS_ALL)
    world.rest()
    world.cut_off(0)
    stray = world.produce(world.leader, ACKS_ALL)
    assert world.coordinator.move()
    world.spread()
    world.rest(3)
    assert world.is_answered(stray), "it was refused: not leader any more"
    epoch = world.coordinator.leader_epoch
    second = world.produce(world.leader, ACKS_ALL)
    world.cut.clear()
    world.rest()
    assert world.logs() == [[(0, first), (epoch, second)]] * 3


def test_t14_the_new_leader_waits_until_the_old_one_has_stepped_down() -> None:
    world = Script()
    world.cut |= {(0, 99)}
    assert world.coordinator.move()
    world.spread()
    world.rest(3)
    assert world.nodes[1].leader is None, "the old one has not answered"
    world.cut.clear()
    world.rest()
    assert world.nodes[1].leader is not None


def test_t14_a_second_grant_and_a_late_one_change_nothing() -> None:
    world = Script()
    coordinator = world.coordinator
    coordinator.alive[1].answered = (-1, -1)
    (late,) = coordinator.grants()
    world.die(0)
    world.rest()
    node = world.nodes[1]
    assert node.leader is not None
    before = (node.leader, node.leader.leader_epoch)
    node.deliver(late)
    assert (node.leader, node.leader.leader_epoch) == before


def test_t14_fsync_waits_for_the_disks_of_min_insync_copies_and_for_the_election() -> None:
    world = Script()
    value = world.produce(world.leader, ACKS_FSYNC)
    world.only(lambda source, target, message: True)
    assert not world.is_answered(value), "it is in no file yet"
    world.leader.flushed()
    world.only(lambda source, target, message: True)
    assert not world.is_answered(value), "one disk of two"
    world.nodes[2].flushed()
    world.only(lambda source, target, message: True)
    assert world.is_answered(value)


def test_t14_fsync_is_not_answered_before_the_election_is_on_the_disk() -> None:
    one = Partition(3, 0, 0, 0, TopicConfig(), is_epoch_durable=False)
    (write,) = one.handle(ev.Produce("a", ACKS_FSYNC, -1), 0)
    assert isinstance(write, ev.Write)
    one.handle(ev.Appended("a", ACKS_FSYNC, 0, 1), 0)
    assert one.handle(ev.Flushed(1), 0) == [ev.PublishDurable(1)]
    assert one.handle(ev.EpochDurable(2), 0) == [], "another election"
    assert one.handle(ev.EpochDurable(3), 0) == [ev.Acknowledge("a", 0)]


def test_t14_a_producer_that_repeats_itself_after_a_failover_is_stored_once() -> None:
    world = Script()
    value = world.produce(world.leader, ACKS_ALL)
    world.rest()
    world.die(0)
    world.rest()
    log = world.leader.log
    batch = _numbered(base_sequence=0)
    sequences = Sequences(expiration_ms=86_400_000, window_ms=0, window_entries_max=0)
    sequences.note(batch, 0, 0)
    one = Partition(1, 0, log.log_end, 0, TopicConfig(), sequences=sequences)
    assert one.handle(ev.Produce("again", ACKS_ALL, -1, batch), 0) == [ev.Acknowledge("again", 0)]
    assert log.items == [(0, value)]


def _numbered(base_sequence: int) -> BatchHeader:
    return BatchHeader(
        base_offset=0,
        batch_length=100,
        leader_epoch=0,
        magic=2,
        crc=0,
        attributes=0,
        last_offset_delta=0,
        base_timestamp=0,
        max_timestamp=0,
        producer_id=7,
        producer_epoch=0,
        base_sequence=base_sequence,
        record_count=1,
    )


@pytest.mark.parametrize("copies", [2, 3, 5])
def test_t14_every_copy_is_alike_after_each_in_turn_has_died(copies: int) -> None:
    world = Script(copies=copies, min_insync=min(2, copies))
    values = []
    for number in [*range(copies), *range(copies)]:
        values.append(world.produce(world.leader, ACKS_ALL))
        world.rest()
        world.die(number)
        world.rest()
        world.start(world.nodes[number])
        world.rest()
    assert all(node.follower is None or node.follower.state is State.COPYING for node in world.nodes)
    assert [value for _, value in world.logs()[0]] == values
    assert world.logs() == [world.logs()[0]] * copies
