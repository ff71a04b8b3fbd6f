"""The built-in supervisor with the real roles: start, deaths, restarts, stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conditions import wait_until
from zbroker.testing import Broker

NAMES = ["coordinator", "router", "worker-0", "worker-1"]


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker(workers=2) as made:
        yield made


def test_a_broker_starts_answers_and_stops_without_a_trace() -> None:
    before = set(os.listdir("/dev/shm"))
    made = Broker(workers=2)
    with made as broker:
        wait_until(lambda: broker.process_names() == NAMES, what="all processes")
        run_dir, supervisor_pid = broker.paths.run_dir, broker.supervisor_pid
        pids = [broker.pid_of(name) for name in NAMES]
        assert {path.name for path in run_dir.iterdir()} >= {"front.sock", "back.sock", "lock-supervisor"}
        assert broker.stop() == 0, broker.log
        assert broker.log.count("a process has ended in order") == 2, "the coordinator has seen its workers leave"
        assert "WARNING a process has ended" not in broker.log, "nobody need look at a stop in order"
        assert list(run_dir.iterdir()) == []
    assert not made.directory.exists()
    for pid in (supervisor_pid, *pids):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    mine = f"zbt-{os.getpid()}-"  # other tests of this process may keep a broker of their own
    assert not [name for name in set(os.listdir("/dev/shm")) - before if name.startswith(mine)]


def test_a_broker_whose_starter_has_died_before_it_ran_ends_at_once(tmp_path: Path) -> None:
    """As when Ctrl-C comes between the start of the process and its first line."""
    starter = subprocess.Popen([sys.executable, "-c", ""])
    starter.wait()
    settings = json.dumps({"broker": {"data_dir": str(tmp_path / "data"), "run_dir": str(tmp_path / "run")}})
    command = [sys.executable, "-m", Broker.program, settings, str(starter.pid)]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_any_process_that_is_killed_comes_back_and_the_broker_stops_cleanly(broker: Broker, name: str) -> None:
    old_pid = broker.kill(name)
    broker.wait_for_restart(name, old_pid)
    wait_until(lambda: broker.process_names() == NAMES, what="all processes")
    if name.startswith("worker"):
        wait_until(lambda: f"WARNING a process has ended peer={name}" in broker.log, what="the coordinator's word")
    assert broker.stop() == 0, broker.log
    assert list(broker.paths.run_dir.iterdir()) == []


def test_all_processes_killed_at_once_start_again_on_the_same_data() -> None:
    with Broker(workers=1) as broker:
        broker.kill_all()
        assert (broker.paths.run_dir / "front.sock").exists(), "a crash leaves its sockets behind"
        broker.start()
        assert broker.restart().stop() == 0, broker.log


def test_no_process_keeps_a_descriptor_of_another_role(broker: Broker) -> None:
    wait_until(lambda: broker.process_names() == NAMES, what="all processes")
    for name in NAMES:
        files = [Path(file.path).name for file in psutil.Process(broker.pid_of(name)).open_files()]
        assert [file for file in files if file.startswith("lock-")] == [f"lock-{name}"]


def test_sigterm_to_a_worker_alone_is_answered_by_a_new_worker(broker: Broker) -> None:
    wait_until(lambda: broker.process_names() == NAMES, what="all processes")
    old_pid = broker.signal("worker-0", signal.SIGTERM)
    assert broker.wait_for_restart("worker-0", old_pid) != old_pid
