"""Workers for each partition, workers that share, topics in memory, several data directories: all by real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conditions import wait_until
from zbroker.client.admin import AdminClient, NewTopic, TopicDescription
from zbroker.client.producer import Producer
from zbroker.config.schema import DataDir
from zbroker.errors import InvalidReplicationFactorError, PolicyViolationError
from zbroker.ids import TopicPartition
from zbroker.testing import Broker


def describe(broker: Broker, name: str) -> TopicDescription:
    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        return admin.describe_topics([name])[name]


def send_to_each(broker: Broker, name: str, partitions: int) -> list[int]:
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        return [producer.send(name, b"x", partition=number).result(20).offset for number in range(partitions)]


def workers_of(broker: Broker) -> set[str]:
    return {name for name in broker.process_names() if name.startswith("worker")}


def test_each_partition_has_a_process_of_its_own_that_comes_and_goes_with_it() -> None:
    with Broker(workers="per-partition") as broker, AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        assert workers_of(broker) == set(), "no partition, no worker"
        admin.create_topics([NewTopic("a", 2), NewTopic("b", 1)])
        found = [p for name in ("a", "b") for p in describe(broker, name).partitions]
        assert len({p.leader_pid for p in found}) == 3
        assert workers_of(broker) == {p.leader_name for p in found}
        assert send_to_each(broker, "a", 2) == [0, 0]
        admin.create_partitions({"a": 4})
        assert len(workers_of(broker)) == 5
        assert send_to_each(broker, "a", 4) == [1, 1, 0, 0]
        old = found[0]
        assert old.leader_name is not None
        assert old.leader_pid is not None
        broker.kill(old.leader_name)
        assert send_to_each(broker, "a", 4) == [2, 2, 1, 1]
        assert broker.pid_of(old.leader_name) != old.leader_pid
        admin.delete_topics(["a"])
        wait_until(lambda: len(workers_of(broker)) == 1, what="the workers of the deleted topic to end")
        assert send_to_each(broker, "b", 1) == [0]


def test_partitions_are_spread_evenly_over_the_workers() -> None:
    with Broker(workers=3) as broker, AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        admin.create_topics([NewTopic(f"t{n}", 3) for n in range(4)])
        for n in range(4):
            assert len({p.leader_name for p in describe(broker, f"t{n}").partitions}) == 3


def test_a_topic_in_memory_survives_a_killed_worker_and_not_a_stop() -> None:
    with Broker(workers=1) as broker:
        with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
            admin.create_topics([NewTopic("fast", 1, config={"storage": "memory"})])
            where = Path(describe(broker, "fast").partitions[0].directory)
            assert where.is_relative_to(broker.paths.memory_dir)
            assert send_to_each(broker, "fast", 1) == [0]
            broker.kill("worker-0")
            assert send_to_each(broker, "fast", 1) == [1]
            with pytest.raises(PolicyViolationError, match="storage"):
                admin.alter_configs("fast", {"storage": "disk"})
        broker.stop()
        assert not where.exists()
        broker.start()
        assert send_to_each(broker, "fast", 1) == [0], "the topic is there again, empty"


def test_new_copies_go_to_the_data_directory_with_the_fewest(tmp_path: Path) -> None:
    broker = Broker(workers=1)
    broker.config.data_dirs.append(DataDir(path=str(tmp_path / "second")))
    with broker:
        with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
            admin.create_topics([NewTopic("wide", 4)])
            used = [len(found) for found in admin.describe_log_dirs().values()]
        assert used == [2, 2]


def test_records_before_an_offset_can_be_deleted() -> None:
    with Broker(workers=1) as broker:
        with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
            admin.create_topics([NewTopic("short", 1)])
            for _ in range(5):
                send_to_each(broker, "short", 1)
            tp = TopicPartition("short", 0)
            assert admin.delete_records({tp: 3}) == {tp: 3}
            assert admin.list_offsets({tp: "earliest"})[tp].offset == 3
        broker.kill_all()
        broker.start()
        assert describe(broker, "short").partitions[0].log_start == 3
        assert describe(broker, "short").partitions[0].high_watermark == 5


def test_a_factor_above_the_number_of_processes_is_refused() -> None:
    with Broker(workers=2) as broker, AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        with pytest.raises(InvalidReplicationFactorError, match="2 processes"):
            admin.create_topics([NewTopic("safe", 1, 3)])
        assert admin.list_topics() == []
