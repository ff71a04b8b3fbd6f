"""From a created topic to a leader on the coordinator's board, between real processes, through the death of each."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.conditions import wait_until
from zbroker import AdminClient, Consumer, NewTopic, Producer, TopicPartition, ids
from zbroker.config.schema import ServerConfig
from zbroker.core.entries import ClusterCreated, Placement, TopicConfigured, TopicCreated
from zbroker.errors import BrokerError, DiskFullError, UnknownTopicOrPartitionError
from zbroker.shm.coordinator_board import CoordinatorBoardReader, Leader
from zbroker.storage.files import Files
from zbroker.testing import Broker
from zbroker.workers.metadata_log import MetadataLog

EXIT_TEMPORARY = 75


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker(workers=2) as started:
        yield started


def leader_on_board(broker: Broker, topic: str, partition: int = 0) -> Leader | None:
    """What a consumer sees: the cell that the metadata names, on the live coordinator's board."""
    board = CoordinatorBoardReader.find(broker.paths.boards_dir)
    if board is None:
        return None
    try:
        with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
            view = admin._connection.metadata([topic], refresh=True, timeout_ms=5_000)
            info = view.topic(topic)
        found = info.partitions[partition]
        return board.leader_cell(found.coordinator_cell, info.topic_id, partition).leader()
    finally:
        board.close()


def create(broker: Broker, *topics: NewTopic) -> None:
    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        admin.create_topics(list(topics))


def values_in(broker: Broker, topic: str, partition: int = 0) -> list[object]:
    with Consumer(bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest") as consumer:
        tp = TopicPartition(topic, partition)
        consumer.assign([tp])
        end = consumer.end_offsets([tp])[tp]
        values: list[object] = []
        deadline = time.monotonic() + 20
        while len(values) < end and time.monotonic() < deadline:
            for records in consumer.poll(timeout_ms=200).values():
                values += [record.value for record in records]
        return values


def test_a_created_topic_has_a_leader_on_the_board_when_the_answer_comes(broker: Broker) -> None:
    create(broker, NewTopic("orders", num_partitions=4))
    for partition in range(4):
        leader = leader_on_board(broker, "orders", partition)
        assert leader is not None
        assert leader.number is not None
        assert leader.incarnation == ids.incarnation_of(broker.pid_of(ids.process_name(leader.number)))
        assert leader.leader_epoch == 0


def test_a_killed_worker_leads_its_partitions_again_with_the_next_epoch_and_all_its_records(broker: Broker) -> None:
    create(broker, NewTopic("orders", num_partitions=2))
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        for number in range(10):
            producer.send("orders", b"%d" % number, partition=0).result(20)
        before = leader_on_board(broker, "orders")
        assert before is not None
        assert before.number is not None
        name = ids.process_name(before.number)
        broker.wait_for_restart(name, broker.kill(name))

        def leads_again() -> Leader | None:
            now = leader_on_board(broker, "orders")
            return now if now is not None and now.incarnation not in (None, before.incarnation) else None

        after = wait_until(leads_again, what="a new leader")
        assert after is not None
        assert (after.number, after.leader_epoch) == (before.number, before.leader_epoch + 1)
        producer.send("orders", b"10", partition=0).result(20)
    assert values_in(broker, "orders") == [b"%d" % number for number in range(11)]


def test_a_killed_coordinator_comes_back_without_a_new_epoch_and_knows_every_topic(broker: Broker) -> None:
    create(broker, NewTopic("orders", num_partitions=2, config={"retention.ms": "1h"}))
    before = leader_on_board(broker, "orders")
    for _ in range(3):
        broker.wait_for_restart("coordinator", broker.kill("coordinator"))
        assert wait_until(lambda: same(broker, before), what="the same leader on the new board")
    create(broker, NewTopic("later"))
    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        assert sorted(admin.list_topics()) == ["later", "orders"]
        assert admin.describe_configs("orders")["retention.ms"] == ("3600000", "topic")


def same(broker: Broker, leader: Leader | None) -> bool:
    try:
        return leader_on_board(broker, "orders") == leader
    except BrokerError:
        return False


def test_produce_and_consume_go_on_while_there_is_no_coordinator(broker: Broker) -> None:
    create(broker, NewTopic("orders"))
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        producer.send("orders", b"0").result(20)
        broker.signal("coordinator", signal.SIGSTOP)
        try:
            for number in range(1, 20):
                producer.send("orders", b"%d" % number).result(20)
        finally:
            broker.signal("coordinator", signal.SIGCONT)
    assert len(values_in(broker, "orders")) == 20


def test_t18_after_the_death_of_all_processes_at_once_every_record_is_there(broker: Broker) -> None:
    create(broker, NewTopic("orders", num_partitions=3))
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        for number in range(30):
            producer.send("orders", b"%d" % number, partition=number % 3).result(20)
    broker.kill_all()
    broker.start()
    found = [values_in(broker, "orders", partition) for partition in range(3)]
    assert found == [[b"%d" % number for number in range(30) if number % 3 == partition] for partition in range(3)]
    boards = {name.rsplit(".", 2)[0] for name in os.listdir(broker.paths.boards_dir)}
    assert boards == {"coordinator", "router", "worker-0", "worker-1"}
    assert len(os.listdir(broker.paths.boards_dir)) == 4, "no board of a dead process is left"


def test_dead_processes_leave_no_boards_behind(broker: Broker) -> None:
    create(broker, NewTopic("orders", num_partitions=2))
    for name in ("worker-0", "worker-1", "coordinator", "worker-0"):
        broker.wait_for_restart(name, broker.kill(name))

    def boards() -> bool:
        # A process that starts has its board under another name until the header is written.
        names = [name for name in os.listdir(broker.paths.boards_dir) if name.endswith(".board")]
        return all(ids.is_alive(int(name.rsplit(".", 2)[1], 16)) for name in names)

    assert wait_until(boards, what="only live boards", timeout_s=30)


def test_a_deleted_topic_leaves_no_file_whether_its_worker_lives_or_not(broker: Broker) -> None:
    create(broker, NewTopic("here", num_partitions=2), NewTopic("fast", num_partitions=2, config={"storage": "memory"}))
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        for topic in ("here", "fast"):
            producer.send(topic, b"v").result(20)
    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        old = broker.signal("worker-1", signal.SIGSTOP)
        admin.delete_topics(["here", "fast"])
        os.kill(old, signal.SIGKILL)
        for root in (broker.paths.copies_dirs[0], broker.paths.memory_dir):
            wait_until(lambda root=root: not os.listdir(root), what=f"{root} empty")  # type: ignore[misc]
        with pytest.raises(UnknownTopicOrPartitionError):
            admin.describe_topics(["here"])


def test_files_of_a_topic_deleted_while_every_process_died_are_swept_at_the_start(broker: Broker) -> None:
    create(broker, NewTopic("orders"), NewTopic("kept"))
    broker.stop()
    leftover = broker.paths.copies_dirs[0] / "1"
    assert leftover.is_dir()
    shutil.copytree(leftover, broker.directory / "copy")
    broker.start()
    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        admin.delete_topics(["orders"])
        wait_until(lambda: not leftover.exists(), what="the copy is gone")
    broker.stop()
    shutil.copytree(broker.directory / "copy", leftover)
    broker.start()
    assert not leftover.exists()
    assert (broker.paths.copies_dirs[0] / "2").is_dir()


def run_coordinator(broker: Broker, **changes: str) -> subprocess.CompletedProcess[str]:
    """Another coordinator, for the same data directory."""
    config = msgspec.convert(msgspec.to_builtins(broker.config), ServerConfig)
    for name, value in changes.items():
        setattr(config.broker, name, value)
    program = (
        "import sys, msgspec\nfrom zbroker.config.schema import ServerConfig\n"
        "from zbroker.workers.coordinator import main\n"
        "sys.exit(main(msgspec.json.decode(sys.argv[1], type=ServerConfig)))"
    )
    command = [sys.executable, "-c", program, msgspec.json.encode(config).decode()]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_t34_a_second_coordinator_on_the_same_data_is_refused_and_the_first_goes_on(broker: Broker) -> None:
    create(broker, NewTopic("orders"))
    second = run_coordinator(broker, run_dir=str(broker.directory / "other"))
    assert second.returncode == EXIT_TEMPORARY
    assert "lock is held by process" in second.stderr
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        producer.send("orders", b"v").result(20)


def test_data_without_its_metadata_is_refused_and_left_alone(broker: Broker) -> None:
    create(broker, NewTopic("orders"))
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        producer.send("orders", b"v").result(20)
    broker.stop()
    metadata = broker.paths.metadata_dir
    metadata.rename(metadata.with_name("aside"))
    found = run_coordinator(broker)
    assert found.returncode == 70
    assert "the metadata is lost, or older than the data" in found.stderr
    shutil.rmtree(metadata)
    metadata.with_name("aside").rename(metadata)
    broker.start()
    assert values_in(broker, "orders") == [b"v"]


def test_damaged_metadata_is_refused_and_named(broker: Broker) -> None:
    create(broker, NewTopic("orders"))
    broker.stop()
    path = broker.paths.metadata_dir / "log"
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    found = run_coordinator(broker)
    assert found.returncode == 70
    assert f"{path}: damage at byte 0" in found.stderr


def test_t14_a_torn_tail_of_the_metadata_log_is_cut_with_a_log_line(broker: Broker) -> None:
    create(broker, NewTopic("orders"))
    broker.stop()
    with (broker.paths.metadata_dir / "log").open("ab") as log:
        log.write(b"\x20\x00\x00\x00half")
    broker.start()
    assert "torn tail" in broker.log
    assert "cut_bytes=8" in broker.log
    assert leader_on_board(broker, "orders") is not None


def fill_up(path: Path) -> None:
    """Write until there is no room."""
    with path.open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
        filler.writelines(itertools.repeat(b"x" * 4096))


@pytest.mark.root
def test_t10_a_full_disk_refuses_new_topics_and_takes_them_again_when_there_is_room(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for a mount")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", small], check=False)
    if mounted.returncode:
        pytest.skip("no mounts here")
    try:
        config = {"broker": {"data_dir": str(small / "data")}, "storage": {"disk_free_min_bytes": 0}}
        with Broker(workers=1, config=config) as broker:
            create(broker, NewTopic("before"))
            pid = broker.pid_of("coordinator")
            filler = small / "filler"
            fill_up(filler)
            big = [NewTopic(f"t{number}", num_partitions=500) for number in range(2)]
            with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
                with pytest.raises(DiskFullError):
                    admin.create_topics(big)
                assert sorted(admin.list_topics()) == ["before"]
                filler.unlink()
                admin.create_topics([NewTopic("after")])
                assert sorted(admin.list_topics()) == ["after", "before"]
            assert broker.pid_of("coordinator") == pid, "it never ended"
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_a_long_metadata_log_is_written_anew_and_says_the_same(tmp_path: Path) -> None:
    broker = Broker(workers=1, directory=tmp_path)
    broker.paths.metadata_dir.mkdir(parents=True)
    log = MetadataLog.open(broker.paths.metadata_dir, Files())
    created = TopicCreated(4, "orders", {}, [Placement(0, 9, "data", ids.worker_number(0))])
    changes = [TopicConfigured(4, {"retention.ms": str(number)}) for number in range(12_000)]
    log.append([ClusterCreated("the-id"), created, *changes], durable=True)
    log.close()
    size_bytes = log.size_bytes
    with broker:
        path = broker.paths.metadata_dir / "log"
        wait_until(lambda: path.stat().st_size < size_bytes // 100, what="a short log")
        create(broker, NewTopic("next"))
        broker.restart()
        with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
            assert admin.describe_configs("orders")["retention.ms"] == ("11999", "topic")
            topics = admin.describe_topics(["orders", "next"])
        assert (topics["orders"].topic_id, topics["next"].topic_id) == (4, 5)
        assert topics["next"].partitions[0].replicas == [10]


def test_a_thousand_partitions_are_created_in_one_call(broker: Broker) -> None:
    create(broker, NewTopic("many", num_partitions=1_000))
    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        (topic,) = admin.describe_topics(["many"]).values()
    assert len(topic.partitions) == 1_000
    loads = {name: sum(one.leader_name == name for one in topic.partitions) for name in ("worker-0", "worker-1")}
    assert loads == {"worker-0": 500, "worker-1": 500}


def test_a_moved_data_directory_is_served_from_where_it_is_now(broker: Broker) -> None:
    create(broker, NewTopic("orders"))
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        producer.send("orders", b"v").result(20)
    broker.stop()
    moved = broker.directory / "moved"
    Path(broker.config.broker.data_dir).rename(moved)
    with Broker(workers=1, config={"broker": {"data_dir": str(moved)}}) as second:
        assert values_in(second, "orders") == [b"v"]
        assert not Path(broker.config.broker.data_dir).exists()
    moved.rename(broker.config.broker.data_dir)
