"""T06: a process that dies before, after, or half-way through every single call of a long script.

The script is drawn from ZBROKER_SEED, by default always the same one; the soak draws others.
"""

from __future__ import annotations

import mmap
import os
import shutil
from pathlib import Path

import pytest

from tests.crash_script import Life, check_copy, check_metadata, open_copy
from tests.storage_logs import RebootableFiles, append, batches_of, kill, memory_path, open_log
from zbroker.storage.files import Buffer
from zbroker.storage.layout import DELETED

__all__ = ["memory_path"]

SEED = int(os.environ.get("ZBROKER_SEED", "20261124"))


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
        self._open: set[int] = set()

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
        if flags & (os.O_CREAT | os.O_TRUNC):
            self._changes()
        fd = super().open(path, flags)
        self._open.add(fd)
        if flags & (os.O_CREAT | os.O_TRUNC):
            self._changed()
        return fd

    def duplicate(self, fd: int) -> int:
        self._open.add(copy := super().duplicate(fd))
        return copy

    def close(self, fd: int) -> None:
        self._open.discard(fd)
        super().close(fd)

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

    def fsync_directory(self, path: Path) -> None:
        self._changes()
        super().fsync_directory(path)
        self._changed()

    def shorten(self, fd: int, size_bytes: int) -> None:
        self._changes()
        super().shorten(fd, size_bytes)
        self._changed()

    def bury(self) -> None:
        """Close what the dead process had open, and its locks with it."""
        for fd in list(self._open):
            self.close(fd)


def life_until(directory: Path, seed: int, fatal_call: int, moment: str) -> tuple[Life, int]:
    """Live until the death, if it comes; and how many calls there were."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    files = MortalFiles(fatal_call, moment)
    files.make_directory(directory / "metadata")
    life = Life(directory / "p", files, seed)
    try:
        life.run()
    except Died:
        pass
    finally:
        files.bury()
    return life, files.count


def contents(directory: Path) -> dict[str, bytes]:
    """Every file but those that wait for their unlink."""
    paths = (path for path in directory.rglob("*") if path.is_file() and path.suffix != DELETED)
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def recover(directory: Path, life: Life) -> tuple[list[bytes], dict[str, bytes]]:
    """Open what the dead process left, check it, and die again: the batches and every file's bytes."""
    files = RebootableFiles()
    log = open_copy(directory / "p", files)
    found = check_copy(log, files, life.promises, has_power=True)
    kill(log)
    check_metadata(directory / "metadata", files, life.promises, has_power=True)
    return found, contents(directory)


@pytest.mark.parametrize("moment", ["before", "half", "after"])
def test_t06_a_death_at_any_call_loses_nothing_that_was_acknowledged(
    memory_path: Path, moment: str, request: pytest.FixtureRequest
) -> None:
    request.node.add_report_section("call", "seed", f"ZBROKER_SEED={SEED}")
    directory = memory_path / "case"
    _, calls = life_until(directory, SEED, 0, moment)
    assert calls > 150, f"the script made only {calls} calls"
    for fatal_call in range(1, calls + 1):
        life, _ = life_until(directory, SEED, fatal_call, moment)
        try:
            found, first = recover(directory, life)
            again, second = recover(directory, life)
            assert (again, second) == (found, first), "recovering twice gives something else"
            log = open_copy(directory / "p", RebootableFiles())
            added = append(log, 2, epoch=1_000)
            kill(log)
            log = open_copy(directory / "p", RebootableFiles())
            assert batches_of(log) == [*found, added]
            log.close()
        except Exception as error:
            raise AssertionError(f"ZBROKER_SEED={SEED}, death {moment} call {fatal_call}: {error!r}") from error


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
