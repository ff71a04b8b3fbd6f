"""A process that dies before, after, or half-way through every call of a compaction: no last record is lost."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.compacting import append_pairs, compact, expected, open_copy, records_of
from tests.fault.test_storage_death import Died, MortalFiles
from tests.storage_logs import RebootableFiles, batches_of, kill, memory_path
from zbroker.errors import OffsetOutOfRangeError
from zbroker.storage.files import Files
from zbroker.storage.layout import DELETED, TEMPORARY, parse_swap_name

__all__ = ["memory_path"]

BATCHES = 60


def fill(directory: Path) -> None:
    """A log of several segments in which each of a few keys comes often."""
    log = open_copy(directory, RebootableFiles())
    for number in range(BATCHES):
        append_pairs(log, [(b"%d" % (number * 7 % 5), b"v" * 100), (b"only-%d" % number, b"w")], epoch=1 + number // 25)
        if number % 12 == 11:
            log.roll()
    log.flush()
    log.save_high_watermark(log.log_end)
    log.close()


def content(directory: Path) -> tuple[list[Any], bytes]:
    """Records and bytes after a start; what a dead process left is gone."""
    log = open_copy(directory, RebootableFiles())
    found = records_of(log), b"".join(batches_of(log))
    assert log.log_end == 2 * BATCHES
    kill(log)
    for path in directory.iterdir():
        assert not path.name.endswith((DELETED, TEMPORARY)), path
        assert parse_swap_name(path.name) is None
    return found


@pytest.mark.parametrize("moment", ["before", "half", "after"])
def test_a_death_at_any_call_of_a_compaction_leaves_every_last_record(memory_path: Path, moment: str) -> None:
    fill(memory_path / "start")
    whole, _ = content(memory_path / "start")
    least = expected(whole, whole[-1][0])
    outcomes, fatal_call, is_over = set(), 0, False
    while not is_over:
        fatal_call += 1
        directory = memory_path / "copy"
        shutil.copytree(memory_path / "start", directory)
        files = MortalFiles(fatal_call, moment)
        log = None
        try:
            log = open_copy(directory, files)
            compact(log, files, step_bytes=1 << 20)
            is_over = files.count < fatal_call
        except Died:
            pass
        finally:
            if log is not None:
                kill(log)
        found, data = content(directory)
        offsets = {one[0] for one in found}
        assert set(found) <= set(whole)
        assert offsets >= {one[0] for one in least}, f"call {fatal_call}"
        assert content(directory) == (found, data), "a second start finds the same bytes"
        outcomes.add(len(found))
        shutil.rmtree(directory)
    assert fatal_call > 30
    assert {len(whole), len(least)} <= outcomes
    assert len(outcomes) > 2, "some deaths were between two groups"


def test_what_was_compacted_stays_compacted_after_a_death(memory_path: Path) -> None:
    fill(memory_path / "start")
    log = open_copy(memory_path / "start", Files())
    before = records_of(log)
    work = compact(log, step_bytes=1 << 30)
    assert work is not None
    after = b"".join(batches_of(log))
    kill(log)
    log = open_copy(memory_path / "start", Files())
    assert b"".join(batches_of(log)) == after
    assert records_of(log) == expected(before, work.end_offset)
    log.close()


def test_a_cut_gives_up_what_was_about_to_replace_others(memory_path: Path) -> None:
    fill(memory_path / "start")
    log = open_copy(memory_path / "start", Files())
    finish = log.finish_swap
    log.finish_swap = lambda new: True  # type: ignore[method-assign]  # the swap stays begun
    compact(log, step_bytes=1 << 30)
    log.finish_swap = finish  # type: ignore[method-assign]
    assert [path for path in log.directory.iterdir() if parse_swap_name(path.name)]
    log.truncate_to(30)
    left = records_of(log)
    assert not [path for path in log.directory.iterdir() if parse_swap_name(path.name)]
    assert not (log.directory / "compaction").exists()
    assert left[-1][0] < 30
    kill(log)
    log = open_copy(memory_path / "start", Files())
    assert records_of(log) == left
    with pytest.raises(OffsetOutOfRangeError):
        log.read(60, 1, 60)
    log.close()
