"""A worker whose disk fills, fails or turns read-only, whose descriptors run out, or that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.conditions import wait_until
from tests.scripted_worker import PROGRAM, Answer, ScriptedWorker, batch_of
from zbroker import ids
from zbroker.errors import (
    CODES,
    BrokerError,
    CoordinatorNotAvailableError,
    DiskFullError,
    LaneRefusedError,
    StaleIncarnationError,
    StorageError,
    TooManyOpenFilesError,
)
from zbroker.record.batch import batches_in, check_batch
from zbroker.record.view import RecordBatch
from zbroker.shm.board_reader import find_boards
from zbroker.wire.codec import encode
from zbroker.wire.inner_messages import Announce
from zbroker.wire.layout import Api
from zbroker.wire.messages import FetchPartition, FetchReply, FetchRequest, OpenLane

FAULTY = """
import os, sys, msgspec
import zbroker.workers.partition as module
from zbroker.config.schema import ServerConfig
from zbroker.errors import StorageError
from zbroker.storage.files import Files

def check(name, path=""):
    if os.path.exists("FLAG." + name):
        raise StorageError("injected: " + name)

class Faulty(Files):
    def fdatasync(self, fd):
        check("fdatasync")
        super().fdatasync(fd)
    def pwrite(self, fd, data, position):
        check("pwrite")
        super().pwrite(fd, data, position)
    def open(self, path, flags=os.O_RDONLY):
        if flags & (os.O_CREAT | os.O_RDWR | os.O_WRONLY):
            check("open")
        return super().open(path, flags)

module.Files = Faulty
config = msgspec.json.decode(sys.argv[1], type=ServerConfig)
sys.exit(module.main(config, int(sys.argv[2])))
"""


class Faults:
    """Switches faults of a FAULTY worker on and off."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def on(self, name: str) -> None:
        (self._directory / f"FLAG.{name}").touch()

    def off(self, name: str) -> None:
        (self._directory / f"FLAG.{name}").unlink()

    @property
    def program(self) -> str:
        return FAULTY.replace("FLAG", str(self._directory / "FLAG"))


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    return Faults(tmp_path)


def error_of(answer: Answer) -> type[BrokerError] | None:
    return CODES[answer.error] if answer.error else None


def read_all(worker: ScriptedWorker, partition: int = 0, offset: int = 0) -> list[bytes]:
    values: list[bytes] = []
    while True:
        body = encode(FetchRequest(0, 1, 1 << 20, [FetchPartition(1, partition, offset, 1 << 20)]))
        answer = worker.call(Api.FETCH, body)
        one = answer.as_(FetchReply).partitions[0]
        assert one.error == 0, CODES[one.error]
        data = answer.body[1]
        if not data:
            assert offset == one.high_watermark
            return values
        for position, header in batches_in(data):
            view = memoryview(data)[position : position + header.size_bytes]
            check_batch(view, size_bytes_max=1 << 20, records_max=10_000)
            values += [bytes(value) for value in RecordBatch("topic-1", partition, view).values()]
            offset = header.next_offset


def test_a_failed_fdatasync_ends_that_copy_and_nothing_else(faults: Faults) -> None:
    """T09, its worker: never acknowledged afterwards, never synced again, until a new grant opens the copy afresh."""
    with ScriptedWorker(program=faults.program) as worker:
        worker.grant(1, 0)
        worker.grant(1, 1)
        assert worker.produce([b"before"], acks=2).produced()[0] == 0
        faults.on("fdatasync")
        asked = [worker.ask(Api.PRODUCE, batch_of([b"lost"]), topic_id=1, acks=2) for _ in range(3)]
        assert {error_of(worker.answer(one)) for one in asked} == {StorageError}
        faults.off("fdatasync")
        for acks in (1, 2):
            assert error_of(worker.produce([b"after"], acks=acks)) is StorageError
        assert worker.produce([b"other"], partition=1, acks=2).produced()[0] == 0
        assert "offline" in worker.log
        again = worker.grant(1, 0, epoch=2).results[0]
        assert again.error == 0
        assert worker.produce([b"again"], acks=2).produced()[0] == again.log_end
        assert read_all(worker)[0] == b"before"


@pytest.mark.parametrize("fault", ["pwrite", "open"])
def test_t12_a_disk_that_cannot_be_written_gives_typed_errors_reads_go_on_and_produce_resumes(
    faults: Faults, fault: str
) -> None:
    """T12: no permission, or remounted read-only."""
    with ScriptedWorker(program=faults.program) as worker:
        worker.grant(config={"segment_bytes": "4096"})
        stored = [b"%d" % number * 300 for number in range(5)]
        for value in stored:
            worker.produce([value]).produced()
        faults.on(fault)
        refused: Callable[[], bool] = lambda: error_of(worker.produce([b"x" * 3_000])) is StorageError  # noqa: E731
        # With `open` alone the open segment still takes what fits; the next roll cannot make its file.
        accepted = 0
        while not refused():
            accepted += 1
            assert accepted < 5
        assert refused()
        assert read_all(worker)[:5] == stored
        faults.off(fault)
        worker.produce([b"resumed"]).produced()
        assert read_all(worker)[-1] == b"resumed"
        assert worker.process is not None
        assert worker.process.poll() is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.root
@pytest.mark.parametrize("free_min_bytes", [0, 2 << 20], ids=["to the last page", "with a reserve"])
def test_t10_a_full_disk_refuses_produce_serves_reads_and_resumes_by_itself(
    small_disk: Path, free_min_bytes: int
) -> None:
    """T10: three times full and free again; nothing acknowledged is lost, no reader notices."""
    config = {
        "broker": {"data_dir": str(small_disk / "data"), "run_dir": f"/dev/shm/zbt-{os.getpid()}-full"},
        "storage": {"disk_free_min_bytes": free_min_bytes},
    }
    filler = small_disk / "filler"
    acknowledged: list[bytes] = []
    with ScriptedWorker(config) as worker:
        worker.grant(config={"segment_bytes": "1048576"})
        for cycle in range(3):
            filler.write_bytes(b"f" * (10 - cycle) * (1 << 20))
            for number in range(200):
                value = b"%d-%d " % (cycle, number) * 10_000
                answer = worker.produce([value])
                if answer.error:
                    break
                acknowledged.append(value)
            assert error_of(answer) is DiskFullError
            assert read_all(worker) == acknowledged
            filler.unlink()
            began = time.monotonic()
            while (answer := worker.produce([b"after"])).error:
                assert error_of(answer) is DiskFullError
                assert time.monotonic() - began < 50, "five seconds is the aim, a slow machine may need more"
                time.sleep(0.02)
            acknowledged.append(b"after")
        assert read_all(worker) == acknowledged
        assert worker.stop() == 0
        worker.start()
        worker.grant(epoch=2)
        assert read_all(worker) == acknowledged
    for path in sorted(worker.paths.run_dir.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    worker.paths.run_dir.rmdir()


def test_t11_too_few_descriptors_are_typed_errors_and_leak_none() -> None:
    """T11: 128 descriptors, 200 segments, 50 clients."""
    with ScriptedWorker() as worker:
        worker.kill()
        worker.start(limits="ulimit -n 128")
        worker.grant(config={"segment_bytes": "4096"})
        values = [b"%03d" % number * 1_300 for number in range(200)]
        for value in values:
            worker.produce([value]).produced()
        assert len(list(worker.copy_directory(1, 0).glob("*.log"))) >= 200
        assert read_all(worker) == values
        before = len(os.listdir(f"/proc/{worker.pid}/fd"))
        lanes = []
        refused: set[type[BrokerError] | None] = set()
        for _ in range(50):
            try:
                lanes.append(worker.lane(message_bytes=4096))
            except BrokerError as error:
                refused.add(type(error))
        assert refused <= {LaneRefusedError, TooManyOpenFilesError}
        answer = worker.produce([b"x" * 3_900])
        assert error_of(answer) in (None, TooManyOpenFilesError)
        for lane in lanes:
            assert error_of(lane.produce([b"y"])) in (None, TooManyOpenFilesError)
            lane.close()
        wait_until(lambda: len(os.listdir(f"/proc/{worker.pid}/fd")) <= before + 2, what="descriptors back")
        assert read_all(worker)[:200] == values


def test_a_killed_worker_comes_back_with_every_acknowledged_record_once() -> None:
    """T18, its worker: SIGKILL at any moment of a stream of produces, over a lane and a socket."""
    with ScriptedWorker() as worker:
        acknowledged: list[bytes] = []
        for life in range(4):
            worker.grant(epoch=life + 1, config={"segment_bytes": "16384"})
            stored = read_all(worker)
            assert [value for value in stored if not value.startswith(b"sent")] == acknowledged
            assert len(set(stored)) == len(stored)
            lane = worker.lane()
            for number in range(60):
                value = b"%d-%d" % (life, number)
                (lane if number % 2 else worker).produce([value]).produced()
                acknowledged.append(value)
            for number in range(20):
                lane.send(Api.PRODUCE, batch_of([b"sent %d-%d" % (life, number) * 50]), topic_id=1, acks=1)
            worker.kill()
            lane.close()
            worker.start()
        assert "held by" not in worker.log


def test_a_clean_stop_exits_zero_and_leaves_only_the_logs() -> None:
    with ScriptedWorker() as worker:
        worker.grant()
        lane = worker.lane()
        lane.produce([b"a"]).produced()
        assert worker.stop() == 0
        lane.close()
        left = {path.name for path in worker.paths.run_dir.rglob("*") if not path.is_dir()}
        assert left == {"back.sock"}
        assert find_boards(worker.paths.boards_dir) == []
        worker.start()
        assert worker.grant(epoch=2).results[0].log_end == 1


def test_what_was_asked_before_the_stop_signal_is_answered() -> None:
    with ScriptedWorker() as worker:
        worker.grant()
        lane = worker.lane()
        os.kill(worker.pid, signal.SIGSTOP)
        asked = [lane.send(Api.PRODUCE, batch_of([b"x"]), topic_id=1, acks=2) for _ in range(10)]
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGCONT)
        assert worker.process is not None
        assert worker.process.wait(20) == 0
        answers = [lane.try_receive() for _ in asked]
        assert [answer.produced()[0] for answer in answers if answer is not None] == list(range(10))
        lane.close()


def test_t34_a_second_worker_of_the_same_name_exits_75_and_the_first_goes_on() -> None:
    """T34, its worker."""
    with ScriptedWorker() as worker:
        worker.grant()
        settings = msgspec.json.encode(worker.config).decode()
        second = subprocess.run(
            [sys.executable, "-c", PROGRAM, settings, "0"], capture_output=True, text=True, check=False, timeout=60
        )
        assert second.returncode == 75
        assert str(worker.pid) in second.stderr
        assert worker.produce([b"x"]).error == 0


def test_settings_that_cannot_be_exit_2_with_their_name(tmp_path: Path) -> None:
    settings = {"broker": {"data_dir": str(tmp_path), "run_dir": str(tmp_path / ("long" * 40))}}
    command = [sys.executable, "-c", PROGRAM, msgspec.json.encode(settings).decode(), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "--run-dir" in done.stderr


def test_a_new_router_is_greeted_at_once_and_requests_go_on() -> None:
    stand_in = subprocess.Popen(["sleep", "600"])
    try:
        with ScriptedWorker() as worker:
            worker.kill()
            worker.router_incarnation = ids.incarnation_of(stand_in.pid)
            worker.start()
            worker.grant()
            count = worker.hello_count
            stand_in.kill()
            stand_in.wait()
            worker.router_incarnation = ids.own_incarnation()
            worker.registered = None
            worker.pump_until(lambda: worker.hello_count > count and worker.registered is not None)
            assert worker.registered is not None
            held: Any = worker.registered.holding
            assert len(held) == 1
            assert worker.produce([b"x"]).error == 0
    finally:
        stand_in.kill()
        stand_in.wait()


def test_lanes_go_on_while_the_router_is_away() -> None:
    with ScriptedWorker() as worker:
        worker.grant()
        lane = worker.lane()
        worker.close_router()
        for number in range(20):
            assert lane.produce([b"x"]).produced()[0] == number
        worker.open_router()
        lane.close()


def test_a_full_dev_shm_refuses_a_lane_with_a_typed_error() -> None:
    with ScriptedWorker({"limits": {"lane_bytes_max": 64 << 20, "lane_bytes_total_max": 1 << 50}}) as worker:
        refused = worker.call(Api.OPEN_LANE, encode(OpenLane(1 << 46, 4096)))
        assert error_of(refused) is LaneRefusedError


def test_a_worker_that_another_one_has_replaced_ends() -> None:
    with ScriptedWorker() as worker:
        worker.grant()
        worker.register_error = StaleIncarnationError.code
        worker.ask(Api.ANNOUNCE, encode(Announce(1)))
        process = worker.process
        assert process is not None
        with pytest.raises(AssertionError, match="the worker ended"):
            worker.pump_until(lambda: False)
        assert process.wait(20) == 70
        assert "StaleIncarnationError" in worker.log


def test_a_registration_that_nobody_takes_is_repeated_until_somebody_does() -> None:
    with ScriptedWorker() as worker:
        worker.kill()
        worker.register_error = CoordinatorNotAvailableError.code
        worker.start()
        worker.registered = None
        worker.pump_until(lambda: worker.registered is not None)
        before = worker.log.count("INFO registered")
        worker.register_error = 0
        worker.pump_until(lambda: worker.log.count("INFO registered") > before)
        assert worker.grant().results[0].error == 0
