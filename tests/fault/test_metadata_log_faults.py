"""The metadata log on a disk that is full or fails, and the death of its writer at every call."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from zbroker.core.entries import AnyEntry, Booted, ClusterCreated
from zbroker.errors import DiskFullError, StorageError
from zbroker.storage.files import Files
from zbroker.workers.metadata_log import LOG_NAME, MetadataLog, MetadataLogFailed

FIRST: AnyEntry = ClusterCreated("id")
MORE: list[AnyEntry] = [Booted(f"boot-{number}") for number in range(5)]


class Death(BaseException):
    """The process ends here."""


class Faulty(Files):
    """Fails the n-th call of a kind, in a way of choice."""

    def __init__(self) -> None:
        super().__init__()
        self.write_errno = 0
        self.short_bytes = 0
        self.sync_errno = 0
        self.rename_errno = 0
        self.calls_left = 1 << 30

    def _count(self) -> None:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise Death

    def write_some(self, fd: int, data: bytes | bytearray | memoryview, position: int) -> int:
        self._count()
        if self.write_errno:
            if self.short_bytes:
                short, self.short_bytes = self.short_bytes, 0
                return os.pwrite(fd, memoryview(data)[:short], position)
            raise OSError(self.write_errno, os.strerror(self.write_errno))
        if self.calls_left == 0:  # torn: half of it is written when the process dies
            os.pwrite(fd, memoryview(data)[: len(data) // 2], position)
            raise Death
        return super().write_some(fd, data, position)

    def fdatasync(self, fd: int) -> None:
        self._count()
        if self.sync_errno:
            raise StorageError("fdatasync: Input/output error")
        super().fdatasync(fd)

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        if self.rename_errno:
            raise StorageError("rename: Input/output error")
        super().rename(source, target)


def entries_in(directory: Path) -> list[AnyEntry]:
    log = MetadataLog.open(directory, Files())
    log.close()
    return log.entries


@pytest.mark.parametrize("short_bytes", [0, 1, 20])
def test_t10_a_full_disk_refuses_the_append_and_leaves_no_trace(tmp_path: Path, short_bytes: int) -> None:
    files = Faulty()
    log = MetadataLog.open(tmp_path, files)
    log.append([FIRST], durable=True)
    size_bytes = log.size_bytes
    files.write_errno, files.short_bytes = errno.ENOSPC, short_bytes
    with pytest.raises(DiskFullError):
        log.append(MORE, durable=True)
    assert (tmp_path / LOG_NAME).stat().st_size == size_bytes
    files.write_errno = 0
    log.append(MORE[:1], durable=True)
    log.close()
    assert entries_in(tmp_path) == [FIRST, MORE[0]]


def test_a_failed_sync_is_fatal_and_never_tried_again(tmp_path: Path) -> None:
    files = Faulty()
    log = MetadataLog.open(tmp_path, files)
    log.append([FIRST], durable=True)
    files.sync_errno = errno.EIO
    with pytest.raises(MetadataLogFailed):
        log.append(MORE, durable=True)
    log.close()
    assert entries_in(tmp_path)[0] == FIRST


def test_a_full_disk_while_marking_a_sync_loses_no_entry(tmp_path: Path) -> None:
    files = Faulty()
    log = MetadataLog.open(tmp_path, files)
    log.append([FIRST], durable=False)
    files.write_errno = errno.ENOSPC
    log.sync()
    files.write_errno = 0
    log.append(MORE, durable=True)
    log.close()
    assert entries_in(tmp_path) == [FIRST, *MORE]


def test_a_snapshot_that_cannot_be_written_leaves_the_old_log_in_use(tmp_path: Path) -> None:
    files = Faulty()
    log = MetadataLog.open(tmp_path, files)
    log.append([FIRST, *MORE], durable=True)
    for fault in ("write_errno", "rename_errno"):
        setattr(files, fault, errno.EIO)
        with pytest.raises(StorageError):
            log.replace([FIRST])
        setattr(files, fault, 0)
    log.append([Booted("after")], durable=True)
    log.close()
    assert entries_in(tmp_path) == [FIRST, *MORE, Booted("after")]


def script(directory: Path, files: Files, told: list[AnyEntry], snapshots: list[list[AnyEntry]]) -> None:
    """Appends, syncs and a snapshot; `told` grows when an append has returned."""
    log = MetadataLog.open(directory, files)
    try:
        for number, entry in enumerate([FIRST, *MORE]):
            log.append([entry], durable=number % 2 == 0)
            told.append(entry)
        snapshots.append([FIRST, MORE[-1]])
        log.replace(snapshots[0])
        told[:] = snapshots[0]
        log.append([Booted("last")], durable=True)
        told.append(Booted("last"))
    finally:
        log.close()


def test_t06_the_death_of_the_process_at_every_call_loses_nothing_that_was_appended(tmp_path: Path) -> None:
    """SIGKILL before and half-way through every write, sync and rename: what is read again is what had returned, or
    one append more; recovering twice gives the same bytes."""
    for calls in range(200):
        directory = tmp_path / str(calls)
        directory.mkdir()
        files = Faulty()
        files.calls_left = calls
        told: list[AnyEntry] = []
        snapshots: list[list[AnyEntry]] = []
        try:
            script(directory, files, told, snapshots)
        except Death:
            found = entries_in(directory)
            is_same = found[: len(told)] == told and len(found) <= len(told) + 1
            assert is_same or found in snapshots, f"death at call {calls}: {found} in place of {told}"
            first = (directory / LOG_NAME).read_bytes()
            assert entries_in(directory) == found
            assert (directory / LOG_NAME).read_bytes() == first, "the second opening changes nothing"
        else:
            assert calls > 20, "the script has more calls than that"
            return
    raise AssertionError("the script never came to its end")
