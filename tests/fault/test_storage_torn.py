"""What a torn or damaged log file becomes: every cut, every flipped bit, every zeroed or random tail."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.storage_logs import RebootableFiles, append, batches_of, fill, kill, log_files, open_log
from zbroker.errors import CopyDamagedError
from zbroker.record.batch import batches_in
from zbroker.storage.scan import Scan

SEED = 20_261


class Copy(NamedTuple):
    """A copy as a death left it: two segments, nothing synced."""

    directory: Path
    batches: list[bytes]
    logs: list[bytes]  # content of the .log files, without the zeros behind the end
    ends: list[int]  # log end after each batch


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    root = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path_factory.mktemp("torn")
    directory = root / f"zbt-torn-{tmp_path_factory.getbasetemp().name}" / "p"
    log = open_log(directory, segment_bytes=4096)
    batches: list[bytes] = []
    ends: list[int] = []
    while log.segment_count < 2 or log.active_position < 1_000:
        batches.append(append(log, 1 + len(batches) % 3, size_bytes=9, epoch=1 + len(batches) // 20))
        ends.append(log.log_end)
    kill(log)
    contents = []
    for path in log_files(directory):
        data = path.read_bytes()
        position, header = list(batches_in(data))[-1]
        contents.append(data[: position + header.size_bytes])
    assert len(contents) == 2
    yield Copy(directory, batches, contents, ends)
    shutil.rmtree(directory.parent)


def lay_out(copy: Copy, *contents: bytes) -> Path:
    """A fresh directory with these .log files and no index."""
    directory = copy.directory.with_name("case")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for path, data in zip(log_files(copy.directory), contents, strict=False):
        (directory / path.name).write_bytes(data)
    return directory


def whole_batches(contents: list[bytes], cut_number: int, cut: int) -> int:
    """How many batches lie wholly before byte `cut` of file `cut_number`."""
    count = 0
    for number, data in enumerate(contents[: cut_number + 1]):
        limit = cut if number == cut_number else len(data)
        count += sum(position + header.size_bytes <= limit for position, header in batches_in(data))
    return count


def count_before_junk(copy: Copy, changed: bytes) -> int:
    """How many batches a second file with junk at its end still holds: padding cut off and zeroed is whole again."""
    count = len(list(batches_in(copy.logs[0])))
    for position, header in batches_in(copy.logs[1]):
        end = position + header.size_bytes
        if changed[position:end] != copy.logs[1][position:end]:
            break
        count += 1
    return count


def check_holds(directory: Path, copy: Copy, count: int) -> None:
    """The log holds exactly the first `count` batches."""
    log = open_log(directory)
    assert log.log_end == (copy.ends[count - 1] if count else 0)
    assert batches_of(log) == copy.batches[:count]
    kill(log)


def check_recovered(directory: Path, copy: Copy, count: int) -> None:
    """The log holds exactly the first `count` batches, can be appended to, and opens again with the same."""
    log = open_log(directory)
    assert log.log_end == (copy.ends[count - 1] if count else 0)
    assert batches_of(log) == copy.batches[:count]
    added = append(log, 2, epoch=9)
    kill(log)
    log = open_log(directory)
    assert batches_of(log) == [*copy.batches[:count], added]
    log.close()


def test_t03_a_log_cut_at_every_byte_keeps_exactly_the_whole_batches_before_the_cut(copy: Copy) -> None:
    first, second = copy.logs
    for cut in range(len(first)):
        directory = lay_out(copy, first[:cut], second)
        check_holds(directory, copy, whole_batches(copy.logs, 0, cut))
    for cut in range(len(second)):
        directory = lay_out(copy, first, second[:cut])
        check_recovered(directory, copy, whole_batches(copy.logs, 1, cut))


def test_t03_the_rebuilt_index_finds_every_batch(copy: Copy) -> None:
    for cut in range(0, len(copy.logs[0]), 97):
        directory = lay_out(copy, copy.logs[0][:cut], copy.logs[1])
        log = open_log(directory)
        data = (directory / f"{0:020d}.log").read_bytes()
        for position, header in batches_in(data[:cut]):
            assert log.position_of(header.last_offset) == (0, position)
        log.close()


def flips(data: bytes) -> Iterator[tuple[int, bytes]]:
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            yield position, bytes(changed)


def reader_of(data: bytes) -> Callable[[int, int], bytes]:
    return lambda size_bytes, position: data[position : position + size_bytes]


def epoch_bytes(data: bytes) -> set[int]:
    return {position + 12 + number for position, _ in batches_in(data) for number in range(4)}


def test_t04_no_flipped_bit_passes_the_scan_of_a_start(copy: Copy) -> None:
    """Every bit of the second segment; of the leader epoch, which no CRC covers, only the order is promised."""
    first, second = copy.logs
    base = copy.ends[len(list(batches_in(first))) - 1]
    sound = list(batches_in(second))
    epochs = epoch_bytes(second)
    for position, changed in flips(second):
        scan = Scan(
            reader_of(changed),
            position=0,
            bytes_end=len(changed),
            next_offset=base,
            check_crc=True,
            epoch_max=9,
        )
        found = list(scan)
        if position in epochs:
            assert [at for at, _ in found] == [at for at, _ in sound[: len(found)]]
        else:
            assert found == [(at, header) for at, header in sound if at + header.size_bytes <= position]
            assert scan.damage is not None


def test_t04_no_flipped_byte_ever_gives_an_altered_record(copy: Copy) -> None:
    first, second = copy.logs
    epochs = epoch_bytes(second)
    for position in range(len(second)):
        changed = bytearray(second)
        changed[position] ^= 1 << position % 8
        directory = lay_out(copy, first, bytes(changed))
        log = open_log(directory, leader_epoch_hint=9)
        found = batches_of(log)
        count = whole_batches(copy.logs, 1, position)
        if position in epochs:
            assert [batch[16:] for batch in found] == [batch[16:] for batch in copy.batches[: len(found)]]
            assert len(found) >= count
        else:
            assert found == copy.batches[:count]
        kill(log)


def test_t04_a_flipped_bit_below_the_high_watermark_is_damage_and_changes_no_byte(copy: Copy) -> None:
    generator = random.Random(SEED)
    first, second = copy.logs
    for number in range(2):
        for position in generator.sample(range(len(copy.logs[number])), 150):
            content = [bytearray(first), bytearray(second)]
            content[number][position] ^= 1 << generator.randrange(8)
            if position in epoch_bytes(copy.logs[number]):
                continue
            directory = lay_out(copy, *copy.logs)
            log = open_log(directory)
            log.save_high_watermark(log.log_end)
            kill(log)
            for path, data in zip(log_files(directory), content, strict=True):
                path.write_bytes(bytes(data))
            with pytest.raises(CopyDamagedError, match="position"):
                open_log(directory)
            assert [path.read_bytes() for path in log_files(directory)] == [bytes(data) for data in content]
            with pytest.raises(CopyDamagedError):
                open_log(directory)


@pytest.mark.parametrize("tail", ["zeros", "random"])
def test_t04_a_zeroed_or_random_tail_is_cut_off(copy: Copy, tail: str) -> None:
    generator = random.Random(SEED)
    first, second = copy.logs
    for cut in range(len(second)):
        size_bytes = generator.choice((1, 7, 61, 512, 4096))
        junk = bytes(size_bytes) if tail == "zeros" else generator.randbytes(size_bytes)
        directory = lay_out(copy, first, second[:cut] + junk)
        check_recovered(directory, copy, count_before_junk(copy, second[:cut] + junk))


def test_t04_zeros_below_the_high_watermark_are_damage(copy: Copy) -> None:
    for cut in range(0, len(copy.logs[1]), 53):
        directory = lay_out(copy, *copy.logs)
        log = open_log(directory)
        log.save_high_watermark(log.log_end)
        kill(log)
        data = copy.logs[1][:cut] + bytes(len(copy.logs[1]) - cut)
        log_files(directory)[1].write_bytes(data)
        with pytest.raises(CopyDamagedError, match="had been written"):
            open_log(directory)


def test_a_stale_batch_behind_a_tear_never_comes_back(copy: Copy) -> None:
    """The batch behind the torn one has the offset that the next append gets: only zeros there may follow it."""
    first, second = copy.logs
    positions = [position for position, _ in batches_in(second)]
    for number in range(len(positions) - 1):
        torn = bytearray(second)
        torn[positions[number] + 30] ^= 0xFF
        directory = lay_out(copy, first, bytes(torn))
        log = open_log(directory)
        assert log.recovery.was_torn
        kept = batches_of(log)
        path = log_files(directory)[1]
        assert not any(path.read_bytes()[positions[number] :])
        assert path.stat().st_size == len(torn), "a reader may have it mapped"
        added = append(log, 1, size_bytes=9, epoch=9)
        kill(log)
        log = open_log(directory)
        assert batches_of(log) == [*kept, added]
        log.close()


def test_after_a_power_cut_an_unsynced_tail_may_be_gone_and_is_reported(tmp_path: Path) -> None:
    files = RebootableFiles()
    log = open_log(tmp_path / "p", files=files, segment_bytes=1 << 20)
    kept = fill(log, 10)
    log.flush()
    synced = log.log_end
    fill(log, 10)
    log.save_high_watermark(log.log_end)
    lost = log.log_end - synced
    kill(log)
    path = log_files(tmp_path / "p")[0]
    path.write_bytes(b"".join(kept))
    with pytest.raises(CopyDamagedError):
        open_log(tmp_path / "p", files=files)
    files.boot = "00000000-0000-0000-0000-000000000002"
    log = open_log(tmp_path / "p", files=files, segment_bytes=1 << 20)
    assert (log.log_end, log.recovery.records_lost_max) == (synced, lost)
    assert batches_of(log) == kept
    kill(log)


def test_after_a_power_cut_damage_below_the_recovery_point_is_damage(tmp_path: Path) -> None:
    files = RebootableFiles()
    log = open_log(tmp_path / "p", files=files, segment_bytes=1 << 20)
    kept = fill(log, 10)
    log.flush()
    kill(log)
    files.boot = "00000000-0000-0000-0000-000000000002"
    log_files(tmp_path / "p")[0].write_bytes(b"".join(kept)[:-1])
    with pytest.raises(CopyDamagedError):
        open_log(tmp_path / "p", files=files)


def test_a_start_checks_only_what_lies_behind_the_recovery_point(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p", segment_bytes=4096)
    fill(log, 100)
    log.flush()
    fill(log, 5)
    kill(log)
    log = open_log(tmp_path / "p", segment_bytes=4096)
    assert 5 <= log.recovery.batches_checked < 50
    log.close()


def test_an_allocated_tail_that_somebody_has_read_is_not_a_tear(tmp_path: Path) -> None:
    """On ext4 allocated pages count as data once they are in the page cache."""
    log = open_log(tmp_path / "p", segment_bytes=1 << 24)
    written = [append(log, 3, size_bytes=30_000) for _ in range(20)]
    kill(log)
    path = log_files(tmp_path / "p")[0]
    assert path.stat().st_size > sum(map(len, written)) + 100_000
    path.read_bytes()
    log = open_log(tmp_path / "p", segment_bytes=1 << 24)
    assert not log.recovery.was_torn
    log.close()
    path.read_bytes()
    log = open_log(tmp_path / "p", segment_bytes=1 << 24)
    assert log.recovery.is_clean
    assert batches_of(log) == written
    log.close()


def test_recovering_twice_gives_the_same_bytes(copy: Copy) -> None:
    for cut in range(0, len(copy.logs[1]), 41):
        directory = lay_out(copy, copy.logs[0], copy.logs[1][:cut] + b"\xff" * 50)
        kill(open_log(directory))
        after = [path.read_bytes() for path in log_files(directory)]
        kill(open_log(directory))
        assert [path.read_bytes() for path in log_files(directory)] == after
