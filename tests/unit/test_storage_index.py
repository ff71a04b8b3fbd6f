"""The sparse indexes of a segment: Kafka's entries, looked up by bisection and never believed blindly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storage_logs import append, batches_of, fill, kill, make_batch, open_log
from zbroker.record.batch import batches_in
from zbroker.storage.files import Files
from zbroker.storage.index import OffsetEntry, OffsetIndex, TimeEntry, TimeIndex
from zbroker.storage.index_pair import IndexPair
from zbroker.storage.layout import INDEX_ENTRY, TIMEINDEX_ENTRY
from zbroker.storage.log import Log


class WatchedFiles(Files):
    """Files that remember where they were read."""

    def __init__(self) -> None:
        super().__init__()
        self.positions: list[int] = []

    def pread(self, fd: int, size_bytes: int, position: int) -> bytes:
        self.positions.append(position)
        return super().pread(fd, size_bytes, position)


def test_offset_500_is_found_through_the_entry_of_offset_400(tmp_path: Path) -> None:
    """The articles' example: the nearest entry at or below 500 is 400's; from its position the log is walked."""
    batch_bytes = len(make_batch(0, [b"v" * 24]))
    interval_bytes = 200 * batch_bytes - 1
    log = open_log(tmp_path / "p", segment_bytes=1 << 20, index_interval_bytes=interval_bytes)
    for _ in range(700):
        append(log, 1, size_bytes=24)
    log.close()

    index = OffsetIndex(tmp_path / "p" / f"{0:020d}.index", Files())
    assert index.load(1 << 20)
    assert list(index.first) == [200, 400, 600], "sparse: three entries for 700 records"
    assert index.lookup(500) == OffsetEntry(400, 400 * batch_bytes)

    files = WatchedFiles()
    log = open_log(tmp_path / "p", files=files, segment_bytes=1 << 20, index_interval_bytes=interval_bytes)
    files.positions.clear()
    assert log.position_of(500) == (0, 500 * batch_bytes)
    assert min(files.positions) == 400 * batch_bytes, "nothing before the entry's batch was looked at"
    log.close()


def test_an_entry_comes_when_more_than_the_interval_was_appended(tmp_path: Path) -> None:
    pair = IndexPair(tmp_path, 0, Files(), interval_bytes=100)
    for number in range(6):
        pair.note(number * 60, 60, number, 1_000 + number)
    assert list(zip(pair.offsets.first, pair.offsets.second, strict=True)) == [(2, 120), (4, 240)]
    assert list(zip(pair.times.first, pair.times.second, strict=True)) == [(1_002, 2), (1_004, 4)]


def test_the_time_index_names_the_largest_timestamp_so_far_and_only_rises(tmp_path: Path) -> None:
    pair = IndexPair(tmp_path, 0, Files(), interval_bytes=1)
    for number, timestamp in enumerate([50, 10, 40, 60, 20]):
        pair.note(number * 60, 60, number, timestamp)
    assert list(zip(pair.times.first, pair.times.second, strict=True)) == [(50, 0), (60, 3)]
    assert pair.times.before(60) == TimeEntry(50, 0)
    assert pair.times.before(50) is None


@pytest.mark.parametrize(
    "content",
    [
        INDEX_ENTRY.pack(5, 100)[:7],
        INDEX_ENTRY.pack(5, 100) + INDEX_ENTRY.pack(5, 200),
        INDEX_ENTRY.pack(5, 100) + INDEX_ENTRY.pack(6, 100),
        INDEX_ENTRY.pack(5, 100) + bytes(8),
        INDEX_ENTRY.pack(5, 5_000),
    ],
    ids=["cut", "same offset", "same position", "zeros", "behind the log's end"],
)
def test_an_offset_index_that_contradicts_itself_is_refused(tmp_path: Path, content: bytes) -> None:
    index = OffsetIndex(tmp_path / "a.index", Files())
    index.path.write_bytes(content)
    assert not index.load(4_096)


@pytest.mark.parametrize(
    "content", [bytes(11), TIMEINDEX_ENTRY.pack(5, 1) + TIMEINDEX_ENTRY.pack(5, 2)], ids=["cut", "same timestamp"]
)
def test_a_time_index_that_contradicts_itself_is_refused(tmp_path: Path, content: bytes) -> None:
    index = TimeIndex(tmp_path / "a.timeindex", Files())
    index.path.write_bytes(content)
    assert not index.load()


def test_a_wrong_entry_is_noticed_at_the_batch_that_it_points_to(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p", segment_bytes=4096)
    written = fill(log, 100)
    log.close()
    first = next(iter(sorted((tmp_path / "p").glob("*.index"))))
    entries = list(INDEX_ENTRY.iter_unpack(first.read_bytes()))
    assert len(entries) > 3
    first.write_bytes(b"".join(INDEX_ENTRY.pack(relative, position + 1) for relative, position in entries))
    log = open_log(tmp_path / "p", segment_bytes=4096)
    for offset in range(log.log_end):
        header = next(batches_in(log.read(offset, 1, log.log_end)))[1]
        assert header.base_offset <= offset < header.next_offset
    assert batches_of(log) == written
    log.close()
    assert list(INDEX_ENTRY.iter_unpack(first.read_bytes())) == entries, "the index was made anew"


def test_an_entry_that_names_another_sound_batch_is_noticed_too(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p", segment_bytes=4096)
    fill(log, 100)
    log.close()
    first = next(iter(sorted((tmp_path / "p").glob("*.index"))))
    entries = list(INDEX_ENTRY.iter_unpack(first.read_bytes()))
    shifted = [(relative, position) for (relative, _), (_, position) in zip(entries[1:], entries, strict=False)]
    first.write_bytes(b"".join(INDEX_ENTRY.pack(*entry) for entry in shifted))
    log = open_log(tmp_path / "p", segment_bytes=4096)
    base, position = log.position_of(entries[-1][0])
    assert (base, position) == (0, entries[-1][1])
    log.close()
    assert list(INDEX_ENTRY.iter_unpack(first.read_bytes())) == entries


def index_bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix in (".index", ".timeindex")}


def test_indexes_made_by_recovery_equal_those_made_by_appending(tmp_path: Path) -> None:
    def filled() -> Log:
        log = open_log(tmp_path / "p")
        for number in range(200):
            append(log, 1 + number % 5, timestamp_ms=1_000 + (number * 37) % 500)
        return log

    filled().close()
    expected = index_bytes(tmp_path / "p")
    assert sum(map(len, expected.values())) > 500
    for path in (tmp_path / "p").iterdir():
        if path.suffix in (".index", ".timeindex") or path.name == "clean-shutdown":
            path.unlink()
    log = open_log(tmp_path / "p")
    assert not log.recovery.is_clean
    log.close()
    assert index_bytes(tmp_path / "p").keys() == expected.keys()
    log = open_log(tmp_path / "p")
    for offset in range(log.log_end):
        log.position_of(offset)
    for timestamp in range(1_000, 1_500):
        log.offset_for_time(timestamp, log.log_end)
    log.close()
    found = index_bytes(tmp_path / "p")
    assert {name: data for name, data in found.items() if data != expected[name]} == {}


def test_a_segment_whose_indexes_were_never_saved_is_walked(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p", segment_bytes=1 << 20)
    written = fill(log, 50)
    kill(log)
    log = open_log(tmp_path / "p", segment_bytes=1 << 20)
    assert batches_of(log) == written
    assert [log.position_of(offset)[1] for offset in range(log.log_end)] == sorted(
        log.position_of(offset)[1] for offset in range(log.log_end)
    )
    log.close()
