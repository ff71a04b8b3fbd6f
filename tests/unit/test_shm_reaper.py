"""Locks prove life, and the sweep removes what the dead left and nothing else."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zbroker import ids
from zbroker.errors import DirectoryLockedError
from zbroker.shm import reaper
from zbroker.shm.board import BoardWriter
from zbroker.shm.lockfile import LockFile, is_held

DEAD = (1 << 22) + 4_000_000  # A start one tick after boot with a pid that is not in use.
HOLDER = """
import sys
from pathlib import Path
from zbroker.shm.lockfile import LockFile
lock = LockFile.take(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def start_holder(path: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_holder_is_refused_by_name_until_the_first_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock-worker-0"
    with start_holder(path) as holder:
        with pytest.raises(DirectoryLockedError, match=f"held by process {holder.pid}"):
            LockFile.take(path)
        assert is_held(path)
        holder.kill()
        holder.wait()
        assert not is_held(path)
        LockFile.take(path).release()
    assert not path.exists()


def test_a_lock_file_removed_while_it_was_being_taken_is_not_mistaken_for_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock-router"
    real = fcntl.flock
    removed: list[Path] = []

    def flock(fd: int, operation: int) -> None:
        if not removed:
            path.unlink()
            removed.append(path)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = LockFile.take(path)
    assert removed
    assert os.fstat(lock.fd).st_ino == path.stat().st_ino
    lock.release()


def test_the_sweep_removes_what_dead_processes_left(tmp_path: Path) -> None:
    boards = tmp_path / "boards"
    boards.mkdir()
    names = ["front.sock", "back.sock", "lock-router", "lane-worker-0.sock", "lock-worker-0", "lane-replica-3.sock"]
    names.append("stream-replica-3.sock")
    for name in names:
        (tmp_path / name).touch()
    BoardWriter.create(boards, ids.worker_number(0), DEAD, cells=1).close()
    (boards / f".worker-1.{DEAD:016x}.board.new").touch()
    removed = reaper.sweep(tmp_path, boards)
    assert sorted(path.name for path in removed) == sorted(
        [*names, f"worker-0.{DEAD:016x}.board", f".worker-1.{DEAD:016x}.board.new"]
    )
    assert list(tmp_path.iterdir()) == [boards]
    assert list(boards.iterdir()) == []


def test_the_sweep_leaves_the_living_and_what_is_not_ours(tmp_path: Path) -> None:
    board = BoardWriter.create(tmp_path, ids.worker_number(0), ids.own_incarnation(), cells=1)
    (tmp_path / "lane-worker-0.sock").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "lock-supervisor").touch()
    (tmp_path / f"stranger.{DEAD:016x}.board").touch()
    with start_holder(tmp_path / "lock-worker-0") as holder:
        before = sorted(tmp_path.iterdir())
        assert reaper.sweep(tmp_path, tmp_path) == []
        assert sorted(tmp_path.iterdir()) == before
        holder.kill()
    assert {path.name for path in reaper.sweep(tmp_path, tmp_path)} == {"lane-worker-0.sock", "lock-worker-0"}
    assert not reaper.remove_board(tmp_path, ids.worker_number(0), ids.own_incarnation())
    assert board.path.exists()
    board.close()


def test_sweeping_where_nothing_is_does_nothing(tmp_path: Path) -> None:
    assert reaper.sweep(tmp_path / "absent", tmp_path / "absent" / "boards") == []


def test_a_dead_leaders_board_is_removed_when_its_successors_say_so(tmp_path: Path) -> None:
    board = BoardWriter.create(tmp_path, ids.worker_number(1), DEAD, cells=1)
    board.close()
    assert reaper.remove_board(tmp_path, ids.worker_number(1), DEAD)
    assert not board.path.exists()
