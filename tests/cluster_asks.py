"""What tests ask of a coordinator in a modelled world, in one line each."""

from __future__ import annotations

from typing import TypeVar

from tests.cluster_world import World
from zbroker import ids
from zbroker.config.schema import ServerConfig
from zbroker.core import effects as do
from zbroker.core.cluster import Cluster
from zbroker.wire.messages import CreateTopics, MetadataReply, MetadataRequest, NewTopicSpec, TopicResults

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
