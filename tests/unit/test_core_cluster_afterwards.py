"""Further rules of the cluster: what follows after deaths, late answers and changes."""

from __future__ import annotations

from itertools import pairwise

from tests.cluster_asks import W0, W1, create, effects_of, metadata, state_of, world_of
from tests.cluster_model import site
from tests.cluster_world import World
from zbroker.clock import NS_PER_MS
from zbroker.config.schema import ServerConfig
from zbroker.core import cluster_events as ev
from zbroker.core import effects as do
from zbroker.core.adoption import ADOPTION_DELAY_MS
from zbroker.core.cluster import Cluster
from zbroker.core.cluster_state import Standing
from zbroker.core.elections import GRANT_RETRY_MAX_MS
from zbroker.core.entries import MEMORY_DISK
from zbroker.core.image import Image
from zbroker.errors import RequestTimedOutError
from zbroker.wire.inner_messages import GrantResult
from zbroker.wire.messages import (
    AlterConfigs,
    ClusterInfo,
    ConfigEntries,
    CreateTopics,
    DeleteTopics,
    DescribeConfigs,
    MetadataReply,
    MetadataRequest,
    NewTopicSpec,
    TopicResults,
)


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
    assert waits[-1] == GRANT_RETRY_MAX_MS


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
    assert moved.state.directory_of(partition, partition.copies[0]) == "/elsewhere/copies/1/t00000001-0"


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
