"""Regions: pages exist before they are used, sizes are sealed, views are released."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from zbroker.errors import DiskFullError, InvalidRequestError, StorageError, TooManyOpenFilesError
from zbroker.shm import region


def test_every_page_of_a_new_file_is_allocated(tmp_path: Path) -> None:
    area, temporary = region.create_file(tmp_path / "x", 1 << 20)
    assert temporary.stat().st_blocks * 512 >= 1 << 20
    assert temporary.stat().st_mode & 0o777 == 0o600
    area.close()


def test_a_file_gets_its_name_only_when_it_is_published(tmp_path: Path) -> None:
    path = tmp_path / "x"
    area, temporary = region.create_file(path, 4096)
    assert not path.exists()
    area.u64[0] = 7
    region.publish_file(temporary, path)
    area.close()
    reader = region.attach_file(path)
    assert reader.u64[0] == 7
    reader.close()


def test_a_reader_cannot_store(tmp_path: Path) -> None:
    area, temporary = region.create_file(tmp_path / "x", 4096)
    reader = region.attach_file(temporary)
    with pytest.raises(TypeError, match="read-only"):
        reader.u64[0] = 1
    reader.close()
    area.close()


def test_t42_a_full_file_system_is_a_typed_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, position: int, size_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskFullError, match="shared memory"):
        region.create_file(tmp_path / "x", 4096)
    assert list(tmp_path.iterdir()) == []
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DiskFullError):
        region.create_memfd("x", 4096)
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_free_descriptor_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*args: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", none_left)
    with pytest.raises(TooManyOpenFilesError):
        region.create_file(tmp_path / "x", 4096)


def test_t42_a_sealed_memfd_can_be_neither_shrunk_nor_grown() -> None:
    area, fd = region.create_memfd("x", 8192)
    for size_bytes in (0, 4096, 16384):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size_bytes)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    area.u64[1023] = 5
    assert os.fstat(fd).st_size == 8192
    area.close()
    os.close(fd)


def test_memory_whose_size_is_not_sealed_is_refused(tmp_path: Path) -> None:
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 8192)
    with pytest.raises(InvalidRequestError, match="not sealed"):
        region.attach_memfd(fd)
    os.close(fd)
    with (tmp_path / "x").open("wb") as file, pytest.raises(InvalidRequestError, match="no memfd"):
        region.attach_memfd(file.fileno())


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"\0" * 4096)
    (tmp_path / "x").symlink_to(tmp_path / "target")
    with pytest.raises(StorageError):
        region.attach_file(tmp_path / "x")


def test_a_directory_in_the_place_of_a_file_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such device"):
        region.attach_file(tmp_path)


def test_a_view_that_is_still_held_keeps_its_pages_after_close() -> None:
    area, fd = region.create_memfd("x", 4096)
    os.close(fd)
    area.bytes[:3] = b"abc"
    held = area.bytes[:3]
    area.close()
    assert bytes(held) == b"abc"
    with pytest.raises(ValueError, match="released"):
        area.u64[0]
