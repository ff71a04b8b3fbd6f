"""Power cuts that once lost something or asked for a person: each found by T07, kept here by name."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from tests.storage_logs import RebootableFiles, append, batches_of, fill, kill, log_files, open_log
from zbroker.config.paths import make_directories, paths_for
from zbroker.config.schema import ServerConfig
from zbroker.core.entries import Booted, ClusterCreated
from zbroker.storage.files import Files
from zbroker.storage.layout import DELETED
from zbroker.workers.metadata_log import FRAME, LOG_NAME, MetadataLog


def rebooted() -> RebootableFiles:
    """Files after the host has booted again."""
    files = RebootableFiles()
    files.boot = "00000000-0000-0000-0000-000000000002"
    return files


class SyncedDirectories(Files):
    """Files that note which directories were synced."""

    def __init__(self) -> None:
        super().__init__()
        self.synced: list[Path] = []

    def fsync_directory(self, path: Path) -> None:
        self.synced.append(path)
        super().fsync_directory(path)


def test_a_lost_mark_before_an_unsynced_entry_is_no_damage(tmp_path: Path) -> None:
    log = MetadataLog.open(tmp_path, Files())
    log.append([ClusterCreated("id")], durable=True)
    end = log.size_bytes
    log.append([Booted("one")], durable=False)
    log.close()
    path = tmp_path / LOG_NAME
    data = bytearray(path.read_bytes())
    data[end - FRAME.size : end] = bytes(FRAME.size)  # the page of the mark stayed behind, the next one did not
    path.write_bytes(data)
    log = MetadataLog.open(tmp_path, Files())
    assert log.entries == [ClusterCreated("id")]
    log.close()


def test_records_that_were_deleted_unsynced_are_not_missed_afterwards(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    fill(log, 4)
    log.flush()
    fill(log, 150)
    log.truncate_before(log.log_end - 2)
    assert log.segment_count == 1
    kill(log)
    path = log_files(tmp_path / "p")[0]
    path.write_bytes(bytes(path.stat().st_size))
    log = open_log(tmp_path / "p", files=rebooted())
    assert log.log_start == log.log_end
    kill(log)


def test_what_is_appended_below_a_log_start_that_was_saved_stays(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p", segment_bytes=1 << 20)
    fill(log, 4)
    log.flush()
    end, synced = log.log_end, log.active_position
    fill(log, 10)
    log.truncate_before(log.log_end - 2)
    kill(log)
    path = log_files(tmp_path / "p")[0]
    path.write_bytes(path.read_bytes()[:synced])
    log = open_log(tmp_path / "p", files=rebooted(), segment_bytes=1 << 20)
    assert log.log_end == end
    added = append(log)
    kill(log)
    log = open_log(tmp_path / "p", files=rebooted(), segment_bytes=1 << 20)
    assert batches_of(log) == [added]
    kill(log)


def test_a_log_start_is_on_the_disk_before_files_are_deleted_for_it(tmp_path: Path) -> None:
    calls: list[str] = []

    class Noting(Files):
        def fdatasync(self, fd: int) -> None:
            calls.append(os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2])
            super().fdatasync(fd)

        def rename(self, source: Path, target: Path) -> None:
            calls.append(target.suffix)
            super().rename(source, target)

    log = open_log(tmp_path / "p", files=Noting())
    fill(log, 150)
    log.flush()
    calls.clear()
    log.truncate_before(log.active_base)
    assert calls[0] == "high-watermark"
    assert set(calls[1:]) == {DELETED}
    kill(log)


def test_an_epoch_file_that_is_ahead_of_the_log_start_is_made_anew(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p", segment_bytes=1 << 20)
    for epoch in (1, 2, 3):
        fill(log, 2, epoch=epoch)
    starts = list(log.epochs.starts)
    log.save_high_watermark(1)
    positions = (tmp_path / "p" / "high-watermark").read_bytes()
    log.truncate_before(log.log_end - 1)
    log.flush()
    assert log.epochs.starts != starts
    kill(log)
    (tmp_path / "p" / "high-watermark").write_bytes(positions)
    log = open_log(tmp_path / "p", files=rebooted(), segment_bytes=1 << 20)
    assert (log.log_start, log.epochs.starts) == (0, starts)
    kill(log)


def test_the_name_of_a_directory_that_a_dead_process_has_made_is_synced_by_its_successor(tmp_path: Path) -> None:
    kill(open_log(tmp_path / "p"))
    files = SyncedDirectories()
    log = open_log(tmp_path / "p", files=files)
    append(log)
    assert tmp_path in files.synced
    kill(log)
    files = SyncedDirectories()
    log = open_log(tmp_path / "p", files=files)
    append(log, epoch=2)
    assert tmp_path not in files.synced, "once is enough"
    kill(log)


def test_the_names_of_the_data_directories_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        os.fdatasync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    places = {"data_dir": str(tmp_path / "a" / "b"), "run_dir": str(tmp_path / "run")}
    paths = paths_for(msgspec.convert({"broker": places}, ServerConfig))
    make_directories(paths._replace(boards_dir=tmp_path / "boards", memory_dir=tmp_path / "memory"))
    assert {str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")} <= set(synced)
    synced.clear()
    files = SyncedDirectories()
    MetadataLog.open(tmp_path / "a" / "b" / "metadata", files).close()
    assert tmp_path / "a" / "b" in files.synced
