"""What is refused when topics are created or changed, and that it is refused as a whole."""

from __future__ import annotations

import random
import string
from typing import Any

import pytest

from tests.cluster_model import PARTITIONS_MAX
from tests.cluster_world import World
from zbroker import ids
from zbroker.config.schema import ServerConfig
from zbroker.core import effects as do
from zbroker.core import topic_changes
from zbroker.errors import (
    CODES,
    InvalidConfigurationError,
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    PolicyViolationError,
    ThrottlingQuotaExceededError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from zbroker.wire.messages import (
    AlterConfigs,
    CreatePartitions,
    CreateTopics,
    DeleteTopics,
    DescribeConfigs,
    NewTopicSpec,
    TopicResult,
    TopicResults,
)

SPEC = NewTopicSpec("orders", 1, -1, {})


@pytest.fixture
def world() -> World:
    config = ServerConfig()
    config.limits.topics_max = 5
    config.limits.partitions_per_topic_max = 300
    made = World(workers=2, config=config)
    for index in range(2):
        made.start_worker(ids.worker_number(index))
    made.settle()
    return made


def results(world: World, *specs: NewTopicSpec, validate_only: bool = False) -> list[TopicResult]:
    body = world.answer(CreateTopics(list(specs), validate_only)).body
    assert isinstance(body, TopicResults)
    return body.topics


def durable_appends(world: World) -> int:
    return sum(isinstance(effect, do.AppendEntries) and effect.durable for effect in world.effects)


def refused(world: World, **changes: Any) -> tuple[type[Exception], str]:
    """Why a topic is refused, and that nothing else has happened."""
    before = len(world.log)
    spec = NewTopicSpec(**{"name": "orders", "num_partitions": 1, "replication_factor": -1, "config": {}, **changes})
    (result,) = results(world, spec)
    assert result.error, f"{changes} is accepted"
    assert len(world.log) == before
    return CODES[result.error], result.message


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"name": "a/b"}, InvalidTopicError, "'a/b' is not a topic name"),
        ({"name": ".."}, InvalidTopicError, "not a topic name"),
        ({"name": "x" * 250}, InvalidTopicError, "not a topic name"),
        ({"num_partitions": 0}, InvalidPartitionsError, "from 1 to 300"),
        ({"num_partitions": -2}, InvalidPartitionsError, "from 1 to 300"),
        ({"num_partitions": 301}, InvalidPartitionsError, "from 1 to 300"),
        ({"replication_factor": 0}, InvalidReplicationFactorError, "at least 1"),
        ({"replication_factor": 9}, InvalidReplicationFactorError, "processes can have a copy each"),
        ({"config": {"min.insync.replicas": "2"}}, InvalidConfigurationError, "above the replication factor 1"),
        ({"config": {"retension.ms": "5"}}, InvalidConfigurationError, "did you mean 'retention.ms'?"),
        ({"config": {"retention.ms": "soon"}}, InvalidConfigurationError, "retention.ms"),
        ({"config": {"retention.ms": "-5"}}, InvalidConfigurationError, "retention.ms"),
        ({"config": {"max.message.bytes": "8MiB"}}, InvalidConfigurationError, "above the broker's"),
        ({"config": {"segment.bytes": "4096"}}, InvalidConfigurationError, "no batch would fit"),
        ({"config": {"cleanup.policy": "compress"}}, InvalidConfigurationError, "cleanup.policy"),
    ],
)
def test_a_topic_is_refused_with_the_reason(
    world: World, changes: dict[str, Any], kind: type[Exception], words: str
) -> None:
    found, message = refused(world, **changes)
    assert found is kind
    assert words in message


def test_one_refused_topic_does_not_keep_the_others_and_they_are_one_append(world: World) -> None:
    before = durable_appends(world)
    found = results(world, SPEC, NewTopicSpec("a b", 1, -1, {}), SPEC, NewTopicSpec("other", 2, -1, {}))
    assert [result.error for result in found] == [0, InvalidTopicError.code, TopicAlreadyExistsError.code, 0]
    assert [result.topic_id for result in found] == [1, 0, 0, 2]
    after = durable_appends(world)
    assert after == before + 1


def test_validating_creates_nothing_and_finds_what_creating_would(world: World) -> None:
    before = len(world.log)
    found = results(world, SPEC, SPEC, NewTopicSpec("a b", 1, -1, {}), validate_only=True)
    assert [result.error for result in found] == [0, TopicAlreadyExistsError.code, InvalidTopicError.code]
    assert len(world.log) == before


def test_names_that_differ_by_dot_and_underscore_only_do_not_exist_together(world: World) -> None:
    found = results(world, NewTopicSpec("a.b", 1, -1, {}), NewTopicSpec("a_b", 1, -1, {}))
    assert [result.error for result in found] == [0, TopicAlreadyExistsError.code]
    world.answer(DeleteTopics(["a.b"]))
    assert results(world, NewTopicSpec("a_b", 1, -1, {}))[0].error == 0


def test_topics_are_counted_within_a_request_and_over_all(world: World) -> None:
    found = results(world, *[NewTopicSpec(f"t{number}", 1, -1, {}) for number in range(7)])
    assert [result.error for result in found] == [0] * 5 + [PolicyViolationError.code] * 2


def test_partitions_are_counted_over_all(world: World) -> None:
    found = results(world, *[NewTopicSpec(f"t{number}", 200, -1, {}) for number in range(3)])
    assert [result.error for result in found] == [0, 0, PolicyViolationError.code]
    assert str(PARTITIONS_MAX) in found[2].message
    reply = world.answer(CreatePartitions("t0", 300))
    assert reply.error == 0
    assert world.answer(CreatePartitions("t1", 300)).error == PolicyViolationError.code


def test_a_process_is_given_no_more_than_it_may_lead(world: World) -> None:
    world.config.limits.partitions_per_process_max = 10
    assert refused(world, num_partitions=21)[0] is PolicyViolationError
    assert results(world, NewTopicSpec("all", 20, -1, {}))[0].error == 0
    assert "partitions" in refused(world)[1]


def test_a_worker_for_each_partition_has_its_limit_too() -> None:
    world = World(workers=0)
    assert refused(world, num_partitions=51)[0] is PolicyViolationError


@pytest.mark.parametrize("total", [1, 2, 301, -1])
def test_partitions_only_grow_and_not_without_bound(world: World, total: int) -> None:
    results(world, NewTopicSpec("orders", 2, -1, {}))
    assert world.answer(CreatePartitions("orders", total)).error == InvalidPartitionsError.code


def test_a_topic_that_does_not_exist_is_not_changed_described_or_deleted(world: World) -> None:
    for body in (CreatePartitions("no", 3), AlterConfigs("no", {}, []), DescribeConfigs("no")):
        assert world.answer(body).error == UnknownTopicOrPartitionError.code
    answer = world.answer(DeleteTopics(["no", "n/o", "no"])).body
    assert isinstance(answer, TopicResults)
    assert [result.error for result in answer.topics] == [UnknownTopicOrPartitionError.code, InvalidTopicError.code]


def test_a_setting_that_is_unknown_is_not_unset_and_storage_never_changes(world: World) -> None:
    results(world, SPEC)
    reply = world.answer(AlterConfigs("orders", {}, ["retension.ms"]))
    assert reply.error == InvalidConfigurationError.code
    assert "did you mean 'retention.ms'?" in reply.text
    assert world.answer(AlterConfigs("orders", {"storage": "memory"}, [])).error == PolicyViolationError.code


def test_a_factor_is_refused_from_the_number_of_workers_and_replicas_on() -> None:
    config = ServerConfig()
    config.replicas.count = 2
    world = World(workers=2, config=config)
    for number in (*map(ids.worker_number, range(2)), *map(ids.replica_number, range(2))):
        world.start_worker(number)
    world.settle()
    kind, message = refused(world, replication_factor=5)
    assert kind is InvalidReplicationFactorError
    assert "replication factor 5, and 4 processes" in message
    (made,) = results(world, NewTopicSpec("four", 3, 4, {"min.insync.replicas": "4"}))
    assert made.error == 0, made.message
    assert world.cluster is not None
    for partition in world.cluster.image.topics[made.topic_id].partitions:
        assert len({copy.owner for copy in partition.copies}) == 4
        assert partition.owner in (ids.worker_number(0), ids.worker_number(1))


def test_requests_that_wait_for_leaders_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_changes, "WAITING_MAX", 3)
    world = World(workers=1)
    for number in range(3):
        world.ask(CreateTopics([NewTopicSpec(f"t{number}", 1, -1, {})], False))
    before = len(world.log)
    number = world.ask(CreateTopics([SPEC], False))
    assert world.answers[number][0].error == ThrottlingQuotaExceededError.code
    assert len(world.log) == before


ALPHABET = string.ascii_letters + string.digits + "._-" + "/\\\0 \n:*~%é漢\u202e\ud800'\"$"
NASTY = ["", ".", "..", "../x", "/etc/passwd", "a\0b", "CON", "x" * 249, "x" * 250, "a/../../b", "%2e%2e", "-", "_"]


def test_t45_no_name_becomes_a_path_and_the_valid_ones_are_those_of_the_rule() -> None:
    """10,000 names: what is accepted matches the rule, and every directory is made of numbers under the roots."""
    config = ServerConfig()
    world = World(workers=1, config=config)
    world.start_worker(ids.worker_number(0))
    world.settle()
    seed = random.randrange(1 << 32)
    source = random.Random(seed)
    legal = frozenset(string.ascii_letters + string.digits + "._-")
    names = NASTY + ["".join(source.choices(ALPHABET, k=source.randint(0, 12))) for _ in range(10_000)]
    for name in names:
        is_legal = 1 <= len(name) <= 249 and set(name) <= legal and name not in (".", "..")
        (result,) = results(world, NewTopicSpec(name, 1, -1, {}))
        if not is_legal:
            assert result.error == InvalidTopicError.code, f"seed {seed}: {name!r}"
            continue
        assert result.error in (0, TopicAlreadyExistsError.code), f"seed {seed}: {name!r}: {result.message}"
        if result.error == 0:
            assert world.cluster is not None
            (partition,) = world.cluster.image.topics[result.topic_id].partitions
            directory = world.cluster.state.directory_of(partition, partition.copies[0])
            assert directory == f"/data/copies/{partition.copy_id}/t{result.topic_id:08x}-0"
            world.answer(DeleteTopics([name]))
