"""The coordinator hands out producer ids and epochs: once, whatever dies."""

from __future__ import annotations

import pytest

from tests.cluster_asks import state_of, world_of
from tests.cluster_world import World
from zbroker.core import cluster_events as ev
from zbroker.core import effects as do
from zbroker.core.entries import ProducerIds
from zbroker.core.producer_ids import BLOCK_IDS, EPOCH_MAX, NAME_LENGTH_MAX, NAMES_MAX
from zbroker.errors import DiskFullError, InvalidRequestError, PolicyViolationError
from zbroker.wire.copy_messages import InitProducerId, ProducerId


def ask(world: World, name: str = "") -> tuple[int, int]:
    reply = world.answer(InitProducerId(name))
    assert isinstance(reply.body, ProducerId), reply
    return reply.body.producer_id, reply.body.producer_epoch


def test_every_producer_gets_an_id_of_its_own_and_a_block_is_one_entry() -> None:
    world = world_of()
    found = [ask(world) for _ in range(BLOCK_IDS + 1)]
    assert found == [(number, 0) for number in range(BLOCK_IDS + 1)]
    assert state_of(world).image.next_producer_id == 2 * BLOCK_IDS
    world.check_replay()


def test_an_id_is_on_disk_before_it_is_given_away_and_never_given_twice() -> None:
    world = world_of()
    first = [ask(world) for _ in range(3)]
    world.cut_power()
    world.start_coordinator()
    world.settle()
    assert ask(world)[0] >= max(first)[0] + 1
    world.kill_coordinator()
    world.start_coordinator()
    world.settle()
    assert ask(world)[0] == 2 * BLOCK_IDS


def test_a_name_keeps_its_id_and_fences_by_the_next_epoch_also_after_a_power_cut() -> None:
    world = world_of()
    assert ask(world, "pay") == (0, 0)
    assert ask(world, "ship") == (1, 0)
    assert ask(world, "pay") == (0, 1)
    world.cut_power()
    world.start_coordinator()
    world.settle()
    assert ask(world, "pay") == (0, 2)
    world.check_replay()


def test_a_name_that_has_used_all_epochs_gets_a_new_id() -> None:
    world = world_of()
    ask(world, "pay")
    state_of(world).image.producers["pay"] = (0, EPOCH_MAX)
    assert ask(world, "pay") == (1, 0)


def test_an_id_that_could_not_be_written_down_is_not_given_away() -> None:
    world = world_of()
    cluster = state_of(world)
    effects = cluster.handle(ev.Asked("one", InitProducerId(""), 1_000), world.now_ns)
    assert effects == [do.AppendEntries([ProducerIds(BLOCK_IDS)], True)]
    refused = cluster.handle(ev.AppendFailed(DiskFullError("full")), world.now_ns)
    assert refused[0] == do.Reply("one", None, DiskFullError.code, "full")
    assert ask(world) == (0, 0)
    assert ask(world) == (1, 0)


@pytest.mark.parametrize(("name", "error"), [("x" * (NAME_LENGTH_MAX + 1), InvalidRequestError)])
def test_a_name_that_is_too_long_is_refused(name: str, error: type[InvalidRequestError]) -> None:
    assert world_of().answer(InitProducerId(name)).error == error.code


def test_there_is_an_end_to_names() -> None:
    world = world_of()
    ask(world, "pay")
    state_of(world).image.producers.update({f"n{number}": (0, 0) for number in range(NAMES_MAX)})
    assert world.answer(InitProducerId("one more")).error == PolicyViolationError.code
    assert ask(world, "pay") == (0, 1)
