"""Folders of copies: only what this broker made and deleted is removed, and never what a process has open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zbroker.errors import CopyDamagedError
from zbroker.storage.files import Files
from zbroker.workers import copy_folders


def copy(root: Path, copy_id: int) -> Path:
    """A copy with a file in it; the directory inside its folder."""
    inside = root / str(copy_id) / f"t0000000{copy_id}-0"
    inside.mkdir(parents=True)
    (inside / "00000000000000000000.log").write_bytes(b"records")
    return inside


def test_only_copies_that_were_given_out_and_deleted_are_swept(tmp_path: Path) -> None:
    for copy_id in (1, 2, 3, 9):
        copy(tmp_path, copy_id)
    for name in ("notes", "007", "-1", "²"):
        (tmp_path / name).mkdir()
    removed = copy_folders.sweep([tmp_path, tmp_path / "absent"], {2}, 4, Files())
    assert removed == [tmp_path / "1", tmp_path / "3"]
    assert sorted(os.listdir(tmp_path)) == ["-1", "007", "2", "9", "notes", "²"]


def test_a_copy_that_a_process_has_open_is_left_alone(tmp_path: Path) -> None:
    files = Files()
    fd = files.lock_directory(copy(tmp_path, 1))
    assert not copy_folders.remove(tmp_path, 1, files)
    assert (tmp_path / "1").is_dir()
    os.close(fd)
    assert copy_folders.remove(tmp_path, 1, files)
    assert not (tmp_path / "1").exists()
    assert not copy_folders.remove(tmp_path, 1, files), "it is gone already"


def test_a_copy_that_the_metadata_cannot_have_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    copy(tmp_path, 5)
    copy_folders.check_known([tmp_path], 6, tmp_path / "metadata")
    with pytest.raises(CopyDamagedError, match=rf"{tmp_path}/5 is unknown to {tmp_path}/metadata"):
        copy_folders.check_known([tmp_path], 5, tmp_path / "metadata")


def test_an_empty_folder_is_nobodys_data(tmp_path: Path) -> None:
    (tmp_path / "5").mkdir()
    copy_folders.check_known([tmp_path], 1, tmp_path / "metadata")
