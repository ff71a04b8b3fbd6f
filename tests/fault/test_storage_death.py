"""T06: a process that dies before, after, or half-way through every single call of a long script."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage_logs import RebootableFiles, append, batches_of, kill, log_files, memory_path, open_log
from zbroker.storage.files import Buffer
from zbroker.storage.log import Log

__all__ = ["memory_path"]


class Died(BaseException):
    """The process is gone: nothing that the code does afterwards reaches a file."""


class MortalFiles(RebootableFiles):
    """Files of a process that dies at one call that changes something. Afterwards no call has an effect."""

    def __init__(self, fatal_call: int, moment: str) -> None:
        super().__init__()
        self.count = 0
        self._fatal_call = fatal_call
        self._moment = moment
        self._is_dead = False

    def _changes(self) -> None:
        """A call that changes something begins. Raises when the process is dead, or dies before it."""
        if self._is_dead:
            raise Died
        self.count += 1
        if self.count == self._fatal_call:
            self._is_dead = True
            if self._moment == "before":
                raise Died

    def _changed(self) -> None:
        if self._is_dead:
            raise Died

    def write_some(self, fd: int, data: Buffer, position: int) -> int:
        self._changes()
        if self._is_dead and self._moment == "half":
            data = bytes(data)[: len(data) // 2]
        count = super().write_some(fd, data, position)
        self._changed()
        return count

    def open(self, path: Path | str, flags: int = os.O_RDONLY) -> int:
        if not flags & (os.O_CREAT | os.O_TRUNC):
            return super().open(path, flags)
        self._changes()
        fd = super().open(path, flags)
        if self._is_dead:
            self.close(fd)
        self._changed()
        return fd

    def rename(self, source: Path, target: Path) -> None:
        self._changes()
        super().rename(source, target)
        self._changed()

    def unlink(self, path: Path) -> None:
        self._changes()
        super().unlink(path)
        self._changed()

    def punch_hole(self, fd: int, position: int, size_bytes: int) -> None:
        self._changes()
        super().punch_hole(fd, position, size_bytes)
        self._changed()

    def fallocate(self, fd: int, position: int, size_bytes: int) -> bool:
        self._changes()
        done = super().fallocate(fd, position, size_bytes)
        self._changed()
        return done

    def fdatasync(self, fd: int) -> None:
        self._changes()
        super().fdatasync(fd)
        self._changed()


class Promises:
    """What the dying process had told others: acknowledged batches, the log start, the saved high watermark."""

    def __init__(self) -> None:
        self.acknowledged: list[bytes] = []
        self.log_start = 0


def script(directory: Path, files: MortalFiles, promises: Promises) -> Iterator[Log]:
    """Some sixty operations; yields the log whenever it has a new one, so that the caller can let go of it."""
    log = open_log(directory, files=files, retention_bytes=9_000, file_delete_delay_ms=0)
    yield log
    for number in range(75):
        promises.acknowledged.append(append(log, 1 + number % 4, size_bytes=60, epoch=1 + number // 25))
        if number % 12 == 11:
            log.flush()
        if number % 10 == 9:
            log.save_high_watermark(log.log_end)
        if number % 20 == 19:
            promises.log_start = log.retain(0, log.log_end)
            log.unlink_deleted(1 << 62)
        if number == 40:
            log.close()
            log = open_log(directory, files=files, retention_bytes=9_000, file_delete_delay_ms=0)
            yield log
        if number == 65:
            promises.log_start = log.truncate_before(log.log_end - 15)
    log.close()


def run_until_death(directory: Path, fatal_call: int, moment: str) -> tuple[Promises, bool]:
    """(what was promised, whether it died)."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    files = MortalFiles(fatal_call, moment)
    promises = Promises()
    log: Log | None = None
    try:
        for opened in script(directory / "p", files, promises):
            log = opened
    except Died:
        if log is not None:
            log._segments.release()
            if log._lock_fd >= 0:
                os.close(log._lock_fd)
        return promises, True
    return promises, False


@pytest.mark.parametrize("moment", ["before", "half", "after"])
def test_t06_a_death_at_any_call_loses_nothing_that_was_acknowledged(memory_path: Path, moment: str) -> None:
    fatal_call = 0
    while True:
        fatal_call += 1
        promises, died = run_until_death(memory_path / "case", fatal_call, moment)
        if not died:
            break
        log = open_log(memory_path / "case" / "p")
        found = batches_of(log)
        ends = [log.log_start, log.log_end]
        kill(log)
        acknowledged = promises.acknowledged
        first = next((number for number, batch in enumerate(acknowledged) if found and batch == found[0]), None)
        if acknowledged and found and first is not None:
            expected = acknowledged[first:]
            assert found[: len(expected)] == expected, f"call {fatal_call}"
            assert len(found) <= len(expected) + 1, f"call {fatal_call}: at most the batch in flight may have arrived"
        else:
            assert len(acknowledged) == 0 or ends[0] == ends[1], f"call {fatal_call}: {ends}"
        assert ends[0] >= promises.log_start, f"call {fatal_call}: deleted records came back"
        before = {path.name: path.read_bytes() for path in log_files(memory_path / "case" / "p")}
        log = open_log(memory_path / "case" / "p")
        assert [log.log_start, log.log_end] == ends
        assert batches_of(log) == found
        added = append(log, 2, epoch=9)
        kill(log)
        log = open_log(memory_path / "case" / "p")
        assert batches_of(log) == [*found, added], f"call {fatal_call}"
        log.close()
        assert before, "there is always a segment"
    assert fatal_call > 150, f"the script made only {fatal_call} calls"


def test_t39_mapped_readers_outlive_roll_retention_and_deletion(tmp_path: Path) -> None:
    """Readers map every segment as it appears and read it to its end, while the log rolls and deletes beside them."""
    log = open_log(tmp_path / "p", segment_bytes=8_192, retention_bytes=20_000, file_delete_delay_ms=0)
    maps: dict[str, mmap.mmap] = {}
    expected: dict[str, bytes] = {}
    for _ in range(400):
        batch = append(log, 3)
        name = f"{log.active_base:020d}.log"
        expected[name] = expected.get(name, b"") + batch
        path = tmp_path / "p" / name
        if name not in maps:
            with path.open("rb") as file:
                maps[name] = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        log.retain(0, log.log_end)
        log.unlink_deleted(1 << 62)
    log.delete()
    assert len(maps) > 5
    for name, mapped in maps.items():
        content = expected[name]
        assert mapped[: len(content)] == content, "every byte, though the file is gone"
        margin = mapped[len(content) : len(content) + 61]
        assert not any(margin), "the end shows itself as zeros"
        mapped.close()
