"""A log that takes batches over from another, and is cut where the leader's history parts from its own."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.storage_logs import SMALL, FailingFiles, append, batches_of, fill, kill, log_files, open_log
from zbroker.clock import ManualClock
from zbroker.config.schema import TopicConfig
from zbroker.errors import OffsetOutOfRangeError, StorageError
from zbroker.record.batch import batches_in
from zbroker.storage.copied_log import CopiedLog
from zbroker.storage.files import Files
from zbroker.storage.log import Log


def open_copy(directory: Path, files: Files | None = None, **settings: object) -> CopiedLog:
    config = TopicConfig(**{**SMALL, **settings})  # type: ignore[arg-type]  # the settings' types are TopicConfig's
    return CopiedLog.open(directory, config, files or Files(), ManualClock())


def take_over(leader: Log, copy: CopiedLog, *, max_bytes: int = 1 << 16) -> None:
    """Copy what is missing, and roll where the leader rolled."""
    while copy.log_end < leader.log_end:
        base, _ = leader.position_of(copy.log_end)
        if base == copy.log_end and copy.active_base != base:
            copy.roll()
        data = leader.read(copy.log_end, max_bytes, leader.log_end)
        copy.append_copied(data, [header for _, header in batches_in(data)])


def test_a_copy_has_the_leaders_bytes_files_and_epochs(tmp_path: Path) -> None:
    leader, copy = open_log(tmp_path / "leader"), open_copy(tmp_path / "copy")
    for epoch in (1, 4, 5):
        fill(leader, 40, epoch=epoch)
    take_over(leader, copy)
    assert copy.log_end == leader.log_end
    assert copy.last_epoch == 5
    assert copy.epochs.starts == leader.epochs.starts
    assert batches_of(copy) == batches_of(leader)
    assert len(log_files(copy.directory)) > 3
    assert [path.name for path in log_files(copy.directory)] == [path.name for path in log_files(leader.directory)]
    for one, other in zip(log_files(copy.directory), log_files(leader.directory), strict=True):
        assert one.read_bytes().rstrip(b"\0") == other.read_bytes().rstrip(b"\0")
    leader.close()
    copy.close()
    for suffix in ("*.index", "*.timeindex"):
        names = sorted(path.name for path in leader.directory.glob(suffix))
        for name in names:
            assert (copy.directory / name).read_bytes() == (leader.directory / name).read_bytes()


@pytest.mark.parametrize("seed", range(30))
def test_a_cut_copy_opens_again_with_whole_batches_below_the_offset(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    copy = open_copy(tmp_path / "copy")
    batches = fill(copy, rng.randrange(1, 120), epoch=2)
    copy.save_high_watermark(copy.log_end)
    if rng.random() < 0.5:
        copy.flush()
    offset = rng.randrange(copy.log_end + 1)
    end = copy.truncate_to(offset)
    kept = [batch for batch in batches if next(batches_in(batch))[1].next_offset <= offset]
    assert end == copy.log_end == sum(next(batches_in(batch))[1].record_count for batch in kept)
    assert batches_of(copy) == kept
    more = fill(copy, rng.randrange(5), epoch=3)
    is_clean = rng.random() < 0.5
    copy.close(clean=is_clean)
    again = open_copy(tmp_path / "copy")
    assert batches_of(again) == kept + more, f"seed {seed}"
    assert again.last_epoch == (3 if more else 2 if kept else -1)
    again.close()


def test_a_cut_changes_no_byte_that_a_reader_has_mapped(tmp_path: Path) -> None:
    copy = open_copy(tmp_path / "copy", segment_bytes=1 << 20)
    fill(copy, 50)
    path = log_files(copy.directory)[0]
    before = path.read_bytes()
    with path.open("rb") as mapped:
        copy.truncate_to(10)
        fill(copy, 50, epoch=9)
        assert mapped.read() == before
    assert path.read_bytes() != before
    kill(copy)


def test_what_was_being_flushed_when_the_log_was_cut_does_not_count(tmp_path: Path) -> None:
    copy = open_copy(tmp_path / "copy")
    fill(copy, 20)
    job = copy.begin_flush()
    job.run()
    copy.truncate_to(5)
    fill(copy, 20, epoch=2)
    durable = copy.durable_end
    assert durable <= 5
    assert copy.finish_flush(job) == durable
    assert copy.flush() == copy.log_end
    kill(copy)


@pytest.mark.parametrize("offset", [0, 7, 1_000])
def test_a_copy_begins_anew_where_the_leaders_log_begins(tmp_path: Path, offset: int) -> None:
    copy = open_copy(tmp_path / "copy")
    fill(copy, 40)
    copy.save_high_watermark(copy.log_end)
    copy.flush()
    copy.reset_to(offset)
    assert (copy.log_start, copy.log_end, copy.durable_end) == (offset, offset, offset)
    assert batches_of(copy) == []
    assert copy.last_epoch == -1
    more = fill(copy, 3, epoch=7)
    kill(copy)
    again = open_copy(tmp_path / "copy")
    assert (again.log_start, batches_of(again)) == (offset, more)
    again.close()


def test_a_cut_below_the_log_start_is_refused(tmp_path: Path) -> None:
    copy = open_copy(tmp_path / "copy")
    fill(copy, 40)
    copy.truncate_before(30)
    with pytest.raises(OffsetOutOfRangeError):
        copy.truncate_to(29)
    kill(copy)


class DeathError(Exception):
    """The process is gone."""


class DyingFiles(FailingFiles):
    """Files of a process that dies before its n-th call that changes something."""

    left = 1 << 30

    def _step(self) -> None:
        if self.left == 0:
            raise DeathError
        self.left -= 1

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, position: int) -> None:
        self._step()
        super().pwrite(fd, data, position)

    def fdatasync(self, fd: int) -> None:
        self._step()
        super().fdatasync(fd)


@pytest.mark.parametrize("way", ["truncate", "reset"])
def test_t06_a_death_at_any_step_of_a_cut_leaves_a_log_that_opens_with_a_part_of_the_old_one(
    tmp_path: Path, way: str
) -> None:
    for step in range(200):
        directory = tmp_path / str(step)
        files = DyingFiles()
        copy = open_copy(directory, files)
        old = fill(copy, 60, epoch=2)
        copy.flush()
        copy.save_high_watermark(copy.log_end)
        files.left = step
        try:
            copy.truncate_to(31) if way == "truncate" else copy.reset_to(31)
            is_done = True
        except DeathError:
            is_done = False
        files.left = 1 << 30
        kill(copy)
        again = open_copy(directory, files)
        found = batches_of(again)
        assert b"".join(found) in b"".join(old), f"step {step}"
        if way == "truncate":
            kept = [batch for batch in old if next(batches_in(batch))[1].next_offset <= 31]
            assert found[: len(kept)] == kept, f"step {step}"
        append(again, epoch=3)
        again.close()
        if is_done:
            return
    raise AssertionError("the cut never ended")


def test_a_cut_that_fails_puts_the_log_out_of_use(tmp_path: Path) -> None:
    files = FailingFiles()
    copy = open_copy(tmp_path / "copy", files)
    fill(copy, 40)
    files.fail("fdatasync")
    with pytest.raises(StorageError):
        copy.truncate_to(5)
    with pytest.raises(StorageError):
        append(copy)
    assert copy.failure is not None
    kill(copy)
