"""A log: append, roll, read by offset and by time, own its directory, close and open again."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from tests.storage_logs import (
    append,
    append_batch,
    batches_of,
    fill,
    kill,
    log_files,
    make_batch,
    memory_path,
    open_log,
    split,
)
from zbroker.clock import ManualClock
from zbroker.config.schema import TopicConfig
from zbroker.errors import CorruptRecordError, DirectoryLockedError, OffsetOutOfRangeError
from zbroker.record.batch import batches_in, read_header
from zbroker.storage.files import Files
from zbroker.storage.handles import Handles
from zbroker.storage.log import Log

__all__ = ["memory_path"]


def test_what_was_appended_is_read_back_in_order(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    written = fill(log, 120)
    assert log.segment_count > 2
    assert log.size_bytes == sum(map(len, written))
    for max_bytes in (1, 100, 1_000, 1 << 20):
        assert batches_of(log, max_bytes=max_bytes) == written
    log.close()


def test_a_read_begins_with_the_batch_that_holds_the_offset_and_stops_at_the_upper_offset(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p", segment_bytes=1 << 20)
    written = [append(log, 3) for _ in range(10)]
    assert list(split(log.read(4, 1 << 20, 12))) == written[1:4]
    assert list(split(log.read(5, 1, 12))) == written[1:2]
    assert list(split(log.read(3, 2 * len(written[0]), 30))) == written[1:3]
    assert log.read(12, 1 << 20, 12) == b""
    assert log.read(30, 1 << 20, 30) == b""
    log.close()


def test_an_offset_outside_the_log_is_refused(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    append(log, 3)
    for offset in (-1, 4):
        with pytest.raises(OffsetOutOfRangeError):
            log.read(offset, 100, 3)
    log.close()


def test_a_segment_rolls_before_it_would_grow_past_segment_bytes(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p", segment_bytes=4096)
    fill(log, 200)
    log.close()
    paths = log_files(tmp_path / "p")
    assert len(paths) > 3
    for path in paths:
        batches = list(batches_in(path.read_bytes()))
        assert int(path.stem) == batches[0][1].base_offset, "named by its own first offset, in 20 digits"
        assert len(path.stem) == 20
        assert batches[-1][0] + batches[-1][1].size_bytes <= 4096
        assert path.stat().st_size <= 4096


def test_log_and_indexes_come_in_pairs(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    fill(log, 200)
    names: dict[str, set[str]] = {}
    for path in (tmp_path / "p").iterdir():
        names.setdefault(path.suffix, set()).add(path.stem)
    assert names[".log"] == names[".index"] == names[".timeindex"]
    log.close()


def test_a_batch_larger_than_a_segment_gets_one_of_its_own(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p", segment_bytes=4096)
    written = [append(log), append(log, 1, size_bytes=9_000), append(log)]
    assert log.segment_count == 3
    assert batches_of(log) == written
    log.close()


def test_a_segment_rolls_when_its_first_record_is_too_old(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p", segment_bytes=1 << 20, segment_ms=1_000)
    append(log, timestamp_ms=5_000)
    append(log, timestamp_ms=6_000)
    assert log.segment_count == 1
    append(log, timestamp_ms=6_001)
    assert log.segment_count == 2
    log.retain(7_001, log.log_end)
    assert log.segment_count == 2
    log.retain(7_002, log.log_end)
    assert (log.segment_count, log.active_position) == (3, 0), "an idle segment rolls too"
    log.retain(99_999, log.log_end)
    assert log.segment_count == 3, "an empty one does not"
    log.close()


def test_position_of_names_segment_and_byte_of_every_batch(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    fill(log, 100)
    for offset in range(log.log_end):
        base, position = log.position_of(offset)
        header = read_header((tmp_path / "p" / f"{base:020d}.log").read_bytes(), position)
        assert header.base_offset <= offset < header.next_offset
    assert log.position_of(log.log_end) == (log.active_base, log.active_position)
    log.close()


def test_time_finds_the_first_record_as_late_as_asked(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    times = []
    for number in range(150):
        stamps = [1_000 + (number * 7919 + index * 31) % 400 + number * 3 for index in range(3)]
        times += stamps
        append_batch(log, make_batch(log.log_end, [b"v" * 20] * 3, timestamps_ms=stamps, timestamp_ms=min(stamps)))
    for wanted in (0, 1_000, 1_200, 1_399, 1_500, max(times), max(times) + 1):
        expected = next(((offset, time) for offset, time in enumerate(times) if time >= wanted), None)
        assert log.offset_for_time(wanted, log.log_end) == expected
    first = next(offset for offset, time in enumerate(times) if time >= 1_399)
    assert log.offset_for_time(1_399, first) is None, "not below the upper offset"
    log.truncate_before(100)
    assert log.offset_for_time(0, log.log_end) == (100, times[100])
    log.close()


def test_a_directory_has_one_owner_at_a_time(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    with pytest.raises(DirectoryLockedError):
        open_log(tmp_path / "p")
    append(log)
    log.close()
    open_log(tmp_path / "p").close()


def _hold_and_die(directory: str) -> None:
    log = open_log(Path(directory))
    append(log)
    os._exit(9)


def test_the_lock_and_the_records_outlive_a_killed_owner(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_hold_and_die, args=(str(tmp_path / "p"),))
    process.start()
    process.join(30)
    assert process.exitcode == 9
    log = open_log(tmp_path / "p")
    assert log.log_end == 3
    log.close()


def test_a_log_goes_on_where_it_was_closed(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    written = fill(log, 60)
    log.close()
    for _ in range(3):
        log = open_log(tmp_path / "p")
        assert log.recovery.is_clean
        assert log.recovery.batches_checked == 0
        assert log.durable_end == log.log_end
        assert batches_of(log) == written
        written += fill(log, 7)
        log.close()


def test_an_opened_log_that_nobody_wrote_to_stays_clean_after_a_death(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    fill(log, 60)
    log.close()
    log = open_log(tmp_path / "p")
    batches_of(log)
    kill(log)
    log = open_log(tmp_path / "p")
    assert log.recovery.is_clean
    log.close()


def test_the_first_write_takes_the_marker_away(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    append(log)
    log.close()
    marker = tmp_path / "p" / "clean-shutdown"
    assert marker.exists()
    log = open_log(tmp_path / "p")
    assert marker.exists()
    append(log)
    assert not marker.exists()
    log.close()


def test_a_sealed_segment_gives_its_space_back_but_keeps_zeros_behind_its_end(memory_path: Path) -> None:
    """A reader looks for a header behind the end: a hole there would be SIGBUS on a full tmpfs."""
    for size_bytes in (3_000, 4_096 - 84, 4_096 - 150, 4_096 - 100):
        directory = memory_path / str(size_bytes)
        log = open_log(directory, segment_bytes=1 << 20)
        append(log, 1, size_bytes=size_bytes)
        end = log.active_position
        log.roll()
        with log_files(directory)[0].open("rb") as file:
            assert os.fstat(file.fileno()).st_size > 60_000, "never shortened"
            hole = os.lseek(file.fileno(), 0, os.SEEK_HOLE)
            blocks_bytes = os.fstat(file.fileno()).st_blocks * 512
        assert end + 64 <= max(hole, blocks_bytes) < end + 64 + 4_096
        log.close()


def test_a_damaged_batch_is_never_given_out(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p", segment_bytes=1 << 20)
    written = [append(log, 3) for _ in range(10)]
    path = log_files(tmp_path / "p")[0]
    position = len(written[0]) * 4 + 80
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))
    assert list(split(log.read(0, len(written[0]) * 4, 30))) == written[:4]
    with pytest.raises(CorruptRecordError, match="offset 12"):
        log.read(12, 1, 30)
    log.close()


def test_a_flush_in_another_thread_covers_what_came_before_it(tmp_path: Path) -> None:
    clock = ManualClock(1_000)
    log = open_log(tmp_path / "p", clock=clock)
    fill(log, 80)
    end = log.log_end
    job = log.begin_flush()
    clock.advance(5)
    append(log, 2)
    job.run()
    assert log.finish_flush(job) == log.durable_end == end
    assert log.log_end == end + 2
    assert log.flush() == end + 2
    log.close()


def test_a_flush_of_very_many_segments_goes_in_parts(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p", segment_bytes=4096)
    for _ in range(140):
        append(log, 1, size_bytes=4_000)
    assert log.segment_count > 130
    job = log.begin_flush()
    job.run()
    assert 0 < log.finish_flush(job) < log.log_end
    assert log.flush() == log.durable_end == log.log_end
    log.close()


def test_a_roll_without_an_append_is_closed_cleanly_too(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    written = fill(log, 5)
    log.close()
    log = open_log(tmp_path / "p")
    log.roll()
    log.close()
    log = open_log(tmp_path / "p")
    assert (log.recovery.is_clean, log.segment_count) == (True, 2)
    assert batches_of(log) == written
    log.close()


def test_a_copy_can_be_deleted(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    fill(log, 60)
    log.delete()
    assert list(tmp_path.iterdir()) == []


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    log = open_log(tmp_path / "p")
    fill(log, 100)
    batches_of(log)
    log.flush()
    log.close()
    log = open_log(tmp_path / "p")
    log.delete()
    assert len(os.listdir("/proc/self/fd")) == before


def test_few_open_files_serve_many_segments(tmp_path: Path) -> None:
    files = Files()
    handles = Handles(files, open_max=4)
    logs = [open_log(tmp_path / str(number), files=files, handles=handles) for number in range(6)]
    written = [fill(log, 60) for log in logs]
    assert sum(log.segment_count for log in logs) > 12
    assert [batches_of(log) for log in logs] == written
    assert len(handles) == 4
    for log in logs:
        log.close()
    assert len(handles) == 0


def test_a_changed_segment_size_applies_at_once(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p", segment_bytes=1 << 20)
    fill(log, 60)
    assert log.segment_count == 1
    log.configure(TopicConfig(segment_bytes=4096))
    append(log)
    assert log.segment_count == 2
    log.close()


def test_a_batch_stamped_with_another_offset_is_a_programmers_error(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    with pytest.raises(AssertionError):
        append_batch(log, make_batch(7, [b"v"]))
    log.close()


def test_opening_an_empty_partition_syncs_nothing(tmp_path: Path) -> None:
    class Counting(Files):
        syncs = 0

        def fdatasync(self, fd: int) -> None:
            type(self).syncs += 1
            super().fdatasync(fd)

        def fsync_directory(self, path: Path) -> None:
            type(self).syncs += 1
            super().fsync_directory(path)

    log = Log.open(tmp_path / "p", TopicConfig(), Counting(), ManualClock())
    assert Counting.syncs == 0
    append(log)
    assert Counting.syncs == 2, "the segment's name, and the directory's, before the first batch returns"
    append(log)
    assert Counting.syncs == 2
    log.close()
