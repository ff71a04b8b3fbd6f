"""What the log asks of the disk: appends one behind the other, and lookups in an index that is in memory."""

from __future__ import annotations

import os
from pathlib import Path

from tests.storage_logs import SMALL, append, fill, log_files, open_log
from zbroker.storage.files import Buffer, Files
from zbroker.storage.handles import Handles
from zbroker.storage.layout import INDEX, TIMEINDEX
from zbroker.storage.store import DiskSpace, Store


class WatchedFiles(Files):
    """Files that note every call on a named file."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[tuple[str, int, int]] = []
        self.touched: list[str] = []
        self._names: dict[int, str] = {}

    def open(self, path: Path | str, flags: int = os.O_RDONLY) -> int:
        fd = super().open(path, flags)
        self._names[fd] = str(path)
        self.touched.append(str(path))
        return fd

    def write_some(self, fd: int, data: Buffer, position: int) -> int:
        count = super().write_some(fd, data, position)
        self.writes.append((self._names[fd], position, count))
        return count

    def pread(self, fd: int, size_bytes: int, position: int) -> bytes:
        self.touched.append(self._names[fd])
        return super().pread(fd, size_bytes, position)

    def read_file(self, path: Path, size_bytes_max: int) -> bytes | None:
        self.touched.append(str(path))
        return super().read_file(path, size_bytes_max)


def test_a_log_is_written_from_its_first_byte_to_its_last_and_never_anywhere_else(tmp_path: Path) -> None:
    files = WatchedFiles()
    log = open_log(tmp_path / "log", files=files)
    fill(log, 200)
    ends: dict[str, int] = {}
    for name, position, count in files.writes:
        if name.endswith(".log"):
            assert position == ends.get(name, 0), f"{name}: the head would have to move"
            ends[name] = position + count
    log.close()
    assert len(ends) == len(log_files(tmp_path / "log")) > 5
    assert sum(ends.values()) > 5 * SMALL["segment_bytes"] - 4096


def test_a_lookup_in_a_used_index_touches_no_index_file(tmp_path: Path) -> None:
    files = WatchedFiles()
    log = open_log(tmp_path / "log", files=files, segment_bytes=1 << 20)
    fill(log, 200, timestamp_ms=5)
    first = [log.position_of(offset) for offset in range(log.log_end)]
    files.touched.clear()
    for path in (tmp_path / "log").glob("*index"):
        path.write_bytes(b"\xff" * 8 * 12)
    assert [log.position_of(offset) for offset in range(log.log_end)] == first
    assert log.offset_for_time(5, log.log_end) == (0, 5)
    assert [name for name in files.touched if name.endswith((INDEX, TIMEINDEX))] == []
    assert len({position for _, position in first}) == 200
    log.close()


def test_an_append_says_where_it_wrote_and_its_end_moves_by_as_many_bytes(tmp_path: Path) -> None:
    files = Files()
    store = Store(tmp_path / f"{0:020}.log", files, Handles(files, 8), DiskSpace(False, 0), limit=1 << 20)
    store.create()
    written = 0
    for number in range(1, 50):
        data = bytes([number]) * (number * 37)
        assert store.append(data, len(data)) == written
        written += len(data)
        assert store.end == written
        assert files.pread(store.fd(), len(data), written - len(data)) == data
    files.close(store.fd())


def test_the_notes_of_a_write_are_true(tmp_path: Path) -> None:
    """The watched files of this page would show a write that is out of order."""
    files = WatchedFiles()
    log = open_log(tmp_path / "log", files=files)
    append(log)
    fd = files.open(log_files(tmp_path / "log")[0], os.O_WRONLY)
    files.pwrite(fd, b"\0", 3)
    assert files.writes[-1][1:] == (3, 1)
    files.close(fd)
    log.close()
