"""A temporary directory goes when its owner is surely dead, and never before."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zbroker.shm.lockfile import LockFile
from zbroker.shm.owned_directory import OwnedDirectory, abandoned, sweep

OWNER = """
import sys
from pathlib import Path
from zbroker.shm.owned_directory import OwnedDirectory
print(OwnedDirectory.make("zbt-", Path(sys.argv[1])).path, flush=True)
sys.stdin.read()
"""


def start_owner(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    path = Path(owner.stdout.readline().strip())
    (path / "data" / "t-0").mkdir(parents=True)
    (path / "data" / "t-0" / "00.log").write_bytes(b"x")
    (path / "log.txt").write_text("said")
    return owner, path


def left_by_a_killed_owner(parent: Path) -> Path:
    owner, path = start_owner(parent)
    with owner:
        owner.kill()
    return path


def test_it_goes_when_its_owner_is_done(tmp_path: Path) -> None:
    with OwnedDirectory.make("zbt-", tmp_path) as path:
        (path / "file").touch()
        assert path.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


def test_the_next_one_removes_what_a_killed_owner_left_and_nothing_of_the_living(tmp_path: Path) -> None:
    living, path_of_living = start_owner(tmp_path)
    with living:
        path = left_by_a_killed_owner(tmp_path)
        assert abandoned(tmp_path) == [path]
        with OwnedDirectory.make("zb-", tmp_path) as next_one:
            assert sorted(tmp_path.iterdir()) == sorted([path_of_living, next_one])
        assert (path_of_living / "data" / "t-0" / "00.log").read_bytes() == b"x"
        living.kill()
    assert sweep(tmp_path) == [path_of_living]
    assert list(tmp_path.iterdir()) == []


def test_what_was_kept_copied_or_moved_stays(tmp_path: Path) -> None:
    OwnedDirectory.make("zbt-", tmp_path).keep()
    path = left_by_a_killed_owner(tmp_path)
    shutil.copytree(path, tmp_path / "zbt-copy")
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(path, tmp_path / "elsewhere" / path.name)
    path.rename(tmp_path / "zbt-moved")
    before = sorted(tmp_path.rglob("*"))
    assert sweep(tmp_path) == sweep(tmp_path / "elsewhere") == []
    assert sorted(tmp_path.rglob("*")) == before


def test_one_without_proof_that_its_owner_is_dead_stays(tmp_path: Path) -> None:
    """One that an older version made, and one whose owner is about to take its lock."""
    for name in ("zbt-1-old", "zbt-2-new"):
        (tmp_path / name).mkdir()
    new = tmp_path / "zbt-2-new"
    (new / f"owner-{new.name}-{new.stat().st_ino}").touch()
    assert sweep(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 2


def test_one_in_which_a_process_of_its_broker_still_lives_stays_until_that_has_ended(tmp_path: Path) -> None:
    path = left_by_a_killed_owner(tmp_path)
    (path / "run").mkdir()
    lock = LockFile.take(path / "run" / "lock-worker-0")
    assert sweep(tmp_path) == []
    lock.release()
    assert sweep(tmp_path) == [path]


def test_one_of_another_user_and_a_link_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = left_by_a_killed_owner(tmp_path)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / path.name).symlink_to(path)
    assert sweep(tmp_path / "links") == []
    own_uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own_uid + 1)
    assert sweep(tmp_path) == []
    monkeypatch.undo()
    assert sweep(tmp_path) == [path]


def test_a_sweep_that_was_cut_short_is_done_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = left_by_a_killed_owner(tmp_path)

    def fail(_: str) -> None:
        raise OSError("busy")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fail)
        assert sweep(tmp_path) == []
    assert path.exists()
    assert sweep(tmp_path) == [path]


def test_a_place_that_is_not_there_has_none(tmp_path: Path) -> None:
    assert sweep(tmp_path / "absent") == []
