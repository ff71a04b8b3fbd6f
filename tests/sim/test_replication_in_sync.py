"""T14: sets of copies in sync, successors and acknowledgements, step by step, with the logs that must come out."""

from __future__ import annotations

import pytest

from tests.replication_script import Script, batches_to
from zbroker.config.schema import TopicConfig
from zbroker.core import partition_events as ev
from zbroker.core import replication_events as rv
from zbroker.core.dedup import Sequences
from zbroker.core.follower import State
from zbroker.core.partition import ACKS_ALL, ACKS_FSYNC, ACKS_LEADER, Partition
from zbroker.errors import FencedLeaderEpochError, InvalidUpdateVersionError
from zbroker.record.layout import BatchHeader

MS = 1_000_000


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


def test_t14_fsync_of_a_repeat_asks_the_other_copies_disks_which_its_first_leader_asked() -> None:
    batch = _numbered(base_sequence=0)
    sequences = Sequences(expiration_ms=86_400_000, window_ms=0, window_entries_max=0)
    sequences.note(batch, 0, 0)
    config = TopicConfig(min_insync_replicas=2)
    copies = ev.Copies((1, 2), (1, 2))
    one = Partition(1, 0, 1, 0, config, own=1, copies=copies, high_watermark=1, sequences=sequences)
    one.handle(ev.FollowerAt(2, 20, 1, 0), 0)
    asked = one.handle(ev.Produce("again", ACKS_FSYNC, -1, batch), 0)
    assert asked == [ev.Flush(), ev.Tell(1)], "nobody else asks: the leader that did is gone"
    assert ev.Acknowledge("again", 0) not in one.handle(ev.Flushed(1), 0)
    assert ev.Acknowledge("again", 0) in one.handle(ev.FollowerAt(2, 20, 1, 1), 0)


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
