"""T13: replication under thousands of random histories, on the real state machines of leaders and followers.

ZBROKER_SIM_SEEDS and ZBROKER_SIM_EVENTS make it longer (the soak: 100,000 seeds); ZBROKER_SEED is the first seed.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from tests.replication_node import Node
from tests.replication_world import World

SEEDS = int(os.environ.get("ZBROKER_SIM_SEEDS", "200"))
FIRST = int(os.environ.get("ZBROKER_SEED", "0"))
EVENTS = int(os.environ.get("ZBROKER_SIM_EVENTS", "5000"))
PARTS = 4


def world_of(seed: int, node_class: type[Node] = Node) -> World:
    """The faults of a seed: 3 to 5 copies, messages lost up to 30 %, repeated up to 50 %, zombies, power cuts."""
    rng = random.Random(seed * 7919 + 1)
    copies = rng.choice([3, 3, 4, 5])
    return World(
        seed,
        copies=copies,
        min_insync=rng.choice([2, 2, 3, 1]),
        loss=rng.choice([0.0, 0.05, 0.15, 0.3]),
        replay=rng.choice([0.0, 0.1, 0.5]),
        fault_rate=rng.choice([0.005, 0.015, 0.03]),
        has_zombies=rng.random() < 0.3,
        has_power_cuts=rng.random() < 0.3,
        node_class=node_class,
    )


def run(seed: int, events: int, node_class: type[Node] = Node) -> World:
    """One whole history; raises with the seed in its text."""
    world = world_of(seed, node_class)
    try:
        for _ in range(events):
            world.step()
        world.heal()
    except AssertionError as error:
        raise AssertionError(f"seed {seed}, event {world.events}: {error}\n{world.describe()}") from error
    return world


@pytest.mark.parametrize("part", range(PARTS))
def test_t13_every_promise_holds_after_every_event_and_all_copies_become_alike(part: int) -> None:
    seeds = range(FIRST + part, FIRST + SEEDS, PARTS)
    total: Counter[str] = Counter()
    for seed in seeds:
        world = run(seed, EVENTS)
        total.update(world.promises.counts)
        total["elections"] += world.coordinator.elections
    if len(seeds) >= 10 and EVENTS >= 5000:
        # A world in which nothing happens keeps every promise.
        assert total["elections"] >= 3 * len(seeds), total
        assert total["acks -1"] >= 15 * len(seeds), total
        assert total["cuts"] > 0, total
        assert total["lossy kills"] > 0, total


def test_t13_one_seed_gives_one_history() -> None:
    first, second = run(5, 1500), run(5, 1500)
    assert first.promises.committed == second.promises.committed
    assert first.promises.counts == second.promises.counts
    assert [node.log.items for node in first.nodes] == [node.log.items for node in second.nodes]
