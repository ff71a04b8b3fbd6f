"""The coordinator under thousands of random histories: deaths, losses, full disks, power cuts. Every seed replays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cluster_world import World, worker
from zbroker.config.schema import ServerConfig
from zbroker.core.cluster_state import Standing
from zbroker.ids import process_name
from zbroker.wire.messages import (
    AlterConfigs,
    CreatePartitions,
    CreateTopics,
    DeleteTopics,
    MetadataRequest,
    NewTopicSpec,
)

SEEDS = int(os.environ.get("ZB_SIM_SEEDS", "30"))
STEPS = 250
NAMES = ("a", "b", "c.d", "c_d", "e")


def one_step(world: World, workers: int) -> None:
    """Something happens."""
    if world.cluster is None:
        world.start_coordinator()
    chance = world.random.random()
    down = [worker(index) for index in range(workers) if worker(index) not in world.workers]
    if chance < 0.45:
        for _ in range(world.random.randint(1, 12)):
            world.deliver_one()
    elif chance < 0.65:
        ask_something(world)
    elif chance < 0.77:
        world.tick(world.random.choice([1, 100, 100, 1_000, 11_000]))
    elif chance < 0.82 and world.workers:
        world.kill_worker(world.random.choice(sorted(world.workers)))
    elif chance < 0.92 and down:
        world.start_worker(world.random.choice(down))
    elif chance < 0.94:
        world.kill_coordinator()
        world.start_coordinator()
    elif chance < 0.945:
        world.cut_power()
        world.start_coordinator()
    elif chance < 0.97 and world.workers:
        world.supersede_worker(world.random.choice(sorted(world.workers)))
    elif world.workers:
        world.register(world.random.choice(sorted(world.workers)))


def ask_something(world: World) -> None:
    name = world.random.choice(NAMES)
    choice = world.random.randrange(7)
    if choice == 0:
        world.ask(CreateTopics([NewTopicSpec(name, world.random.randint(1, 4), -1, {})], False))
    elif choice == 1:
        world.ask(CreateTopics([NewTopicSpec(each, 2, -1, {"storage": "memory"}) for each in NAMES], False))
    elif choice in (2, 6):
        world.ask(DeleteTopics([name]))
    elif choice == 3:
        world.ask(CreatePartitions(name, world.random.randint(1, 8)))
    elif choice == 4:
        world.ask(AlterConfigs(name, {"retention.ms": str(world.random.randrange(1_000_000))}, []))
    else:
        world.ask(MetadataRequest([name], True))


def heal(world: World, workers: int) -> None:
    """No more faults: every worker runs, every message arrives."""
    world.loss = world.log_failures = world.open_failures = 0.0
    if world.cluster is None:
        world.start_coordinator()
    for index in range(workers):
        if worker(index) not in world.workers:
            world.start_worker(worker(index))
    for _ in range(4):
        world.settle()
        world.tick(31_000)
    world.settle()


@contextmanager
def told(seed: int) -> Iterator[None]:
    """Name the seed in a failure: it alone plays the history again."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise


def run(seed: int, *, workers: int) -> World:
    with told(seed):
        world = World(seed, workers=workers, loss=0.2, log_failures=0.05, open_failures=0.05)
        for _ in range(STEPS):
            one_step(world, workers)
            world.check()
            world.check_replay()
        heal(world, workers)
        check_rest(world)
    return world


def check_rest(world: World) -> None:
    """What holds when nothing is under way and everybody lives."""
    assert world.cluster is not None
    state = world.cluster.state
    for partition in state.image.partitions():
        assert state.leadership(partition.key).standing is Standing.LEADING, str(partition)
        leader = world.workers[partition.leader_number]
        assert leader.incarnation == partition.leader_incarnation
        assert leader.open[partition.key] == (partition.copy_id, partition.leader_epoch)
        assert leader.settings[partition.topic_id] == state.settings_of(state.image.topics[partition.topic_id])
        assert partition.owner == partition.leader_number
        shown = (partition.leader_epoch, leader.number, leader.incarnation)
        assert world.board.leaders[partition.key] == shown
    existing = {partition.key for partition in state.image.partitions()}
    assert set(world.board.leaders) == existing
    for process in world.workers.values():
        assert set(process.open) <= existing, f"{process_name(process.number)} holds a deleted topic"
    assert not world.lingering
    assert all(len(answers) == 1 for answers in world.answers.values()), "two answers"


@pytest.mark.parametrize("block", range(4))
def test_after_any_history_every_partition_has_one_leader_and_every_request_at_most_one_answer(block: int) -> None:
    for seed in range(block * SEEDS, (block + 1) * SEEDS):
        run(seed, workers=3)


def test_the_same_seed_gives_the_same_history() -> None:
    first, second = run(7, workers=3), run(7, workers=3)
    assert first.effects == second.effects
    assert first.log == second.log


def test_with_a_process_for_each_partition_no_two_partitions_share_one() -> None:
    config = ServerConfig()
    for seed in range(SEEDS // 2):
        with told(seed):
            run_per_partition(seed, config)


def run_per_partition(seed: int, config: ServerConfig) -> None:
    world = World(seed, workers=0, config=config, loss=0.1)
    for _ in range(STEPS):
        follow_wanted(world)
        one_step(world, 0)
        world.check_replay()
    world.loss = 0.0
    for _ in range(4):
        world.settle()
        follow_wanted(world)
        world.tick(31_000)
    world.settle()
    assert world.cluster is not None
    owners = [partition.owner for partition in world.cluster.image.partitions()]
    assert len(owners) == len(set(owners))
    assert sorted(world.workers) == sorted(owners) == world.board.wanted
    for partition in world.cluster.image.partitions():
        assert partition.key in world.workers[partition.owner].open, str(partition)


def follow_wanted(world: World) -> None:
    """What the supervisor does."""
    for number in sorted(set(world.workers) - set(world.board.wanted)):
        world.kill_worker(number)
    for number in world.board.wanted:
        if number not in world.workers:
            world.start_worker(number)
