"""Elections among copies: who may lead, who stays eligible, and what a person can force (KIP-497, 841, 903, 966)."""

from __future__ import annotations

from tests.cluster_asks import W0, W1, effects_of, state_of, world_of
from tests.cluster_world import World, worker
from zbroker.core import cluster_events as ev
from zbroker.core import effects as do
from zbroker.core.image import Partition
from zbroker.core.surveys import ASK_AGAIN_MS
from zbroker.errors import (
    FencedLeaderEpochError,
    InvalidUpdateVersionError,
    LeaderNotAvailableError,
    StaleIncarnationError,
)
from zbroker.wire.copy_messages import ElectLeaders, PartitionResults
from zbroker.wire.inner_messages import AlterIsr, CopySuspect, IsrAltered, Registered
from zbroker.wire.messages import CreateTopics, NewTopicSpec, TopicResults

W2 = worker(2)


def world_with_copies(count: int = 3, **settings: str) -> tuple[World, tuple[int, int]]:
    """A broker of `count` workers, and a partition with a copy on each; the first one leads."""
    world = world_of(count)
    spec = NewTopicSpec("pay", 1, count, {name.replace("_", "."): value for name, value in settings.items()})
    reply = world.answer(CreateTopics([spec], False)).body
    assert isinstance(reply, TopicResults)
    assert reply.topics[0].error == 0, reply.topics[0].message
    return world, (reply.topics[0].topic_id, 0)


def partition_of(world: World, key: tuple[int, int]) -> Partition:
    found = state_of(world).image.partition(*key)
    assert found is not None
    return found


def leader(world: World, key: tuple[int, int]) -> int | None:
    """The process that the coordinator's board shows as leading."""
    return world.board.leaders[key][1]


def alter(world: World, key: tuple[int, int], owners: list[int], **changes: int) -> do.Reply:
    """The leader proposes that the copies of these processes are in sync."""
    partition = partition_of(world, key)
    found = [copy for copy in partition.copies if copy.owner in owners]
    fields = {"leader_epoch": partition.leader_epoch, "partition_epoch": partition.partition_epoch, **changes}
    incarnations = [world.workers[copy.owner].incarnation for copy in found]
    wanted = AlterIsr(*key, fields["leader_epoch"], fields["partition_epoch"], [c.copy_id for c in found], incarnations)
    world.effects.clear()
    world.take(ev.IsrAlterationAsked("alter", wanted))
    replies = [effect for effect in world.effects if isinstance(effect, do.Reply) and effect.request == "alter"]
    world.settle()
    assert len(replies) == 1
    return replies[0]


def owners_in_sync(world: World, key: tuple[int, int]) -> list[int]:
    partition = partition_of(world, key)
    return [copy.owner for copy in partition.copies if copy.copy_id in partition.isr]


def owners_eligible(world: World, key: tuple[int, int]) -> list[int]:
    partition = partition_of(world, key)
    return [copy.owner for copy in partition.copies if copy.copy_id in partition.elr]


def test_a_dead_leader_is_followed_by_a_copy_in_sync_with_the_next_epoch() -> None:
    world, key = world_with_copies()
    epoch = partition_of(world, key).leader_epoch
    assert leader(world, key) == W0
    world.kill_worker(W0)
    world.settle()
    assert leader(world, key) == W1
    assert partition_of(world, key).leader_epoch == epoch + 1
    assert owners_in_sync(world, key) == [W1, W2]
    world.check_replay()


def test_a_copy_that_is_not_in_sync_does_not_lead_and_the_last_one_in_sync_is_waited_for() -> None:
    world, key = world_with_copies(2)
    assert alter(world, key, [W0]).error == 0
    world.kill_worker(W0)
    world.settle()
    assert leader(world, key) is None
    assert owners_in_sync(world, key) == [W0]
    world.start_worker(W0)
    world.settle()
    assert leader(world, key) == W0


def test_a_person_may_force_what_loses_records_and_everybody_is_told() -> None:
    world, key = world_with_copies(2)
    assert alter(world, key, [W0]).error == 0
    world.kill_worker(W0)
    world.settle()
    refused = world.answer(ElectLeaders([("pay", 0)])).body
    assert isinstance(refused, PartitionResults)
    assert refused.partitions[0].error == LeaderNotAvailableError.code
    assert "--unclean" in refused.partitions[0].message
    world.effects.clear()
    asked = world.ask(ElectLeaders([("pay", 0)], unclean=True))
    for _ in range(20):
        world.settle()
        world.tick(100)
    done = world.answers[asked][0].body
    assert isinstance(done, PartitionResults)
    assert done.partitions[0].error == 0, done.partitions[0].message
    assert leader(world, key) == W1
    assert owners_in_sync(world, key) == [W1]
    assert [warning.text for warning in effects_of(world, do.Warn) if "UNCLEAN" in warning.text]
    assert world.told[key].is_unclean


def test_a_topic_may_say_that_it_rather_loses_records_than_waits() -> None:
    world, key = world_with_copies(2, unclean_leader_election_enable="true")
    assert alter(world, key, [W0]).error == 0
    world.kill_worker(W0)
    for _ in range(40):
        world.settle()
        world.tick(100)
    assert leader(world, key) == W1
    assert [warning.text for warning in effects_of(world, do.Warn) if "UNCLEAN" in warning.text]


def test_below_min_insync_who_left_stays_eligible_and_may_lead() -> None:
    world, key = world_with_copies(3, min_insync_replicas="2")
    assert alter(world, key, [W0]).error == 0
    assert owners_eligible(world, key) == [W1, W2]
    world.kill_worker(W0)
    world.settle()
    assert leader(world, key) in (W1, W2)
    assert owners_in_sync(world, key) == [leader(world, key)]


def test_who_left_a_set_that_is_large_enough_is_not_eligible() -> None:
    world, key = world_with_copies(3, min_insync_replicas="2")
    assert alter(world, key, [W0, W1]).error == 0
    assert owners_eligible(world, key) == []
    assert owners_in_sync(world, key) == [W0, W1]


def test_the_last_copy_in_sync_never_leaves_the_set() -> None:
    world, key = world_with_copies(3)
    for number in (W0, W1, W2):
        world.kill_worker(number)
        world.settle()
    assert owners_in_sync(world, key) == [W2]
    world.check_replay()


def test_the_preferred_copy_leads_again_when_it_is_in_sync() -> None:
    world, key = world_with_copies()
    world.kill_worker(W0)
    world.settle()
    world.start_worker(W0)
    world.settle()
    world.tick(5_000)
    world.settle()
    assert leader(world, key) == W1, "it is not in sync yet"
    assert alter(world, key, [W0, W1, W2]).error == 0
    for _ in range(3):
        world.tick(5_000)
        world.settle()
    assert leader(world, key) == W0


def test_aba_a_copy_whose_process_was_replaced_does_not_join_on_its_predecessors_word() -> None:
    world, key = world_with_copies()
    assert alter(world, key, [W0, W1]).error == 0
    before = world.workers[W2].incarnation
    world.kill_worker(W2)
    world.settle()
    world.start_worker(W2)
    world.settle()
    partition = partition_of(world, key)
    isr = [copy.copy_id for copy in partition.copies]
    incarnations = [world.workers[W0].incarnation, world.workers[W1].incarnation, before]
    epochs = (partition.leader_epoch, partition.partition_epoch)
    world.effects.clear()
    world.take(ev.IsrAlterationAsked("late", AlterIsr(*key, *epochs, isr, incarnations)))
    assert [reply.error for reply in effects_of(world, do.Reply)] == [StaleIncarnationError.code]
    assert owners_in_sync(world, key) == [W0, W1]


def test_a_proposal_from_an_older_version_is_refused_with_the_news() -> None:
    world, key = world_with_copies()
    version = partition_of(world, key).partition_epoch
    assert isinstance(alter(world, key, [W0, W1]).body, IsrAltered)
    late = alter(world, key, [W0], partition_epoch=version)
    assert late.error == InvalidUpdateVersionError.code
    assert [grant.partition_epoch for sent in effects_of(world, do.SendGrant) for grant in sent.grants] == [version + 1]
    assert owners_in_sync(world, key) == [W0, W1]


def test_a_leader_that_asks_a_new_coordinator_before_it_has_registered_there_may_ask_again() -> None:
    world, key = world_with_copies()
    assert alter(world, key, [W0, W1]).error == 0
    world.kill_coordinator()
    world.start_coordinator()
    world.under_way.clear()
    early = alter(world, key, [W0, W1, W2])
    assert early.error == LeaderNotAvailableError.code, "fenced, it would ask no more, and wait for copy 2 for ever"
    for number in (W0, W1, W2):
        world.register(number)
    world.settle()
    assert alter(world, key, [W0, W1, W2]).error == 0
    assert owners_in_sync(world, key) == [W0, W1, W2]


def test_t14_who_registers_is_told_whether_its_elections_are_on_the_disk() -> None:
    world, _ = world_with_copies(1)
    world.cut_power()
    world.start_coordinator()
    world.under_way.clear()
    leader = world.start_worker(W0)
    while not leader.open:
        assert world.deliver_one()
        world.under_way.pop("sync", None)  # it takes long

    def are_durable() -> bool:
        world.effects.clear()
        world.take(ev.ProcessRegistered("again", leader.register()))
        (reply,) = (effect for effect in effects_of(world, do.Reply) if effect.request == "again")
        assert isinstance(reply.body, Registered)
        return reply.body.are_elections_durable

    assert not are_durable()
    world.kill_coordinator()
    world.start_coordinator()
    assert are_durable(), "the one before could not say so any more: nobody else would"


def test_copies_that_cannot_be_opened_after_a_reboot_are_asked_again() -> None:
    world, key = world_with_copies()
    world.cut_power()
    world.open_failures = 1.0
    world.start_coordinator()
    for number in (W0, W1, W2):
        world.start_worker(number)
    world.settle()
    assert leader(world, key) is None
    world.open_failures = 0.0
    world.tick(ASK_AGAIN_MS - 1)
    world.settle()
    assert leader(world, key) is None
    world.tick(1)
    world.settle()
    assert leader(world, key) is not None, "the disk has room again"


def test_a_leader_that_was_replaced_changes_no_set() -> None:
    world, key = world_with_copies()
    world.kill_worker(W0)
    world.settle()
    old = partition_of(world, key).leader_epoch - 1
    assert alter(world, key, [W1], leader_epoch=old).error == FencedLeaderEpochError.code
    assert owners_in_sync(world, key) == [W1, W2]


def test_a_damaged_leader_leads_no_more_and_a_damaged_follower_is_not_in_sync() -> None:
    world, key = world_with_copies()
    for number, left in ((W0, [W1, W2]), (W1, [W2])):
        copy = partition_of(world, key).copy_at(number)
        assert copy is not None
        world.take(ev.CopyIsSuspect(f"damage {number}", CopySuspect(*key, copy.copy_id, "wrong CRC")))
        world.settle()
        assert owners_in_sync(world, key) == left
        assert leader(world, key) == left[0]
    assert [warning.text for warning in effects_of(world, do.Warn)].count("a copy is damaged") == 2


def test_after_a_power_cut_the_copy_that_has_most_leads() -> None:
    world, key = world_with_copies()
    world.tick()
    first, second, third = partition_of(world, key).copies
    epoch = partition_of(world, key).leader_epoch
    world.cut_power()
    world.ends = {first.copy_id: (epoch, 5), second.copy_id: (epoch, 9), third.copy_id: (epoch - 1, 12)}
    world.start_coordinator()
    for number in (W0, W1, W2):
        world.start_worker(number)
        world.settle()
    assert leader(world, key) == W1, "the newest epoch counts before the longest log"
    assert owners_in_sync(world, key) == [W1]


def test_a_copy_found_damaged_outside_of_the_set_does_not_join_by_a_proposal_from_before() -> None:
    world, key = world_with_copies()
    assert alter(world, key, [W0, W1]).error == 0
    copy = partition_of(world, key).copy_at(W2)
    version = partition_of(world, key).partition_epoch
    assert copy is not None
    world.take(ev.CopyIsSuspect("damage", CopySuspect(*key, copy.copy_id, "wrong CRC")))
    world.settle()
    late = alter(world, key, [W0, W1, W2], partition_epoch=version)
    assert late.error == InvalidUpdateVersionError.code
    assert owners_in_sync(world, key) == [W0, W1]
    assert alter(world, key, [W0, W1, W2]).error == 0, "fetched again, it joins"
