"""The supervisor with roles that only sleep, crash or refuse: real forks, real signals, real pidfds."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conditions import wait_until
from zbroker.config.paths import make_directories, paths_for
from zbroker.config.schema import BrokerSection, ServerConfig
from zbroker.errors import DirectoryLockedError
from zbroker.shm.lockfile import LockFile, is_held
from zbroker.testing import broker as testing_broker
from zbroker.workers.supervisor import check_data_lock

ROLES = """
import os, signal, sys, time
from pathlib import Path
from zbroker import ids
from zbroker.config.paths import paths_for
from zbroker.config.schema import ServerConfig
import msgspec
from zbroker.shm.board import BoardWriter
from zbroker.shm.coordinator_board import CoordinatorBoardWriter
from zbroker.shm.lockfile import LockFile
from zbroker.workers import supervisor

config = msgspec.json.decode(sys.argv[1], type=ServerConfig)


def say(*words):
    # One write: the processes share the log.
    os.write(2, (" ".join(words) + "\\n").encode())


def role(config, number, reload):
    name, paths = ids.process_name(number), paths_for(config)
    script = paths.data_dir / name
    told = script.read_text() if script.exists() else ""
    if told.startswith("exit"):
        return int(told.split()[1])
    if told == "raise":
        raise RuntimeError("a role that raises")
    lock = LockFile.take(paths.lock(name))
    if told != "stubborn":
        signal.signal(signal.SIGTERM, lambda *_: stop())
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, lambda *_: say("hup", name))
    if number == ids.COORDINATOR:
        board = CoordinatorBoardWriter.create(paths.boards_dir, ids.own_incarnation(), cells=4)
        board.set_wanted([ids.worker_number(1), ids.worker_number(3)])
        board.set_ready()
    else:
        board = BoardWriter.create(paths.boards_dir, number, ids.own_incarnation(), cells=1)
    print("this goes to stderr\\n", end="", flush=True)

    def stop():
        say("stopped", name)
        sys.exit(0)

    say("up", name)
    while True:
        time.sleep(60)


sys.exit(supervisor.main(config, role=role, reload=lambda: config))
"""


class Supervised:
    """A supervisor with scripted roles, in a directory of its own."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="zbt-sup-", dir="/dev/shm"))
        self.data_dir = self.directory / "data"
        self.run_dir = self.directory / "run"
        self.data_dir.mkdir()
        self.log_path = self.directory / "log"
        self.settings = f"""{{"broker": {{"data_dir": "{self.data_dir}", "run_dir": "{self.run_dir}"}},
            "workers": {{"count": 2}}, "supervisor": {{"restart_backoff_ms": 1, "restart_backoff_max_ms": 4,
            "stop_timeout_ms": 2000}}}}"""
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *, wait: bool = True, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", ROLES, self.settings],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **(environment or {})},
            )
        self.processes.append(process)
        if wait:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], 30)[0], self.log
            assert process.stdout.readline() == f"zbroker ready ipc://{self.run_dir}\n", self.log
        return process

    def tell(self, name: str, words: str) -> None:
        (self.data_dir / name).write_text(words)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def children(self, process: subprocess.Popen[str]) -> dict[str, int]:
        found = {}
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            try:
                found[Path(f"/proc/{pid}/comm").read_text().strip().removeprefix("zb-")] = int(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    def wait_for_log(self, words: str, count: int = 1) -> None:
        wait_until(lambda: self.log.count(words) >= count, what=f"{words!r} in the log")

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        shutil.rmtree(self.directory)


@pytest.fixture
def supervised() -> Iterator[Supervised]:
    made = Supervised()
    yield made
    made.close()


def gone(pid: int) -> Callable[[], bool]:
    return lambda: not testing_broker._is_alive(pid)


def test_every_process_starts_and_one_line_is_printed(supervised: Supervised) -> None:
    process = supervised.start()
    supervised.wait_for_log("up ", 4)
    assert set(supervised.children(process)) == {"router", "coordinator", "worker-0", "worker-1"}
    process.terminate()
    output, _ = process.communicate(timeout=20)
    assert output == "", "the ready line was the only one"
    assert process.returncode == 0
    assert supervised.log.count("this goes to stderr") == 4


def test_a_stop_goes_in_order_and_leaves_nothing(supervised: Supervised) -> None:
    process = supervised.start()
    supervised.wait_for_log("up ", 4)
    memory = supervised.run_dir / "memory" / "7"
    memory.mkdir(parents=True)
    (memory / "00000000000000000000.log").write_bytes(b"x")
    pids = supervised.children(process).values()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert all(gone(pid)() for pid in pids)
    stopped = re.findall(r"^stopped (\S+)$", supervised.log, re.MULTILINE)
    assert sorted(stopped[:2]) == ["worker-0", "worker-1"]
    assert stopped[2:] == ["coordinator", "router"]
    assert list(supervised.run_dir.iterdir()) == [], "a run directory given by hand stays, empty"


def test_killed_process_is_back_and_the_others_are_left_alone(supervised: Supervised) -> None:
    process = supervised.start()
    supervised.wait_for_log("up ", 4)
    before = supervised.children(process)
    os.kill(before["worker-1"], signal.SIGKILL)
    supervised.wait_for_log("up worker-1", 2)
    after = supervised.children(process)
    assert after["worker-1"] != before["worker-1"]
    del before["worker-1"], after["worker-1"]
    assert after == before
    assert "worker-1" in supervised.log
    assert "SIGKILL" in supervised.log


def test_a_child_holds_no_descriptor_and_no_lock_of_the_supervisor(supervised: Supervised) -> None:
    process = supervised.start()
    supervised.wait_for_log("up ", 4)
    for name, pid in supervised.children(process).items():
        open_files = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert not [path for path in open_files if "lock-supervisor" in path or "pidfd" in path], open_files
        assert os.getpgid(pid) == pid, f"{name} would get the Ctrl-C of the supervisor's terminal"
    process.kill()
    process.wait()
    assert not is_held(supervised.run_dir / "lock-supervisor")


def test_killing_the_supervisor_kills_every_child_and_the_next_start_sweeps(supervised: Supervised) -> None:
    process = supervised.start()
    supervised.wait_for_log("up ", 4)
    pids = list(supervised.children(process).values())
    process.kill()
    process.wait()
    for pid in pids:
        wait_until(gone(pid), what="the death of an orphan")
    assert len(list((supervised.run_dir / "boards").iterdir())) == 4
    second = supervised.start()
    supervised.wait_for_log("up ", 8)
    assert "left by a dead process" in supervised.log
    assert len(list((supervised.run_dir / "boards").iterdir())) == 4
    second.terminate()
    assert second.wait(20) == 0


def test_a_second_supervisor_is_refused_with_the_pid_of_the_first(supervised: Supervised) -> None:
    first = supervised.start()
    second = supervised.start(wait=False)
    assert second.wait(20) == 75
    assert f"process {first.pid}" in supervised.log
    assert first.poll() is None


def test_a_role_that_ignores_the_stop_is_killed_in_time(supervised: Supervised) -> None:
    supervised.tell("worker-0", "stubborn")
    process = supervised.start()
    supervised.wait_for_log("up ", 4)
    began = time.monotonic()
    process.terminate()
    assert process.wait(20) == 0
    assert time.monotonic() - began >= 1.0, "its share of two seconds was given"
    assert "did not stop in time" in supervised.log
    assert "stopped router" in supervised.log


def test_a_second_signal_stops_fast(supervised: Supervised) -> None:
    supervised.settings = supervised.settings.replace('"stop_timeout_ms": 2000', '"stop_timeout_ms": 600000')
    supervised.tell("worker-0", "stubborn")
    process = supervised.start()
    supervised.wait_for_log("up ", 4)
    process.terminate()
    supervised.wait_for_log("stopped worker-1")
    assert process.poll() is None
    process.terminate()
    assert process.wait(20) == 0


@pytest.mark.parametrize(("words", "exit_code"), [("exit 70", 70), ("raise", 70), ("exit 2", 2), ("exit 75", 75)])
def test_a_router_that_cannot_run_ends_the_broker_with_its_reason(
    supervised: Supervised, words: str, exit_code: int
) -> None:
    supervised.tell("router", words)
    process = supervised.start(wait=False)
    assert process.wait(30) == exit_code
    assert "router is given up" in supervised.log
    assert ("a role that raises" in supervised.log) == (words == "raise")


def test_a_worker_that_cannot_run_is_given_up_alone_and_tried_again_at_sighup(supervised: Supervised) -> None:
    supervised.tell("worker-0", "exit 70")
    process = supervised.start()
    for name in ("router", "coordinator", "worker-1"):
        supervised.wait_for_log(f"up {name}")
    supervised.wait_for_log("worker-0 is given up")
    assert "worker-0" not in supervised.children(process)
    supervised.tell("worker-0", "")
    process.send_signal(signal.SIGHUP)
    supervised.wait_for_log("up worker-0")
    supervised.wait_for_log("hup worker-1")
    supervised.wait_for_log("hup coordinator")


def test_with_a_process_for_each_partition_the_coordinators_board_says_which(supervised: Supervised) -> None:
    supervised.settings = supervised.settings.replace('"count": 2', '"count": "per-partition"')
    process = supervised.start()
    for name in ("worker-1", "worker-3"):
        supervised.wait_for_log(f"up {name}")
    assert set(supervised.children(process)) == {"router", "coordinator", "worker-1", "worker-3"}


def test_the_service_manager_hears_when_the_broker_is_ready_and_when_it_stops(supervised: Supervised) -> None:
    address = str(supervised.directory / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(20)
        process = supervised.start(environment={"NOTIFY_SOCKET": address})
        assert manager.recv(100) == b"READY=1"
        process.terminate()
        assert manager.recv(100) == b"STOPPING=1"
        assert process.wait(20) == 0


def test_settings_that_cannot_be_used_are_exit_code_2(supervised: Supervised) -> None:
    supervised.settings = supervised.settings.replace(str(supervised.run_dir), f"/dev/shm/{'x' * 120}")
    process = supervised.start(wait=False)
    assert process.wait(20) == 2
    assert "--run-dir" in supervised.log


def test_locked_data_are_waited_for_a_moment_and_then_refused_with_the_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = paths_for(
        ServerConfig(broker=BrokerSection(data_dir=str(tmp_path / "data"), run_dir=str(tmp_path / "run")))
    )
    make_directories(paths._replace(boards_dir=tmp_path / "boards", memory_dir=tmp_path / "memory"))
    check_data_lock(paths)
    lock = LockFile.take(paths.data_lock)
    with pytest.raises(DirectoryLockedError, match=rf"{paths.data_lock} is held by process {os.getpid()}\b"):
        check_data_lock(paths)
    naps: list[float] = []

    def nap(nap_s: float) -> None:
        naps.append(nap_s)
        lock.release(unlink=False)

    monkeypatch.setattr(time, "sleep", nap)
    check_data_lock(paths)
    assert len(naps) == 1
