"""`kill -9` of what has a broker of its own: its processes end, and the next start removes its directories."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.conditions import wait_until
from zbroker.client.producer import Producer
from zbroker.config.paths import TMPFS_ROOT
from zbroker.shm.owned_directory import sweep
from zbroker.testing import Broker

COMMAND = [sys.executable, "-m", "zbroker"]
PROGRAM = [
    sys.executable,
    "-c",
    "import time\nfrom zbroker.testing import Broker\nwith Broker(replicas=1): time.sleep(600)",
]
# What is started, and of what its further processes are, which must be there before the kill.
OWNERS = {
    "program": (PROGRAM, "zbroker.testing.serve"),
    "chaos": ([*COMMAND, "chaos", "--duration", "600s"], "zbroker.load.chaos_client"),
    "soak": ([*COMMAND, "soak", "kills", "--state", "state.json"], "zbroker.load.chaos_client"),
    "latency": ([*COMMAND, "bench", "latency", "-n", "1000000"], "zbroker.load.bench_process"),
    "disk": ([*COMMAND, "bench", "produce", "--dir", "."], "zbroker.load.bench_process"),
    "rebalance": ([*COMMAND, "bench", "rebalance", "--joins", "4"], "zbroker.load.group_client"),
    "demo": ([*COMMAND, "demo"], "zbroker.load.demo_process"),
    "ephemeral": ([*COMMAND, "serve", "--ephemeral"], ""),
}


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    return found


def is_over(process: psutil.Process) -> bool:
    """Whether it runs no more; nobody may have reaped it, whose parent was killed.

    Its first thread may be dead before the others, which have its files, and the locks on them, until they are.
    """
    try:
        is_dead = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        is_alone = len(os.listdir(f"/proc/{process.pid}/task")) <= 1
        return not process.is_running() or (is_dead and is_alone)
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True


def has_begun(process: psutil.Process, module: str = "") -> bool:
    """Whether it runs this module, and is past its start: it has asked for its end when its parent ends, and it has
    threads since it has connected."""
    try:
        return process.num_threads() > 1 and (not module or module in process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def owner_files(below: Path) -> Iterator[Path]:
    """Of every temporary directory there. Directories go while they are looked at, also those of others."""
    for root, _, names in os.walk(below):
        yield from (Path(root) / name for name in names if name.startswith("owner-"))


def directories_of(processes: list[psutil.Process], below: Path) -> set[Path]:
    """The temporary directories that the broker among these processes was given, and those in a place of the test's."""
    found = {path.parent for path in owner_files(below)}
    for path in owner_files(TMPFS_ROOT):
        try:
            pid = path.read_text().strip()
        except FileNotFoundError:
            continue
        if pid.isdigit() and int(pid) in {process.pid for process in processes}:
            found.add(path.parent)
    return found


@contextmanager
def owner(name: str, place: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[psutil.Process], set[Path]]]:
    """It, its descendants and its directories once all are there. It is killed at the end."""
    command, module = OWNERS[name]
    temporary = place / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(
        command,
        cwd=place,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            own = [psutil.Process(process.pid)]

            def has_started() -> bool:
                assert process.poll() is None, f"{name} ended with {process.returncode}"
                sockets = [path for found in directories_of(own, place) for path in found.glob("run/front.sock")]
                return bool(sockets) and any(has_begun(child, module) for child in descendants(process))

            wait_until(has_started, what=f"the processes of {name}", timeout_s=60)
            yield process, descendants(process), directories_of(own, place)
        finally:
            process.kill()


def kill(process: subprocess.Popen[bytes], children: list[psutil.Process]) -> None:
    """Kill an owner while its processes are stopped: none of them can notice that, or end by itself."""
    for child in filter(has_begun, children):
        with suppress(psutil.NoSuchProcess):
            child.suspend()
    process.kill()
    process.wait()
    try:
        wait_until(lambda: all(map(is_over, children)), what="the end of its processes")
    finally:
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def remove(directories: set[Path]) -> None:
    """Their owners were killed, and processes may be on their way out."""

    def are_gone() -> bool:
        for parent in {path.parent for path in directories}:
            sweep(parent)
        return not any(path.exists() for path in directories)

    wait_until(are_gone, what="the end of what was left")


@pytest.mark.parametrize("name", OWNERS)
def test_its_processes_end_and_the_next_start_removes_its_directories(name: str, tmp_path: Path) -> None:
    with owner(name, tmp_path) as (process, children, left):
        kill(process, children)
    assert left
    own: set[Path] = set()
    try:
        with owner(name, tmp_path) as (_, _, own):
            assert not [path for path in left if path.exists()]
            assert own
            assert all(path.exists() for path in own)
    finally:
        remove(left | own)


def test_that_of_a_living_owner_stays_and_its_broker_answers(tmp_path: Path) -> None:
    with Broker() as living, owner("program", tmp_path) as (process, children, left):
        kill(process, children)
        with Broker() as next_one:
            assert not [path for path in left if path.exists()]
            assert next_one.directory.exists()
        with Producer(bootstrap_servers=living.bootstrap_servers) as producer:
            assert producer.send("t", b"kept").result(20).offset == 0


def test_the_doctor_tells_of_them(tmp_path: Path) -> None:
    def found() -> dict[str, str]:
        environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
        said = subprocess.run([*COMMAND, "doctor", "--json"], capture_output=True, env=environment, check=False)
        return next(one for one in json.loads(said.stdout) if one["rule"] == "temporary directories")

    with owner("chaos", tmp_path) as (process, children, left):
        mine = next(path for path in left if path.is_relative_to(tmp_path))
        assert str(mine) not in found()["fix"]
        kill(process, children)
        assert found()["level"] == "WARN"
        assert str(mine) in found()["fix"]
    remove(left)
    assert str(mine) not in found()["fix"]
