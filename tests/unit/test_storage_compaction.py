"""What compaction leaves alone, what it takes, and when it begins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.compacting import DAY_MS, append_pairs, compact, config_of, open_copy, records_of
from tests.storage_logs import batches_of, kill, log_files
from zbroker.clock import ManualClock
from zbroker.core.dedup import Sequences
from zbroker.errors import CopyDamagedError, CorruptRecordError, DiskFullError
from zbroker.record.batch import batches_in, check_keys, read_header
from zbroker.record.columns import encode_columns
from zbroker.record.compacted import HOLE_BYTES, hole
from zbroker.record.rows import encode_rows
from zbroker.storage.clean_points import (
    CleanPoint,
    format_points,
    load_points,
    parse_points,
    save_points,
    tombstones_before,
    with_point,
)
from zbroker.storage.compaction import Compaction, Settings, plan
from zbroker.storage.copied_log import CopiedLog
from zbroker.storage.files import Files
from zbroker.storage.layout import PRODUCERS
from zbroker.storage.swap import complete_swaps
from zbroker.workers.leaders_files import checked, from_offset
from zbroker.workers.producer_state import ProducerState


@pytest.fixture
def log(tmp_path: Path) -> CopiedLog:
    return open_copy(tmp_path / "copy")


def offsets(log: CopiedLog) -> list[int]:
    return [one[0] for one in records_of(log)]


def seal(log: CopiedLog) -> None:
    log.roll()
    log.flush()


def fill(log: CopiedLog, count: int = 4) -> None:
    """Two records of a key, in each of so many segments."""
    for _ in range(count):
        append_pairs(log, [(b"k", b"1"), (b"k", b"2")])
        seal(log)


def test_the_active_segment_and_what_lies_above_the_high_watermark_stay(log: CopiedLog) -> None:
    fill(log, 2)
    append_pairs(log, [(b"k", b"5"), (b"k", b"6")])
    log.flush()
    compact(log, high_watermark=3)
    assert offsets(log) == [1, 2, 3, 4, 5], "the second segment reaches above the high watermark"
    compact(log)
    assert offsets(log) == [3, 4, 5]
    assert log.log_end == 6


def test_what_is_not_synced_stays(log: CopiedLog) -> None:
    append_pairs(log, [(b"k", b"1"), (b"k", b"2")])
    log.roll()
    assert log.compactable(log.log_end, None) == []
    log.flush()
    assert len(log.compactable(log.log_end, None)) == 1


def test_records_that_are_too_young_stay(log: CopiedLog) -> None:
    fill(log)
    assert compact(log, now_ms=1_000, min_compaction_lag_ms=500) is None
    compact(log, now_ms=1_504, min_compaction_lag_ms=501)
    assert offsets(log) == [3, 4, 5, 6, 7]


@pytest.mark.parametrize(("ratio", "is_due"), [(0.0, True), (0.3, True), (0.9, False)])
def test_a_round_begins_when_enough_is_new(log: CopiedLog, ratio: float, is_due: bool) -> None:
    for number in range(8):
        append_pairs(log, [(b"%d" % number, b"v" * 200)])
        seal(log)
    compact(log, segment_bytes=1)
    for _ in range(4):
        append_pairs(log, [(b"k", b"v" * 200)])
        seal(log)
    assert (compact(log, min_cleanable_dirty_ratio=ratio) is not None) == is_due
    assert compact(log, min_cleanable_dirty_ratio=ratio) is None or not is_due


def test_tombstones_stay_for_their_time_and_then_go(log: CopiedLog) -> None:
    append_pairs(log, [(b"a", b"1"), (b"b", b"2")])
    append_pairs(log, [(b"a", None), (None, None)])
    seal(log)
    compact(log, now_ms=5)
    assert offsets(log) == [1, 2, 3]
    assert compact(log, now_ms=DAY_MS + 4) is None
    assert compact(log, now_ms=DAY_MS + 5) is not None
    assert offsets(log) == [1, 3], "a record without a key is no tombstone of any"
    assert compact(log, now_ms=9 * DAY_MS) is None, "nothing is left to drop"


def test_a_key_comes_back_after_its_tombstone(log: CopiedLog) -> None:
    append_pairs(log, [(b"a", b"1"), (b"a", None)])
    seal(log)
    compact(log)
    append_pairs(log, [(b"a", b"2")])
    seal(log)
    compact(log, now_ms=DAY_MS)
    assert offsets(log) == [2]


def test_segments_that_became_small_become_one(log: CopiedLog) -> None:
    fill(log, 30)
    assert log.segment_count == 31
    compact(log)
    assert log.segment_count < 5
    assert log_files(log.directory)[0].name == f"{0:020d}.log"
    assert log.size_bytes == sum(len(batch) for batch in batches_of(log))
    before = {path.name: path.read_bytes() for path in log_files(log.directory)}
    for _ in range(3):
        (log.directory / "compaction").unlink()
        compact(log)
    assert log.segment_count == 2
    (log.directory / "compaction").unlink()
    inode = log_files(log.directory)[0].stat().st_ino
    compact(log)
    assert log_files(log.directory)[0].stat().st_ino == inode, "nothing new: nothing is replaced"
    assert sum(map(len, before.values())) >= log_files(log.directory)[0].stat().st_size


def test_a_round_ends_where_memory_ends_and_the_next_goes_on(log: CopiedLog) -> None:
    for number in range(40):
        append_pairs(log, [(b"%d" % (number % 20), b"v"), (b"%d" % (number % 20), b"w")])
    seal(log)
    done = compact(log, memory_bytes=2_000)
    assert done is not None
    ends = [done.end_offset]
    while (done := compact(log, memory_bytes=2_000)) is not None:
        ends.append(done.end_offset)
    assert ends == sorted(set(ends))
    assert len(ends) > 3
    assert ends[-1] == 80
    assert [one[1] for one in records_of(log)] == [b"%d" % number for number in range(20)]


def test_a_full_disk_ends_the_round_with_nothing_changed(log: CopiedLog) -> None:
    fill(log)
    before = records_of(log)
    todo = plan(log, Files(), config_of(), high_watermark=log.log_end, now_ms=0)
    assert todo is not None
    work = Compaction(todo, log.directory, Files(), Settings(1 << 20, 256, 1 << 20, 1 << 60, lambda *_: False))
    with pytest.raises(DiskFullError):
        work.step(1 << 20)
    assert records_of(log) == before
    assert not list(log.directory.glob("*.tmp"))


def test_damage_is_found_before_anything_is_replaced(log: CopiedLog) -> None:
    fill(log)
    path = log_files(log.directory)[1]
    data = bytearray(path.read_bytes())
    data[70] ^= 1
    path.write_bytes(data)
    with pytest.raises(CopyDamagedError, match="CRC"):
        compact(log)
    assert not list(log.directory.glob("*.tmp"))
    assert log.segment_count == 5


def test_retention_takes_what_is_being_compacted(log: CopiedLog) -> None:
    fill(log)
    todo = plan(log, Files(), config_of(), high_watermark=log.log_end, now_ms=0)
    assert todo is not None
    work = Compaction(todo, log.directory, Files(), Settings(1 << 20, 256, 1 << 20, 0, lambda *_: False))
    found = work.step(1 << 20)
    assert found is not None
    assert log.begin_swap(found)
    log.truncate_before(3)
    assert not log.finish_swap(found)
    log.abandon_swap(found)
    assert offsets(log)[-5:] == [3, 4, 5, 6, 7]
    assert log.log_start == 3
    kill(log)
    assert complete_swaps(log.directory, Files()) == 0


def test_only_topics_that_delete_expire(log: CopiedLog) -> None:
    fill(log)
    log.configure(config_of(retention_ms=1))
    assert log.retain(10 * DAY_MS, log.log_end) == 0
    log.configure(config_of(retention_ms=1, cleanup_policy="compact,delete"))
    assert log.retain(10 * DAY_MS, log.log_end) == 8


def test_what_is_known_of_a_producer_outlives_its_records_and_its_snapshot(tmp_path: Path) -> None:
    files, config = Files(), config_of()
    log = open_copy(tmp_path / "copy")
    state = ProducerState(log, files, ManualClock(), config, 1 << 40)
    for sequence, key in enumerate((b"a", b"a", b"b")):
        pairs = [(key, b"1"), (key, b"2")]
        append_pairs(log, pairs, producer_id=7, producer_epoch=0, base_sequence=2 * sequence)
    append_pairs(log, [(b"a", b"3"), (b"b", b"3")])
    seal(log)
    state.note_all(log.headers_from(0))
    compact(log, is_needed=state.sequences.is_newest)
    assert offsets(log) == [6, 7]
    log.close()
    (log.directory / PRODUCERS).unlink(missing_ok=True)
    log = open_copy(tmp_path / "copy")
    again = ProducerState(log, files, ManualClock(), config, 1 << 40).sequences

    def judge(sequence: int) -> object:
        header = read_header(
            encode_columns([b"x", b"y"], timestamp_ms=0, producer_id=7, producer_epoch=0, base_sequence=sequence)
        )
        return again.judge(header)

    assert judge(6) is None, "what follows is new"
    assert judge(4) == (4, 6), "what was the newest batch is known with its place"
    assert isinstance(judge(2), tuple)
    log.close()


def test_who_is_newest_is_known_by_id_and_by_name() -> None:
    known = Sequences(expiration_ms=10, window_ms=10, window_entries_max=10)
    for producer_id in (3, 1 << 62):
        header = read_header(
            encode_columns([b"x"] * 4, timestamp_ms=0, producer_id=producer_id, producer_epoch=0, base_sequence=0)
        )
        known.note(header, 100, 0)
        assert known.is_newest(producer_id, 104)
        assert not known.is_newest(producer_id, 103)
        assert not known.is_newest(producer_id + 1, 104)


# --- a follower within a hole ----------------------------------------------------------------------------------------


def test_a_hole_that_begins_before_our_end_is_cut_there() -> None:
    following = bytes(hole(500, 700, 2))
    data = memoryview(bytes(hole(100, 500, 2)) + following)
    with from_offset(data, 300) as cut:
        headers = checked(cut, 300, 700, 1, 2)
        assert [(one.base_offset, one.next_offset, one.leader_epoch) for one in headers] == [
            (300, 500, 2),
            (500, 700, 2),
        ]
        assert bytes(cut[HOLE_BYTES:]) == following
    for start in (100, 500, 600):
        with from_offset(data, start) as same:
            assert bytes(same) == bytes(data)


def test_only_a_sound_hole_is_cut() -> None:
    batch = bytearray(hole(100, 500, 2))
    batch[30] ^= 1
    with from_offset(memoryview(bytes(batch)), 300) as same, pytest.raises(CorruptRecordError):
        checked(same, 300, 500, 0, 2)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_every_record_of_a_batch_of_columns_must_have_a_key() -> None:
    for keys in (None, [None, None], [b"a", None]):
        batch = encode_columns([b"1", b"2"], keys, timestamp_ms=0)
        with pytest.raises(Exception, match="without a key"):
            check_keys(batch, read_header(batch))
    for batch in (
        encode_columns([b"1"], [b""], timestamp_ms=0, compression="gzip"),
        encode_rows([(1, None, b"v", ())]),
    ):
        check_keys(batch, read_header(batch))


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_file_says_what_was_written_and_nothing_when_it_is_damaged(tmp_path: Path) -> None:
    points = [CleanPoint(10, 5, 1), CleanPoint(10, 6, 0), CleanPoint(70, 6, 2)]
    assert format_points(points) == b"0\n3\n10 5 1\n10 6 0\n70 6 2\n"
    save_points(tmp_path, Files(), points)
    assert load_points(tmp_path, Files()) == points
    for damaged in (
        b"",
        b"1\n0\n",
        b"0\n2\n10 5 1\n",
        b"0\n2\n10 5 1\n9 6 1\n",
        b"0\n1\n1 2\n",
        b"0\n1\n-1 2 3\n",
        b"\xff",
    ):
        assert parse_points(damaged) is None
        (tmp_path / "compaction").write_bytes(damaged)
        assert load_points(tmp_path, Files()) == []


def test_points_stay_few_and_tombstones_go_in_time() -> None:
    points: list[CleanPoint] = []
    retention_ms = 1_000
    went_ms: dict[int, int] = {}
    for now_ms in range(0, 10_000, 10):
        horizon = tombstones_before(points, now_ms, retention_ms)
        points = with_point(points, CleanPoint(now_ms, now_ms, 1), horizon, retention_ms)
        assert len(points) < 25
        for offset in range(horizon):
            went_ms.setdefault(offset, now_ms)
    assert len(went_ms) > 8_000
    ages = [now_ms - offset for offset, now_ms in went_ms.items()]
    assert min(ages) >= retention_ms
    assert max(ages) <= retention_ms + 2 * retention_ms // 16 + 30


def test_batches_of_a_compacted_log_can_be_copied_as_they_are(log: CopiedLog, tmp_path: Path) -> None:
    fill(log, 6)
    compact(log)
    other = open_copy(tmp_path / "other")
    while other.log_end < log.log_end:
        found = log.range_from(other.log_end, 200)
        if found.segment_base == other.log_end:
            other.roll()
        data = log.read(other.log_end, found.size_bytes, found.end_offset)
        other.append_copied(data, [header for _, header in batches_in(data)])
    assert batches_of(other) == batches_of(log)
    other.close()
    shutil.rmtree(tmp_path / "other")
