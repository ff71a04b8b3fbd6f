"""The coordinator's rules one by one: who may lead, who is believed, what is asked again, when it is ready."""

from __future__ import annotations

import pytest

from tests.cluster_asks import W0, W1, create, effects_of, metadata, state_of, world_of
from tests.cluster_model import Worker, site
from zbroker.clock import NS_PER_MS
from zbroker.config.schema import ServerConfig
from zbroker.core import cluster_events as ev
from zbroker.core import effects as do
from zbroker.core.adoption import ADOPTION_DELAY_MS
from zbroker.core.cluster import Cluster
from zbroker.core.cluster_state import GRANTS_PER_MESSAGE_MAX
from zbroker.core.entries import Elected
from zbroker.core.image import Image
from zbroker.errors import IllegalTransition, StaleIncarnationError
from zbroker.wire.inner_messages import Held, Register
from zbroker.wire.messages import CreateTopics, NewTopicSpec


def test_an_event_before_the_start_and_a_second_start_change_nothing() -> None:
    cluster = Cluster(ServerConfig(), site(), 1, lambda *_: 0, Image())
    with pytest.raises(IllegalTransition, match="the start comes first"):
        cluster.handle(ev.Ticked(), 0)
    world = world_of()
    with pytest.raises(IllegalTransition, match="and once"):
        state_of(world).handle(ev.Started("id", "boot-1", []), 0)
    world.check_replay()


def test_nothing_comes_between_an_append_and_its_outcome() -> None:
    cluster = Cluster(ServerConfig(), site(), 1, lambda *_: 0, Image())
    assert isinstance(cluster.handle(ev.Started("id", "boot", []), 0)[-1], do.AppendEntries)
    with pytest.raises(IllegalTransition, match="an append is not answered"):
        cluster.handle(ev.Ticked(), 0)
    assert cluster.image.cluster_id == "", "what is not written down is not so"
    cluster.handle(ev.EntriesAppended(), 0)
    assert cluster.image.cluster_id == "id"
    with pytest.raises(IllegalTransition, match="an append is answered"):
        cluster.handle(ev.EntriesAppended(), 0)


def test_an_election_is_written_before_its_grant_is_sent() -> None:
    world = world_of()
    create(world, count=5)
    for effect in effects_of(world, do.SendGrant):
        before = world.effects[: world.effects.index(effect)]
        elected = [
            (*found, entry.incarnation)
            for one in before
            if isinstance(one, do.AppendEntries)
            for entry in one.entries
            if isinstance(entry, Elected)
            for found in entry.partitions
        ]
        for grant in effect.grants:
            assert (grant.topic_id, grant.partition, grant.leader_epoch, effect.incarnation) in elected


def test_a_thousand_partitions_are_one_durable_append_and_grants_of_64() -> None:
    world = world_of()
    state_of(world).state.site = site(partitions_max=2_000)
    world.effects.clear()
    create(world, count=1_000)
    durable = [effect for effect in effects_of(world, do.AppendEntries) if effect.durable]
    assert len(durable) == 1
    sizes = [len(effect.grants) for effect in effects_of(world, do.SendGrant)]
    assert sum(sizes) == 1_000
    assert max(sizes) == GRANTS_PER_MESSAGE_MAX


def test_what_a_process_holds_is_believed_only_when_the_log_says_the_same() -> None:
    world = world_of()
    topic_id = create(world, count=1)
    worker = world.workers[W0]
    copy_id = worker.open[topic_id, 0][0]
    for holding, is_believed in (
        ([Held(topic_id, 0, copy_id, 0)], True),
        ([Held(topic_id, 0, copy_id, 5)], False),
        ([Held(topic_id, 0, copy_id + 7, 0)], False),
        ([], False),
    ):
        world.start_coordinator()
        world.under_way.clear()
        world.effects.clear()
        register = Register(W0, worker.incarnation, "", "", holding)
        world.take(ev.ProcessRegistered("other", register))
        led = [effect for effect in effects_of(world, do.PublishLeader) if effect.number == W0]
        elections = effects_of(world, do.SendGrant)
        assert bool(led) == is_believed, holding
        assert bool(elections) != is_believed, holding
        world.under_way.clear()


def test_an_epoch_above_the_logs_is_never_used_again() -> None:
    """What a process holds with a higher epoch than the log knows, it keeps out of the next election's way."""
    world = world_of()
    topic_id = create(world, count=1)
    worker = world.workers[W0]
    world.start_coordinator()
    world.under_way.clear()
    held = Held(topic_id, 0, worker.open[topic_id, 0][0], 41)
    world.take(ev.ProcessRegistered("other", Register(W0, worker.incarnation, "", "", [held])))
    partition = state_of(world).image.partition(topic_id, 0)
    assert partition is not None
    assert partition.leader_epoch == 42


def test_a_process_is_told_to_close_what_is_not_its_own_and_to_delete_what_is_no_more() -> None:
    world = world_of()
    topic_id = create(world, count=2)
    foreign = Held(topic_id, 1, world.workers[W1].open[topic_id, 1][0], 0)
    own = Held(topic_id, 0, world.workers[W0].open[topic_id, 0][0], 0)
    gone = Held(999, 0, 77, 3)
    world.effects.clear()
    register = Register(W0, world.workers[W0].incarnation, "", "", [own, foreign, gone])
    world.take(ev.ProcessRegistered("other", register))
    (revoke,) = effects_of(world, do.SendRevoke)
    assert {(one.topic_id, one.partition, one.delete) for one in revoke.revocations} == {
        (topic_id, 1, False),
        (999, 0, True),
    }
    assert not effects_of(world, do.SendGrant)


def test_a_process_that_was_replaced_is_told_so() -> None:
    world = world_of()
    old = world.workers[W0]
    world.kill_worker(W0)
    world.start_worker(W0)
    world.settle()
    world.effects.clear()
    world.take(ev.ProcessRegistered("other", old.register()))
    (reply,) = effects_of(world, do.Reply)
    assert reply.error == StaleIncarnationError.code


def test_a_registration_that_was_lost_in_time_makes_nobody_lead_twice() -> None:
    """The same process registers again and again, while its grants are under way: they are repeated, not renewed."""
    world = world_of()
    world.ask(CreateTopics([NewTopicSpec("orders", 2, -1, {})], False))
    for _ in range(3):
        world.take(ev.ProcessRegistered("other", Worker(W0, world.workers[W0].incarnation).register()))
    world.settle()
    epochs = {partition.leader_epoch for partition in state_of(world).image.partitions()}
    assert epochs == {0}


def test_a_partition_that_its_process_does_not_hold_any_more_is_granted_anew() -> None:
    world = world_of()
    topic_id = create(world, count=1)
    world.workers[W0].open.clear()
    world.register(W0)
    world.settle()
    assert world.workers[W0].open[topic_id, 0][1] == 1


def test_silence_is_no_death_and_nothing_is_adopted_from_who_may_live() -> None:
    world = world_of()
    topic_id = create(world, count=2)
    world.kill_coordinator()
    world.start_coordinator()
    world.under_way.pop(f"to {W1}")  # it hears nothing, as if it were stopped
    for _ in range(300):
        world.settle()
        world.tick(100)
        world.under_way.pop(f"to {W1}", None)
    assert world.now_ns > 2 * ADOPTION_DELAY_MS * NS_PER_MS
    assert [partition.owner for partition in state_of(world).image.topics[topic_id].partitions] == [W0, W1]
    world.tick(200)
    world.settle()
    assert world.epochs[topic_id, 1] == 0, "it registered at last, and leads on with the epoch it had"
    assert metadata(world, "orders").topics[0].partitions[1].leader == W1
