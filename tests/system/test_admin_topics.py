"""The admin client against real processes: topics, their settings, records and the broker's processes."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conditions import wait_until
from tests.consuming import WAYS, broker_with_tcp, fill, numbers, settings_for
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.producer import Producer
from zbroker.errors import (
    BrokerNotAvailableError,
    ClosedError,
    ConfigError,
    InvalidConfigurationError,
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    LeaderNotAvailableError,
    MessageSizeTooLargeError,
    OffsetOutOfRangeError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from zbroker.ids import TopicPartition
from zbroker.testing import Broker


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(workers=2)
    with broker:
        yield broker, address


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, served: tuple[Broker, str]) -> dict[str, Any]:
    return settings_for(request.param, *served)


@pytest.fixture
def admin(way: dict[str, Any]) -> Iterator[AdminClient]:
    with AdminClient(way) as made:
        yield made


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    return re.sub(r"[^a-zA-Z0-9]", "-", request.node.name)


def test_a_created_topic_has_its_partitions_leaders_and_settings(admin: AdminClient, topic: str) -> None:
    made = admin.create_topics([NewTopic(topic, 3, 1, {"retention.ms": "1h", "segment_bytes": 2_000_000})])
    found = made[topic]
    assert [one.partition for one in found.partitions] == [0, 1, 2]
    assert {one.leader_name for one in found.partitions} <= {"worker-0", "worker-1"}
    assert all(one.leader_pid and one.log_start == 0 and one.high_watermark == 0 for one in found.partitions)
    assert found.config == {"retention.ms": "3600000", "segment.bytes": "2000000"}
    assert topic in admin.list_topics()
    assert admin.describe_topics([topic])[topic].topic_id == found.topic_id


def test_a_name_alone_takes_the_brokers_defaults(admin: AdminClient, topic: str) -> None:
    assert len(admin.create_topics([topic])[topic].partitions) == 1


@pytest.mark.parametrize(
    ("new", "error"),
    [
        (NewTopic("bad name"), InvalidTopicError),
        (NewTopic("t", 0), InvalidPartitionsError),
        (NewTopic("t", 10_001), InvalidPartitionsError),
        (NewTopic("t", 1, 9), InvalidReplicationFactorError),
        (NewTopic("t", 1, config={"retention.msec": 1}), InvalidConfigurationError),
        (NewTopic("t", 1, config={"segment.bytes": 1}), InvalidConfigurationError),
    ],
)
def test_what_cannot_be_created_is_a_typed_error(admin: AdminClient, new: NewTopic, error: type[Exception]) -> None:
    with pytest.raises(error):
        admin.create_topics([new])
    assert new.name not in admin.list_topics()


def test_creating_twice_is_an_error_or_a_result(admin: AdminClient, topic: str) -> None:
    admin.create_topics([topic])
    with pytest.raises(TopicAlreadyExistsError, match=topic):
        admin.create_topics([topic])
    both = admin.create_topics([topic, topic + "-2"], raise_errors=False)
    assert "exists already" in both[topic].error
    assert both[topic + "-2"].error == ""


def test_names_that_differ_by_dot_and_underscore_collide(admin: AdminClient, topic: str) -> None:
    admin.create_topics([topic + ".a"])
    with pytest.raises(TopicAlreadyExistsError, match="count as the same"):
        admin.create_topics([topic + "_a"])


def test_validating_creates_nothing(admin: AdminClient, topic: str) -> None:
    assert admin.create_topics([topic], validate_only=True) == {}
    assert topic not in admin.list_topics()
    with pytest.raises(InvalidPartitionsError):
        admin.create_topics([NewTopic(topic, -7)], validate_only=True)


def test_a_deleted_topic_is_gone_with_its_files(admin: AdminClient, way: dict[str, Any], topic: str) -> None:
    directory = admin.create_topics([topic])[topic].partitions[0].directory
    fill(way, topic, numbers(10))
    assert os.path.isdir(directory)
    assert admin.delete_topics([topic]) == {topic: ""}
    assert topic not in admin.list_topics()
    wait_until(lambda: not os.path.exists(directory), what="the end of the files")
    with pytest.raises(UnknownTopicOrPartitionError):
        admin.delete_topics([topic])
    assert "does not exist" in admin.delete_topics([topic], raise_errors=False)[topic]
    with pytest.raises(UnknownTopicOrPartitionError):
        admin.describe_topics([topic])
    assert "does not exist" in admin.describe_topics([topic], raise_errors=False)[topic].error


def test_partitions_can_be_added_and_never_taken(admin: AdminClient, way: dict[str, Any], topic: str) -> None:
    admin.create_topics([NewTopic(topic, 2)])
    admin.create_partitions({topic: 4})
    assert len(admin.describe_topics([topic])[topic].partitions) == 4
    fill(way, topic, numbers(3), partition=3)
    for total in (4, 1, 20_000):
        with pytest.raises(InvalidPartitionsError):
            admin.create_partitions({topic: total})
    with pytest.raises(UnknownTopicOrPartitionError):
        admin.create_partitions({"absent": 2})


def test_settings_can_be_read_changed_and_put_back(admin: AdminClient, way: dict[str, Any], topic: str) -> None:
    admin.create_topics([topic])
    assert admin.describe_configs(topic)["max.message.bytes"] == ("1048576", "default")
    admin.alter_configs(topic, {"max.message.bytes": "2KiB", "retention_ms": 1000})
    found = admin.describe_configs(topic)
    assert found["max.message.bytes"] == ("2048", "topic")
    assert found["retention.ms"] == ("1000", "topic")

    def is_refused() -> bool:
        with Producer(way) as producer:
            try:
                producer.send(topic, os.urandom(3000)).result(20)
            except MessageSizeTooLargeError:
                return True
        return False

    wait_until(is_refused, what="the new limit")
    admin.alter_configs(topic, unset=["max.message.bytes"])
    assert admin.describe_configs(topic)["max.message.bytes"] == ("1048576", "default")
    with pytest.raises(InvalidConfigurationError, match=r"did you mean 'retention\.ms'"):
        admin.alter_configs(topic, {"retention.msec": 1})
    with pytest.raises(UnknownTopicOrPartitionError):
        admin.describe_configs("absent")


def test_records_before_an_offset_can_be_deleted(admin: AdminClient, way: dict[str, Any], topic: str) -> None:
    admin.create_topics([topic])
    tp = TopicPartition(topic, 0)
    fill(way, topic, numbers(30))
    assert admin.delete_records({tp: 12}) == {tp: 12}
    assert admin.delete_records({tp: 5}) == {tp: 12}
    offsets = {what: admin.list_offsets({tp: what})[tp].offset for what in ("earliest", "latest", "end")}
    assert offsets == {"earliest": 12, "latest": 30, "end": 30}
    with pytest.raises(OffsetOutOfRangeError):
        admin.delete_records({tp: 31})
    assert admin.delete_records({(topic, 0): -1}) == {tp: 30}
    assert admin.list_offsets({(topic, 0): 0})[tp].offset == -1
    with pytest.raises(UnknownTopicOrPartitionError):
        admin.delete_records({TopicPartition(topic, 1): 0})


def test_the_cluster_its_processes_and_directories_are_described(
    admin: AdminClient, way: dict[str, Any], topic: str, served: tuple[Broker, str]
) -> None:
    admin.create_topics([NewTopic(topic, 2)])
    fill(way, topic, numbers(10))
    cluster = admin.describe_cluster()
    assert cluster.cluster_id
    assert cluster.software.startswith("zbroker ")
    assert cluster.topic_count == len(admin.list_topics(include_internal=True))
    names = {process.name for process in admin.describe_processes()}
    assert {"worker-0", "worker-1"} <= names
    logs = admin.describe_log_dirs()
    sizes = {tp: size for found in logs.values() for tp, size in found.items() if tp.topic == topic}
    assert set(sizes) == {TopicPartition(topic, 0), TopicPartition(topic, 1)}
    assert all(directory.startswith(str(served[0].paths.data_dir)) for directory in logs)


def test_waiting_for_topics_ends_when_they_are_there_or_the_time_is_over(admin: AdminClient, topic: str) -> None:
    with pytest.raises((UnknownTopicOrPartitionError, LeaderNotAvailableError)):
        admin.wait_for_topics([topic], timeout_ms=100)
    admin.create_topics([topic])
    admin.wait_for_topics([topic])


def test_internal_topics_are_listed_only_when_asked_for(admin: AdminClient, topic: str) -> None:
    name = "__" + topic
    admin.create_topics([name])
    assert name not in admin.list_topics()
    assert name in admin.list_topics(include_internal=True)


def test_misuse_has_typed_errors(way: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="'client_id'"):
        AdminClient(way, cleint_id="x")
    with pytest.raises(BrokerNotAvailableError):
        AdminClient(bootstrap_servers="ipc:///nonexistent-zbroker")
    admin = AdminClient(way)
    with pytest.raises(TypeError, match="one per process"):
        pickle.dumps(admin)
    admin.close()
    admin.close()
    with pytest.raises(ClosedError):
        admin.list_topics()
