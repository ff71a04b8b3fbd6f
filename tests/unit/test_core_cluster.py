"""The coordinator's rules one by one: who may lead, who is believed, what is asked again, when the broker is ready."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeVar

import pytest

from tests.cluster_model import Worker, site
from tests.cluster_world import World
from zbroker import ids
from zbroker.clock import NS_PER_MS
from zbroker.config.schema import ServerConfig
from zbroker.core import cluster_events as ev
from zbroker.core import effects as do
from zbroker.core.adoption import ADOPTION_DELAY_MS
from zbroker.core.cluster import Cluster
from zbroker.core.cluster_state import GRANTS_PER_MESSAGE_MAX, Standing
from zbroker.core.entries import MEMORY_DISK, Elected
from zbroker.core.image import Image
from zbroker.errors import IllegalTransition, RequestTimedOutError, StaleIncarnationError
from zbroker.wire.messages import (
    AlterConfigs,
    ClusterInfo,
    ConfigEntries,
    CreateTopics,
    DeleteTopics,
    DescribeConfigs,
    GrantResult,
    Held,
    MetadataReply,
    MetadataRequest,
    NewTopicSpec,
    Register,
    TopicResults,
)

W0, W1 = ids.worker_number(0), ids.worker_number(1)


def world_of(count: int = 2, config: ServerConfig | None = None) -> World:
    """A broker whose workers run."""
    world = World(workers=count, config=config)
    for index in range(count):
        world.start_worker(ids.worker_number(index))
    world.settle()
    return world


def create(world: World, name: str = "orders", count: int = 2, config: dict[str, str] | None = None) -> int:
    """Make a topic; its id."""
    reply = world.answer(CreateTopics([NewTopicSpec(name, count, -1, config or {})], False))
    assert isinstance(reply.body, TopicResults)
    assert reply.body.topics[0].error == 0, reply.body.topics[0].message
    return reply.body.topics[0].topic_id


def metadata(world: World, *names: str, auto_create: bool = False) -> MetadataReply:
    body = world.answer(MetadataRequest(list(names) or None, auto_create)).body
    assert isinstance(body, MetadataReply)
    return body


E = TypeVar("E", bound=do.Effect)


def effects_of(world: World, kind: type[E]) -> list[E]:
    return [effect for effect in world.effects if isinstance(effect, kind)]


def state_of(world: World) -> Cluster:
    assert world.cluster is not None
    return world.cluster


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


def test_a_dead_process_that_the_settings_do_not_want_loses_its_copies_at_once() -> None:
    world = world_of(2)
    topic_id = create(world, count=4)
    world.cut_power()
    world.fixed_workers = 1
    world.start_coordinator()
    world.start_worker(W0)
    world.settle()
    world.tick(1)
    world.settle()
    owners = {partition.owner for partition in state_of(world).image.topics[topic_id].partitions}
    assert owners == {W0}
    assert len(world.workers[W0].open) == 4


def test_partitions_that_shared_a_worker_get_one_each_when_the_settings_say_so() -> None:
    world = world_of(2)
    create(world, count=5)
    world.cut_power()
    world.fixed_workers = 0
    world.start_coordinator()
    for _ in range(3):
        for number in set(world.board.wanted) - set(world.workers):
            world.start_worker(number)
        world.settle()
    assert len(world.board.wanted) == 5
    assert [len(world.workers[number].open) for number in world.board.wanted] == [1] * 5


def test_a_process_is_away_for_less_than_the_delay_and_keeps_its_copies() -> None:
    world = world_of()
    create(world, count=2)
    world.kill_worker(W1)
    world.settle()
    world.tick(ADOPTION_DELAY_MS - 1)
    world.start_worker(W1)
    world.settle()
    world.tick(ADOPTION_DELAY_MS)
    assert len(world.workers[W1].open) == 1


def test_no_partition_is_adopted_beyond_what_a_process_may_have() -> None:
    config = ServerConfig()
    config.limits.partitions_per_process_max = 5
    world = world_of(2, config=config)
    create(world, count=6)
    world.kill_worker(W1)
    world.settle()
    world.tick(ADOPTION_DELAY_MS)
    world.settle()
    assert len(world.workers[W0].open) == 5
    assert metadata(world, "orders").topics[0].partitions[5].leader == -1


def test_a_request_whose_partitions_get_no_leader_in_time_says_so_and_the_topic_exists() -> None:
    world = World(workers=1)
    number = world.ask(CreateTopics([NewTopicSpec("orders", 1, -1, {})], False), timeout_ms=500)
    assert number not in world.answers
    world.tick(499)
    assert number not in world.answers
    world.tick(1)
    (reply,) = world.answers[number]
    assert isinstance(reply.body, TopicResults)
    assert reply.body.topics[0].error == RequestTimedOutError.code
    assert metadata(world, "orders").topics[0].partitions[0].leader == -1


def test_metadata_that_creates_is_answered_without_a_leader_when_none_comes() -> None:
    world = World(workers=1)
    number = world.ask(MetadataRequest(["new"], True), timeout_ms=500)
    world.tick(500)
    (reply,) = world.answers[number]
    assert isinstance(reply.body, MetadataReply)
    assert reply.body.topics[0].partitions[0].leader == -1


def test_a_topic_deleted_while_its_creation_waits_answers_both() -> None:
    world = World(workers=1)
    number = world.ask(CreateTopics([NewTopicSpec("orders", 1, -1, {})], False))
    world.answer(DeleteTopics(["orders"]))
    assert len(world.answers[number]) == 1


def test_an_answer_that_leaves_partitions_out_counts_as_a_failure_for_them() -> None:
    world = world_of()
    world.ask(CreateTopics([NewTopicSpec("orders", 2, -1, {})], False))
    grants = [effect for effect in effects_of(world, do.SendGrant) if effect.number == W0]
    world.under_way.clear()
    (grant,) = grants
    world.take(ev.GrantAnswered(W0, grant.incarnation, grant.grants, []))
    assert state_of(world).state.leadership((1, 0)).standing is Standing.FAILED
    unasked = [GrantResult(88, 8, 0, "", 0, 0)]
    world.take(ev.GrantAnswered(W0, grant.incarnation, grant.grants, unasked))


def test_failed_grants_are_tried_again_after_longer_and_longer_waits() -> None:
    world = world_of(1)
    world.open_failures = 1.0
    world.ask(CreateTopics([NewTopicSpec("orders", 1, -1, {})], False))
    world.settle()
    tried = []
    for _ in range(1_000):
        before = len(effects_of(world, do.SendGrant))
        world.tick(100)
        world.settle()
        if len(effects_of(world, do.SendGrant)) > before:
            tried.append(world.now_ns // NS_PER_MS)
    waits = [later - earlier for earlier, later in pairwise(tried)]
    assert waits == sorted(waits)
    assert waits[-1] == 30_000


def test_ready_is_said_once_when_every_wanted_process_leads_what_it_has() -> None:
    world = world_of()
    create(world, count=4)
    world.cut_power()
    world.start_coordinator()
    assert not world.board.is_ready
    world.start_worker(W0)
    world.settle()
    assert not world.board.is_ready, "worker-1 has not registered"
    world.open_failures = 1.0
    world.start_worker(W1)
    world.settle()
    assert world.board.is_ready, "a copy that cannot be opened does not hold up the rest"


def test_new_partitions_are_placed_on_a_worker_that_is_expected_back() -> None:
    world = world_of()
    world.kill_worker(W1)
    world.settle()
    world.ask(CreateTopics([NewTopicSpec("orders", 4, -1, {})], False))
    owners = [partition.owner for partition in state_of(world).image.partitions()]
    assert owners == [W0, W1, W0, W1]
    world.tick(3_000)
    world.ask(CreateTopics([NewTopicSpec("later", 2, -1, {})], False))
    owners = [partition.owner for partition in state_of(world).image.by_name["later"].partitions]
    assert owners == [W0, W0], "it has been away for longer than a restart takes"


def test_copies_lie_under_numbers_on_the_disk_with_the_fewest_and_memory_topics_in_memory() -> None:
    world = world_of()
    state_of(world).state.site = site(further_data_dirs=["/disk2"])
    create(world, "one", 3)
    create(world, "fast", 1, {"storage": "memory"})
    infos = {topic.name: topic for topic in metadata(world).topics}
    assert [partition.directory for partition in infos["one"].partitions] == [
        "/data/copies/1/t00000001-0",
        "/disk2/copies/2/t00000001-1",
        "/data/copies/3/t00000001-2",
    ]
    assert infos["fast"].partitions[0].directory == "/run/memory/4/t00000002-0"
    assert state_of(world).image.disk_loads[MEMORY_DISK] == 1


def test_a_moved_data_directory_moves_its_copies() -> None:
    world = world_of()
    create(world)
    image = Image.replayed(world.log)
    moved = Cluster(ServerConfig(), site(data_dir="/elsewhere"), 2, lambda *_: 0, image)
    partition = image.partition(1, 0)
    assert partition is not None
    assert moved.state.directory_of(partition) == "/elsewhere/copies/1/t00000001-0"


def test_topic_and_copy_ids_are_not_used_again_after_a_snapshot() -> None:
    world = world_of()
    create(world, "a", 3)
    create(world, "b", 3)
    world.answer(DeleteTopics(["b"]))
    world.log = state_of(world).image.snapshot()
    world.start_coordinator()
    world.settle()
    assert create(world, "b", 1) == 3
    assert metadata(world, "b").topics[0].partitions[0].replicas == [7]


def test_metadata_tells_versions_processes_and_what_is_not_there() -> None:
    world = world_of()
    before = metadata(world).version
    create(world, "a", 1)
    reply = metadata(world, "a", "unknown", "not/a name", "a")
    assert reply.version > before
    assert [(topic.name, topic.error) for topic in reply.topics] == [("a", 0), ("unknown", 3), ("not/a name", 17)]
    assert [(process.name, process.state) for process in reply.processes] == [
        ("worker-0", "running"),
        ("worker-1", "running"),
    ]
    assert metadata(world, "new", auto_create=True).topics[0].partitions[0].leader in (W0, W1)


def test_no_topic_is_created_by_asking_when_the_settings_forbid_it() -> None:
    config = ServerConfig()
    config.broker.auto_create_topics_enable = False
    world = world_of(config=config)
    assert metadata(world, "new", auto_create=True).topics[0].error == 3
    config.broker.auto_create_topics_enable = True  # as SIGHUP does
    assert metadata(world, "new", auto_create=True).topics[0].error == 0


def test_settings_are_described_with_their_origin_and_put_back() -> None:
    config = ServerConfig()
    world = world_of(config=config)
    create(world, "a", 1, {"retention_ms": "7d"})
    world.answer(AlterConfigs("a", {"segment.bytes": "2MiB"}, []))

    def described() -> dict[str, tuple[str, str]]:
        body = world.answer(DescribeConfigs("a")).body
        assert isinstance(body, ConfigEntries)
        return {entry.name: (entry.value, entry.origin) for entry in body.entries}

    assert described()["retention.ms"] == ("604800000", "topic")
    assert described()["segment.bytes"] == (str(2 << 20), "topic")
    assert described()["cleanup.policy"] == ("delete", "default")
    world.answer(AlterConfigs("a", {}, ["segment_bytes"]))
    assert described()["segment.bytes"] == (str(1 << 30), "default")
    assert world.workers[W0].settings[1]["segment.bytes"] == str(1 << 30)


def test_the_cluster_is_described() -> None:
    world = world_of()
    create(world, count=3)
    world.take(ev.DescribeClusterAsked(900))
    body = world.answers[900][0].body
    assert isinstance(body, ClusterInfo)
    assert (body.cluster_id, body.topic_count, body.partition_count) == ("cluster-id", 1, 3)
    assert [process.number for process in body.processes] == [W0, W1]


def test_a_dead_processes_board_stays_until_every_successor_has_published() -> None:
    world = world_of()
    create(world, count=4)
    old = world.workers[W0].incarnation
    world.kill_worker(W0)
    world.settle()
    assert old not in world.removed_boards
    world.start_worker(W0)
    world.settle()
    assert old in world.removed_boards
