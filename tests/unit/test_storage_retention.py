"""Which segments go, and how: renamed, then unlinked; never past the high watermark, never under a reader."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.storage_logs import append, batches_of, fill, kill, log_files, open_log
from zbroker.clock import NS_PER_MS, ManualClock
from zbroker.errors import OffsetOutOfRangeError
from zbroker.storage.files import Files
from zbroker.storage.retention import count_expired, sweep_deleted_copies


class Piece(NamedTuple):
    """A segment, as far as retention is concerned."""

    next_offset: int
    size_bytes: int
    timestamp_max: int


PIECES = [Piece(10, 100, 1_000), Piece(20, 100, 3_000), Piece(30, 100, 2_000), Piece(40, 50, 4_000)]


@pytest.mark.parametrize(
    ("rule", "count"),
    [
        ({"retention_ms": 500, "now_ms": 1_500}, 0),
        ({"retention_ms": 500, "now_ms": 1_501}, 1),
        ({"retention_ms": 500, "now_ms": 2_600}, 1),
        ({"retention_ms": 500, "now_ms": 3_501}, 3),
        ({"retention_ms": 500, "now_ms": 9_999}, 4),
        ({"retention_ms": 500, "now_ms": 9_999, "high_watermark": 29}, 2),
        ({"retention_bytes": 350}, 0),
        ({"retention_bytes": 251}, 0),
        ({"retention_bytes": 250}, 1),
        ({"retention_bytes": 149}, 2),
        ({"retention_bytes": 0}, 4),
        ({"log_start": 19}, 1),
        ({"log_start": 20}, 2),
    ],
)
def test_segments_expire_by_age_by_size_and_below_the_log_start(rule: dict[str, int], count: int) -> None:
    settings = {"now_ms": 0, "log_start": 0, "high_watermark": 40, "retention_ms": -1, "retention_bytes": -1}
    assert count_expired(PIECES, **{**settings, **rule}) == count


def test_old_segments_go_and_readers_are_told(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p", retention_bytes=9_000)
    written = fill(log, 200)
    bases = [int(path.stem) for path in log_files(tmp_path / "p")]
    start = log.retain(0, log.log_end)
    assert start in bases[1:]
    assert start == log.log_start
    assert 9_000 <= log.size_bytes < 9_000 + 4_096
    assert batches_of(log) == written[-len(batches_of(log)) :]
    with pytest.raises(OffsetOutOfRangeError):
        log.read(start - 1, 100, log.log_end)
    log.close()
    log = open_log(tmp_path / "p")
    assert log.log_start == start
    log.close()


def test_nothing_goes_past_the_high_watermark(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p", retention_bytes=0)
    fill(log, 200)
    bases = [int(path.stem) for path in log_files(tmp_path / "p")]
    assert log.retain(0, bases[2]) == bases[2]
    assert log.retain(0, bases[3] - 1) == bases[2]
    log.close()


def test_the_active_segment_goes_only_after_it_was_rolled(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p", retention_ms=1_000)
    for _ in range(3):
        append(log, timestamp_ms=5_000)
    assert log.retain(6_000, 9) == 0
    assert log.retain(6_001, 8) == 0, "part of it lies past the high watermark"
    assert log.retain(6_001, 9) == 9
    assert (log.segment_count, log.active_base, log.active_position, log.size_bytes) == (1, 9, 0, 0)
    assert log.retain(99_999, 9) == 9
    append(log, timestamp_ms=99_999)
    log.close()
    log = open_log(tmp_path / "p")
    assert (log.log_start, log.log_end) == (9, 12)
    log.close()


def test_files_are_renamed_at_once_and_unlinked_after_the_delay(tmp_path: Path) -> None:
    clock = ManualClock()
    log = open_log(tmp_path / "p", clock=clock, retention_bytes=0, file_delete_delay_ms=500)
    fill(log, 100)
    first = log_files(tmp_path / "p")[0]
    with first.open("rb") as file:
        content = file.read()
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    log.retain(0, log.log_end)
    assert not first.exists()
    assert first.with_name(first.name + ".deleted").exists()
    clock.advance(499)
    assert log.unlink_deleted(clock.now_ns()) == 0
    clock.advance(1)
    assert log.unlink_deleted(clock.now_ns()) > 0
    assert not list((tmp_path / "p").glob("*.deleted"))
    assert mapped[:] == content, "who has it mapped keeps its bytes"
    mapped.close()
    log.close()


def test_files_of_a_dead_owner_that_wait_for_their_unlink_go_at_the_next_start(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p", retention_bytes=0)
    fill(log, 100)
    log.retain(0, log.log_end)
    kill(log)
    assert list((tmp_path / "p").glob("*.deleted"))
    kill(open_log(tmp_path / "p"))
    assert not list((tmp_path / "p").glob("*.deleted"))


def test_records_below_an_offset_can_be_deleted(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    fill(log, 100)
    bases = [int(path.stem) for path in log_files(tmp_path / "p")]
    middle = bases[1] + 3
    assert log.truncate_before(middle) == middle
    assert [int(path.stem) for path in log_files(tmp_path / "p")] == bases[1:]
    assert log.truncate_before(2) == middle, "the log start never goes back"
    with pytest.raises(OffsetOutOfRangeError):
        log.read(middle - 1, 100, log.log_end)
    with pytest.raises(OffsetOutOfRangeError):
        log.truncate_before(log.log_end + 1)
    kill(log)
    log = open_log(tmp_path / "p")
    assert log.log_start == middle
    end = log.log_end
    assert log.truncate_before(end) == end
    assert (log.size_bytes, log.segment_count) == (0, 1)
    append(log, 2)
    assert len(batches_of(log)) == 1
    kill(log)
    log = open_log(tmp_path / "p")
    assert (log.log_start, log.log_end) == (end, end + 2)
    log.close()


def test_a_deleted_segment_that_came_back_with_a_power_cut_goes_again(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    fill(log, 100)
    first = log_files(tmp_path / "p")[0]
    content = first.read_bytes()
    second_base = int(log_files(tmp_path / "p")[1].stem)
    log.truncate_before(second_base)
    log.close()
    first.write_bytes(content)
    log = open_log(tmp_path / "p")
    assert log.log_start == second_base
    assert not first.exists()
    log.close()


def test_copies_whose_deletion_was_interrupted_are_swept(tmp_path: Path) -> None:
    log = open_log(tmp_path / "t00000001-0")
    append(log)
    kill(log)
    (tmp_path / "t00000001-0").rename(tmp_path / "t00000001-0.deleted")
    assert sweep_deleted_copies(tmp_path, Files()) == 1
    assert list(tmp_path.iterdir()) == []


def test_waiting_files_keep_their_own_delay(tmp_path: Path) -> None:
    clock = ManualClock(now_ns=10 * NS_PER_MS)
    log = open_log(tmp_path / "p", clock=clock, file_delete_delay_ms=0)
    fill(log, 100)
    log.truncate_before(log.log_end)
    assert log.unlink_deleted(10 * NS_PER_MS - 1) == 0
    assert log.unlink_deleted(10 * NS_PER_MS) >= 3
    log.close()
