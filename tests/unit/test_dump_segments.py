"""Looking into a copy's files beside its owner, and cutting a damaged one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storage_logs import append, batches_of, fill, kill, log_files, open_log
from zbroker.dump.segments import dump_batches, find_copies, is_locked, recover_copy, verify_copy
from zbroker.errors import CopyDamagedError, CorruptRecordError, DirectoryLockedError, StorageError
from zbroker.storage.layout import INDEX_ENTRY


def damage(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def test_a_copy_is_dumped_with_its_owner_up_and_dead(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    written = fill(log, 100)
    for _ in range(2):
        found = list(dump_batches(tmp_path / "p"))
        assert [batch.data for batch in found] == written
        assert all(batch.is_sound for batch in found)
        log.close()
    assert [record.value for record in found[1].records()] == [
        b"value-1............."[:20],
        b"value-2............."[:20],
    ]


def test_a_dump_begins_at_an_offset_and_stops_after_a_count(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    written = [append(log, 3) for _ in range(60)]
    assert log.segment_count > 1
    log.close()
    for start in (0, 4, 100, 179):
        found = [batch.data for batch in dump_batches(tmp_path / "p", start_offset=start, count_max=2)]
        assert found == written[start // 3 : start // 3 + 2]
    assert list(dump_batches(tmp_path / "p", start_offset=180)) == []
    one = log_files(tmp_path / "p")[1]
    assert next(dump_batches(one)).header.base_offset == int(one.stem)


def test_a_sound_copy_is_found_sound(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    fill(log, 200)
    log.save_high_watermark(log.log_end)
    for live in (True, False):
        report = verify_copy(tmp_path / "p")
        assert report.is_sound, report.faults
        assert report.is_locked is live
        assert report.is_closed_cleanly is not live
        assert [segment.index_faults for segment in report.segments] == [[]] * log.segment_count
        assert report.segments[-1].next_offset == log.log_end
        assert sum(segment.size_bytes for segment in report.segments) == log.size_bytes
        assert report.saved is not None
        assert report.saved.high_watermark == log.log_end
        log.close()


def test_damage_is_named_by_file_position_and_offset(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    written = [append(log, 3) for _ in range(60)]
    log.close()
    damage(log_files(tmp_path / "p")[0], len(written[0]) * 5 + 100)
    report = verify_copy(tmp_path / "p")
    assert not report.is_sound
    assert report.faults[0].startswith(f"{0:020d}.log, position {len(written[0]) * 5}, offset 15: the CRC")
    found = list(dump_batches(tmp_path / "p"))
    assert [batch.is_sound for batch in found].index(False) == 5
    assert len(found) == 60
    with pytest.raises(CorruptRecordError):
        found[5].records()


def test_a_batch_that_is_being_written_is_not_damage(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p", segment_bytes=1 << 20)
    fill(log, 10)
    path = log_files(tmp_path / "p")[0]
    with path.open("r+b") as file:
        file.seek(log.active_position)
        file.write(batches_of(log)[0][:50])
    report = verify_copy(tmp_path / "p")
    assert report.is_sound
    assert report.segments[-1].is_in_flight
    kill(log)
    assert not verify_copy(tmp_path / "p").is_sound, "without an owner it is a torn tail"


def test_a_wrong_index_entry_is_reported_and_no_record_is_said_to_be_lost(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    fill(log, 200)
    log.close()
    index = sorted((tmp_path / "p").glob("*.index"))[0]
    entries = list(INDEX_ENTRY.iter_unpack(index.read_bytes()))
    entries[1] = (entries[1][0], entries[1][1] + 1)
    index.write_bytes(b"".join(INDEX_ENTRY.pack(*entry) for entry in entries))
    report = verify_copy(tmp_path / "p")
    assert report.is_sound
    assert any(index.name in fault for fault in report.segments[0].index_faults)


def test_recover_cuts_a_damaged_copy_and_says_what_is_lost(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    written = [append(log, 3) for _ in range(60)]
    log.save_high_watermark(log.log_end)
    log.flush()
    kill(log)
    damage(log_files(tmp_path / "p")[0], len(written[0]) * 5 + 100)
    recovered = recover_copy(tmp_path / "p")
    assert recovered[:3] == (0, 15, 165)
    assert recovered.segments_removed >= 1
    assert verify_copy(tmp_path / "p").is_sound
    log = open_log(tmp_path / "p")
    assert log.recovery.is_clean
    assert batches_of(log) == written[:5]
    log.close()


def test_a_copy_refused_for_damage_is_opened_after_recover(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    written = fill(log, 30)
    log.save_high_watermark(log.log_end)
    kill(log)
    damage(log_files(tmp_path / "p")[0], 70)
    with pytest.raises(CopyDamagedError):
        open_log(tmp_path / "p")
    recover_copy(tmp_path / "p")
    log = open_log(tmp_path / "p")
    assert log.log_end == 0
    assert written
    log.close()


def test_recover_refuses_while_a_process_has_the_copy_open(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    written = fill(log, 30)
    assert is_locked(tmp_path / "p")
    with pytest.raises(DirectoryLockedError):
        recover_copy(tmp_path / "p")
    assert batches_of(log) == written
    log.close()
    assert not is_locked(tmp_path / "p")


def test_recover_changes_no_record_of_a_sound_copy(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    written = fill(log, 100)
    log.truncate_before(7)
    log.save_high_watermark(log.log_end)
    log.close()
    assert recover_copy(tmp_path / "p")[:3] == (7, log.log_end, 0)
    log = open_log(tmp_path / "p")
    assert batches_of(log) == written[-len(batches_of(log)) :]
    assert log.log_start == 7
    log.close()


def test_copies_are_found_below_a_data_directory(tmp_path: Path) -> None:
    for name in ("1/t00000001-0", "2/t00000001-1"):
        log = open_log(tmp_path / "copies" / name)
        append(log)
        log.close()
    both = find_copies(tmp_path)
    assert [path.name for path in both] == ["t00000001-0", "t00000001-1"]
    assert find_copies(log_files(both[0])[0]) == both[:1]
    with pytest.raises(StorageError):
        find_copies(tmp_path / "nowhere")
