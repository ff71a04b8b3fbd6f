"""Replaying what was written, or its snapshot, gives the state that wrote it; and it goes on alike from there."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cluster_world import World
from zbroker import ids
from zbroker.core.image import Image
from zbroker.wire.messages import AlterConfigs, CreatePartitions, CreateTopics, DeleteTopics, NewTopicSpec
from zbroker.workers.metadata_log import frames, parse

NAMES = st.sampled_from(["a", "b", "c.d", "c_d"])
WORKERS = st.integers(0, 2)
STEPS = st.one_of(
    st.tuples(st.just("create"), NAMES, st.integers(1, 5)),
    st.tuples(st.just("extend"), NAMES, st.integers(1, 9)),
    st.tuples(st.just("delete"), NAMES),
    st.tuples(st.just("alter"), NAMES, st.integers(1, 10**6)),
    st.tuples(st.just("kill"), WORKERS),
    st.tuples(st.just("start"), WORKERS),
    st.tuples(st.just("tick"), st.integers(1, 20_000)),
    st.tuples(st.just("boot")),
    st.tuples(st.just("snapshot")),
)


def play(world: World, step: tuple[Any, ...]) -> None:
    match step:
        case ("create", name, count):
            world.ask(CreateTopics([NewTopicSpec(name, count, -1, {})], False))
        case ("extend", name, total):
            world.ask(CreatePartitions(name, total))
        case ("delete", name):
            world.ask(DeleteTopics([name]))
        case ("alter", name, ms):
            world.ask(AlterConfigs(name, {"retention.ms": str(ms)}, []))
        case ("kill", index) if ids.worker_number(index) in world.workers:
            world.kill_worker(ids.worker_number(index))
        case ("start", index) if ids.worker_number(index) not in world.workers:
            world.start_worker(ids.worker_number(index))
        case ("tick", ms):
            world.tick(ms)
        case ("boot",):
            world.cut_power()
            world.start_coordinator()
        case ("snapshot",):
            assert world.cluster is not None
            world.log = world.cluster.image.snapshot()
            world.synced = len(world.log)
    world.settle()


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=25), st.integers(0, 25))
def test_replay_and_snapshot_give_the_state_that_is_live(steps: list[tuple[Any, ...]], cut: int) -> None:
    world = World(workers=3)
    for index in range(3):
        world.start_worker(ids.worker_number(index))
    world.settle()
    for number, step in enumerate(steps):
        play(world, step)
        world.check_replay()
        if number == cut:
            world.kill_coordinator()
            world.start_coordinator()
            world.settle()
            world.check_replay()
    assert world.cluster is not None
    entries, _, _ = parse(frames(world.log, 0))
    assert Image.replayed(entries).facts() == world.cluster.image.facts(), "the bytes say the same as the objects"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=15), st.lists(STEPS, max_size=10))
def test_a_broker_goes_on_from_a_replay_as_from_where_it_was(
    before: list[tuple[Any, ...]], after: list[tuple[Any, ...]]
) -> None:
    """Two brokers with one past; one loses its coordinator. What they decide about topics afterwards is the same."""
    worlds = [World(workers=2), World(workers=2)]
    for world in worlds:
        for index in range(2):
            world.start_worker(ids.worker_number(index))
        world.settle()
        for step in before:
            play(world, step)
    worlds[1].kill_coordinator()
    worlds[1].start_coordinator()
    worlds[1].settle()
    for world in worlds:
        for step in after:
            if step[0] in ("create", "extend", "delete", "alter"):
                play(world, step)
    first, second = (world.cluster for world in worlds)
    assert first is not None
    assert second is not None
    assert {
        topic.name: (topic.topic_id, topic.config, len(topic.partitions)) for topic in first.image.topics.values()
    } == {topic.name: (topic.topic_id, topic.config, len(topic.partitions)) for topic in second.image.topics.values()}
    assert first.image.next_copy_id == second.image.next_copy_id
