"""A disk that is full, that writes by halves, that cannot sync; and a process without descriptors."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.storage_logs import FailingFiles, append, batches_of, fill, kill, log_files, open_log
from zbroker.errors import BrokerError, DiskFullError, StorageError
from zbroker.storage.files import Files
from zbroker.storage.log import Log


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def append_until_full(log: Log, written: list[bytes], after_each: Callable[[], object] = lambda: None) -> None:
    """Append batches of about 5 KB until the disk is full."""
    try:
        for _ in range(10_000):
            written.append(append(log, 5, size_bytes=1_000))
            after_each()
    except DiskFullError:
        return
    raise AssertionError("the disk did not fill")


def allocated_bytes(log: Log) -> int:
    """What the log files take, allocated space included."""
    return sum(path.stat().st_blocks * 512 for path in log_files(log.directory))


@pytest.mark.root
def test_t10_a_full_disk_stops_appends_and_nothing_else(small_tmpfs: Path) -> None:
    ballast = small_tmpfs / "ballast"
    log = open_log(small_tmpfs / "p", segment_bytes=128 << 10)
    written: list[bytes] = []
    for cycle in range(3):
        ballast.write_bytes(bytes(300 << 10))
        append_until_full(log, written)
        end, position = log.log_end, log.active_position
        for _ in range(3):
            with pytest.raises(DiskFullError):
                append(log, 5, size_bytes=1_000)
        assert (log.log_end, log.active_position) == (end, position)
        assert batches_of(log) == written, f"reads go on in cycle {cycle}"
        ballast.unlink()
        written.append(append(log, 5, size_bytes=1_000))
        kept = log.log_end - 20
        log.truncate_before(kept)
        log.unlink_deleted(1 << 62)
        written = batches_of(log)
    log.close()
    log = open_log(small_tmpfs / "p", segment_bytes=128 << 10)
    assert batches_of(log) == written
    log.close()


@pytest.mark.root
def test_t10_a_mapped_reader_survives_a_full_disk(small_tmpfs: Path) -> None:
    """Log bytes never go through a mapping, and what a reader reads has its pages: no SIGBUS."""
    log = open_log(small_tmpfs / "p", segment_bytes=256 << 10)
    written = [append(log, 5, size_bytes=1_000)]
    path = log_files(small_tmpfs / "p")[0]
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    append_until_full(log, written)
    content = path.read_bytes()[: len(mapped)].rstrip(b"\0")
    assert len(content) > len(written[0])
    assert mapped[: len(content)] == content == b"".join(written)[: len(content)]
    mapped.close()
    log.close()


@pytest.mark.root
def test_t10_a_log_opens_and_recovers_on_a_full_disk(small_tmpfs: Path) -> None:
    log = open_log(small_tmpfs / "p", segment_bytes=128 << 10)
    written = fill(log, 200)
    kill(log)
    for path in (small_tmpfs / "p").glob("*.*index"):
        path.unlink()
    with (small_tmpfs / "ballast").open("wb", buffering=0) as file:
        while file.write(bytes(4096)) == 4096 and os.statvfs(small_tmpfs).f_bavail:
            pass
    log = open_log(small_tmpfs / "p", segment_bytes=128 << 10)
    assert batches_of(log) == written
    log.close()


def test_a_short_write_and_a_full_disk_leave_the_log_as_it_was(tmp_path: Path) -> None:
    files = FailingFiles()
    log = open_log(tmp_path / "p", files=files)
    written = fill(log, 5)
    for room_bytes in range(0, 400, 7):
        end = log.log_end
        files.room_bytes = room_bytes
        with pytest.raises(DiskFullError):
            append(log, 5, size_bytes=100)
        files.room_bytes = None
        assert log.log_end == end
        behind = log_files(tmp_path / "p")[-1].read_bytes()[log.active_position :]
        assert not any(behind), "nothing of the failed batch is left"
        assert batches_of(log) == written
        written.append(append(log, 1, size_bytes=10))
    kill(log)
    log = open_log(tmp_path / "p")
    assert batches_of(log) == written
    log.close()


def test_short_writes_are_finished(tmp_path: Path) -> None:
    class Halving(Files):
        def write_some(self, fd: int, data: bytes | bytearray | memoryview, position: int) -> int:
            with memoryview(data) as view, view[: max(1, len(view) // 2)] as part:
                return super().write_some(fd, part, position)

    log = open_log(tmp_path / "p", files=Halving())
    written = fill(log, 100)
    assert batches_of(log) == written
    log.close()
    log = open_log(tmp_path / "p")
    assert batches_of(log) == written
    log.close()


def test_room_below_disk_free_min_bytes_is_left_alone(tmp_path: Path) -> None:
    class AlmostFull(Files):
        free = 1 << 20

        def free_bytes(self, path: Path) -> int:
            return self.free

    files = AlmostFull()
    log = open_log(tmp_path / "p", files=files, segment_bytes=1 << 20, disk_free_min_bytes=900_000)
    written: list[bytes] = []
    append_until_full(log, written, after_each=lambda: setattr(files, "free", (1 << 20) - allocated_bytes(log)))
    assert files.free >= 900_000
    assert batches_of(log) == written
    files.free = 1 << 30
    append(log, 5, size_bytes=1_000)
    log.close()


def test_a_failed_roll_leaves_no_trace(tmp_path: Path) -> None:
    files = FailingFiles()
    log = open_log(tmp_path / "p", files=files)
    written = fill(log, 10)
    names = sorted(path.name for path in (tmp_path / "p").iterdir())
    for call, number in (("open", errno.EMFILE), ("open", errno.ENOSPC), ("punch_hole", errno.EIO)):
        for skipped in range(3):
            files.calls.clear()
            files.fail(call, number, after=skipped)
            try:
                log.roll()
            except BrokerError:
                pass
            files.failures.clear()
            assert batches_of(log) == written
            if log.segment_count == 1:
                assert sorted(path.name for path in (tmp_path / "p").iterdir()) == names
            written.append(append(log))
            kill(log)
            log = open_log(tmp_path / "p", files=files)
            assert batches_of(log) == written
            names = sorted(path.name for path in (tmp_path / "p").iterdir())
    log.close()


def test_t09_a_failed_sync_is_fatal_for_the_copy(tmp_path: Path) -> None:
    files = FailingFiles()
    log = open_log(tmp_path / "p", files=files)
    append(log)
    assert log.flush() == 3
    append(log)
    files.fail("fdatasync")
    with pytest.raises(StorageError):
        log.flush()
    assert log.durable_end == 3
    syncs = files.calls.count("fdatasync")
    for attempt in (lambda: append(log), lambda: log.read(0, 100, 3), log.flush, lambda: log.retain(0, 3)):
        with pytest.raises(StorageError, match="out of use"):
            attempt()
    log.close()
    assert files.calls.count("fdatasync") == syncs, "a failed sync is never tried again"
    assert not (tmp_path / "p" / "clean-shutdown").exists()


def test_a_failed_sync_of_the_directory_refuses_the_first_batch(tmp_path: Path) -> None:
    files = FailingFiles()
    log = open_log(tmp_path / "p", files=files)
    files.fail("fsync_directory")
    with pytest.raises(StorageError):
        append(log)
    assert log.log_end == 0
    with pytest.raises(StorageError, match="out of use"):
        append(log)
    log.close()


def test_a_write_error_whose_traces_cannot_be_removed_is_fatal(tmp_path: Path) -> None:
    files = FailingFiles()
    log = open_log(tmp_path / "p", files=files)
    append(log)
    files.fail("write")
    files.fail("punch_hole")
    with pytest.raises(StorageError):
        append(log)
    with pytest.raises(StorageError, match="out of use"):
        append(log)
    log.close()


_FEW_DESCRIPTORS = """
import os, resource, sys
from pathlib import Path
from tests.storage_logs import append, batches_of, fill, open_log
from zbroker.errors import TooManyOpenFilesError
from zbroker.storage.files import Files
from zbroker.storage.log import Log
from zbroker.storage.handles import Handles

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
files = Files()
handles = Handles(files, 512)
root = Path(sys.argv[1])
before = len(os.listdir("/proc/self/fd"))
logs = [open_log(root / str(number), files=files, handles=handles) for number in range(8)]
written = [fill(log, 250) for log in logs]
assert sum(log.segment_count for log in logs) >= 60, sum(log.segment_count for log in logs)
for _ in range(2):
    assert [batches_of(log) for log in logs] == written
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
assert [batches_of(log) for log in logs] == written, "one descriptor is handed round"
for log in logs:
    log._segments.release()
while True:
    try:
        taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        break
ends = [log.log_end for log in logs]
for log in logs:
    try:
        append(log)
    except TooManyOpenFilesError:
        continue
    raise AssertionError("no descriptor is free, and the append passed")
assert [log.log_end for log in logs] == ends
for fd in taken:
    os.close(fd)
written = [[*batches, append(log)] for batches, log in zip(written, logs)]
for log in logs:
    log.flush()
    log.close()
assert len(os.listdir("/proc/self/fd")) == before, os.listdir("/proc/self/fd")
logs = [open_log(root / str(number), files=files, handles=handles) for number in range(8)]
assert [batches_of(log) for log in logs] == written
for log in logs:
    log.close()
"""


def test_t11_few_descriptors_serve_many_segments_and_none_is_a_typed_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FEW_DESCRIPTORS, str(tmp_path)],
        cwd=Path(__file__).resolve().parent.parent.parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
