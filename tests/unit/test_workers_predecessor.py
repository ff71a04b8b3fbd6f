"""A new leader takes over the tail of the one before it, from files that may be torn, nothing of another history."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.storage_logs import SMALL, append, batches_of, fill, log_files
from zbroker import ids
from zbroker.clock import ManualClock
from zbroker.config.schema import TopicConfig
from zbroker.errors import CorruptRecordError
from zbroker.record.batch import batches_in
from zbroker.record.layout import BatchHeader
from zbroker.shm.board import BoardWriter
from zbroker.storage.copied_log import CopiedLog
from zbroker.storage.files import Files
from zbroker.workers.leaders_files import checked
from zbroker.workers.predecessor import complete_tail, last_high_watermark
from zbroker.workers.tail import BATCHES_MAX, Tail


def open_copy(directory: Path, **settings: object) -> CopiedLog:
    config = TopicConfig(**{**SMALL, **settings})  # type: ignore[arg-type]  # the settings' types are TopicConfig's
    return CopiedLog.open(directory, config, Files(), ManualClock())


def follow(leader: CopiedLog, copy: CopiedLog, upper: int) -> None:
    """Copy batches below an offset, and roll where the leader rolled."""
    while copy.log_end < upper:
        base, _ = leader.position_of(copy.log_end)
        if base == copy.log_end and copy.active_base != base:
            copy.roll()
        data = leader.read(copy.log_end, 1, upper)
        copy.append_copied(data, [header for _, header in batches_in(data)])


@pytest.mark.parametrize("behind", [0, 1, 5, 39, 40])
def test_the_whole_tail_is_taken_over_however_far_we_are_behind(tmp_path: Path, behind: int) -> None:
    before, copy = open_copy(tmp_path / "before"), open_copy(tmp_path / "copy")
    fill(before, 40, epoch=1)
    ends = [header.next_offset for header in headers_of(before)]
    follow(before, copy, ([0, *ends])[40 - behind])
    taken = complete_tail(copy, before.directory, Files(), epoch_max=1)
    assert len(taken) == behind
    assert batches_of(copy) == batches_of(before)
    assert [path.name for path in log_files(copy.directory)] == [path.name for path in log_files(before.directory)]
    before.close()
    copy.close()


def headers_of(log: CopiedLog) -> list[BatchHeader]:
    return [header for path in log_files(log.directory) for _, header in batches_in(path.read_bytes())]


def test_a_torn_tail_is_taken_up_to_the_tear(tmp_path: Path) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        root = tmp_path / str(seed)
        before, copy = open_copy(root / "before"), open_copy(root / "copy")
        fill(before, 30, epoch=1)
        follow(before, copy, 5)
        end = before.log_end
        before.close()
        path = log_files(before.directory)[-1]
        data = bytearray(path.read_bytes())
        at = rng.randrange(len(data.rstrip(b"\0")))
        data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        complete_tail(copy, before.directory, Files(), epoch_max=1)
        assert 5 <= copy.log_end < end or data[at : at + 1] == b"\0"
        batches_of(copy)
        copy.close()


def test_another_history_and_a_later_epoch_are_left_alone(tmp_path: Path) -> None:
    before, copy = open_copy(tmp_path / "before"), open_copy(tmp_path / "copy")
    fill(before, 10, epoch=1)
    follow(before, copy, 5)
    append(copy, epoch=2)
    end = copy.log_end
    assert complete_tail(copy, before.directory, Files(), epoch_max=2) == []
    assert copy.log_end == end
    other = open_copy(tmp_path / "other")
    follow(before, other, 5)
    fill(before, 5, epoch=7)
    complete_tail(other, before.directory, Files(), epoch_max=3)
    assert other.last_epoch == 1
    for log in (before, copy, other):
        log.close()


def test_a_directory_that_is_gone_gives_nothing(tmp_path: Path) -> None:
    copy = open_copy(tmp_path / "copy")
    assert complete_tail(copy, tmp_path / "gone", Files(), epoch_max=9) == []
    assert last_high_watermark(str(tmp_path / "no.board"), 1, 0, 9) == -1
    assert last_high_watermark("", 1, 0, 9) == -1
    copy.close()


def test_a_high_watermark_of_a_later_epoch_says_nothing_of_our_log(tmp_path: Path) -> None:
    board = BoardWriter.create(tmp_path, ids.worker_number(0), ids.own_incarnation(), cells=1)
    board.claim(1, 0).restate(
        leader_epoch=4, log_start=0, log_end=7, segment_base=0, durable=0, size_bytes=0,
        position=70, high_watermark=5, segment_count=1,
    )  # fmt: skip
    path = str(board.path)
    assert [last_high_watermark(path, 1, 0, epoch_max) for epoch_max in (3, 4, 5)] == [-1, 5, 5]
    assert last_high_watermark(path, 1, 1, 5) == -1
    board.close(unlink=True)


def test_the_tail_in_memory_gives_what_the_log_gives(tmp_path: Path) -> None:
    rng = random.Random(7)
    log = open_copy(tmp_path / "log", segment_bytes=1 << 20)
    tail = Tail(log)
    bases = [0]
    for number in range(3 * BATCHES_MAX // 2):
        if number % 977 == 976:
            log.roll()
        append(log, epoch=1)
        tail.note()
        bases.append(log.log_end)
    for _ in range(500):
        offset = rng.choice(bases[:-1])
        size_bytes = rng.choice([1, 100, 1_000, 50_000, 1 << 20])
        assert tail.range_from(offset, size_bytes) == log.range_from(offset, size_bytes)
    log.close()


def test_bytes_of_a_leader_are_taken_only_as_whole_sound_batches_in_order(tmp_path: Path) -> None:
    log = open_copy(tmp_path / "log", segment_bytes=1 << 20)
    fill(log, 5, epoch=3)
    end = log.log_end
    data = log.read(0, 1 << 20, end)
    assert len(checked(data, 0, end, -1, 3)) == 5
    refused = [
        (data, 1, end, -1, 3),
        (data, 0, end + 1, -1, 3),
        (data, 0, end, 4, 9),
        (data, 0, end, -1, 2),
        (data[:-1], 0, end, -1, 3),
        (data + b"\0", 0, end, -1, 3),
        (b"", 0, end, -1, 3),
    ]
    for arguments in refused:
        with pytest.raises(CorruptRecordError):
            checked(*arguments)
    for position in range(16, len(data), 7):
        flipped = bytearray(data)
        flipped[position] ^= 1
        try:
            headers = checked(flipped, 0, end, -1, 3)
        except CorruptRecordError:
            continue
        # The leader's epoch is not covered by the CRC; it must still be one that may stand there.
        assert {header.leader_epoch for header in headers} <= {-1, 0, 1, 2, 3}
    log.close()
