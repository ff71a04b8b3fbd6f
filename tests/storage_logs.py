"""Logs to test with: batches that can be told apart, a log opened in one line, and files that fail on demand."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from zbroker.clock import ManualClock
from zbroker.config.schema import TopicConfig
from zbroker.record.batch import batches_in, check_batch, stamp
from zbroker.record.columns import encode_columns
from zbroker.storage.files import Buffer, Files, storage_error
from zbroker.storage.handles import Handles
from zbroker.storage.log import Log

SHM = Path("/dev/shm")
SMALL = {"segment_bytes": 4096, "index_interval_bytes": 256}


class RebootableFiles(Files):
    """Files of a host that can be said to have booted again."""

    boot = "00000000-0000-0000-0000-000000000001"

    def boot_id(self) -> str:
        return self.boot


class FailingFiles(RebootableFiles):
    """Files whose calls fail as told."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: dict[str, tuple[int, int]] = {}
        self.calls: list[str] = []
        self.room_bytes: int | None = None  # what pwrite may still take

    def fail(self, call: str, number: int = errno.EIO, *, after: int = 0) -> None:
        """Let a call of this name raise this errno once, when `after` of them have passed."""
        self.failures[call] = (number, after)

    def _enter(self, call: str) -> None:
        self.calls.append(call)
        if call not in self.failures:
            return
        number, left = self.failures.pop(call)
        if left == 0:
            raise OSError(number, os.strerror(number))
        self.failures[call] = (number, left - 1)

    def write_some(self, fd: int, data: Buffer, position: int) -> int:
        self._enter("write")
        if self.room_bytes is None:
            return super().write_some(fd, data, position)
        if self.room_bytes == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with memoryview(data) as view, view[: self.room_bytes] as part:
            count = super().write_some(fd, part, position)
        self.room_bytes -= count
        return count

    def fdatasync(self, fd: int) -> None:
        self._raised("fdatasync")
        super().fdatasync(fd)

    def fsync_directory(self, path: Path) -> None:
        self._raised("fsync_directory")
        super().fsync_directory(path)

    def fallocate(self, fd: int, position: int, size_bytes: int) -> bool:
        self._raised("fallocate")
        return super().fallocate(fd, position, size_bytes)

    def punch_hole(self, fd: int, position: int, size_bytes: int) -> None:
        self._raised("punch_hole")
        super().punch_hole(fd, position, size_bytes)

    def open(self, path: Path | str, flags: int = os.O_RDONLY) -> int:
        self._raised("open")
        return super().open(path, flags)

    def _raised(self, call: str) -> None:
        try:
            self._enter(call)
        except OSError as error:
            raise storage_error(error, call) from error


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, for tests of thousands of files; elsewhere it is `tmp_path`."""
    if not SHM.is_dir():
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(prefix="zbt-", dir=SHM))
    yield path
    shutil.rmtree(path)


def open_log(
    directory: Path,
    *,
    files: Files | None = None,
    clock: ManualClock | None = None,
    handles: Handles | None = None,
    leader_epoch_hint: int | None = None,
    disk_free_min_bytes: int = 0,
    **settings: object,
) -> Log:
    """A log with small segments, unless `settings` say otherwise."""
    config = TopicConfig(**{**SMALL, **settings})  # type: ignore[arg-type]  # the settings' types are TopicConfig's
    return Log.open(
        directory,
        config,
        files or Files(),
        clock or ManualClock(),
        handles=handles,
        leader_epoch_hint=leader_epoch_hint,
        disk_free_min_bytes=disk_free_min_bytes,
    )


def make_batch(
    base_offset: int,
    values: Sequence[bytes],
    *,
    epoch: int = 1,
    timestamps_ms: Sequence[int] = (),
    timestamp_ms: int = 0,
) -> bytearray:
    """A stamped batch."""
    batch = bytearray(
        encode_columns(
            values, timestamps_ms=list(timestamps_ms) or None, timestamp_ms=timestamp_ms or 1_000 + base_offset
        )
    )
    stamp(batch, base_offset, epoch)
    return batch


def append(log: Log, count: int = 3, *, size_bytes: int = 20, epoch: int = 1, timestamp_ms: int = 0) -> bytes:
    """Append one batch of `count` records whose values name their offsets; gives its bytes."""
    values = [f"value-{log.log_end + number}".encode().ljust(size_bytes, b".") for number in range(count)]
    return append_batch(log, make_batch(log.log_end, values, epoch=epoch, timestamp_ms=timestamp_ms))


def append_batch(log: Log, batch: bytearray) -> bytes:
    """Append a stamped batch; gives its bytes."""
    log.append(batch, check_batch(batch, size_bytes_max=1 << 24, records_max=1 << 20))
    return bytes(batch)


def fill(log: Log, batches: int, **settings: int) -> list[bytes]:
    """Append so many batches of 1 to 5 records."""
    return [append(log, 1 + number % 5, **settings) for number in range(batches)]


def split(data: bytes) -> Iterator[bytes]:
    """The batches in a piece of log."""
    for position, header in batches_in(data):
        yield data[position : position + header.size_bytes]


def batches_of(log: Log, *, max_bytes: int = 1 << 16) -> list[bytes]:
    """Every batch from the log start on, as a reader gets them."""
    found: list[bytes] = []
    offset = log.log_start
    while offset < log.log_end:
        data = log.read(offset, max_bytes, log.log_end)
        assert data, f"nothing at offset {offset}, though the log ends at {log.log_end}"
        found += split(data)
        offset = list(batches_in(data))[-1][1].next_offset
    return found


def kill(log: Log) -> None:
    """Let go of the log as a death does: nothing is finished."""
    log.close(clean=False)


def log_files(directory: Path) -> list[Path]:
    """The .log files, oldest first."""
    return sorted(directory.glob("*.log"))
