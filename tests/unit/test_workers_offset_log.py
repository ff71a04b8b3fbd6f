"""The log of committed offsets: what was appended is there after every kind of end, and outdated records go."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storage_logs import FailingFiles
from zbroker.clock import ManualClock
from zbroker.core.group_offsets import Committed, OffsetEntry, entry_of, record_of
from zbroker.dump.group_offsets import committed_offsets, logged_offsets
from zbroker.errors import BrokerError, CorruptRecordError, StorageError, UnsupportedVersionError
from zbroker.record.batch import batches_in
from zbroker.shm.commit_slots import CoordinatorSlots, MemberSlots, SlotNames, slot_file_path
from zbroker.shm.layout import cell_key
from zbroker.storage.files import Files
from zbroker.workers.offset_log import OffsetLog, OffsetLogFailed


def entry(group: str, partition: int, offset: int | None) -> OffsetEntry:
    committed = None if offset is None else Committed(offset, 3, "note", 1_700_000_000_000)
    return OffsetEntry(group, "orders", 7, partition, committed)


def opened(directory: Path, files: Files | None = None) -> OffsetLog:
    return OffsetLog.open(directory / "offsets", files or Files(), ManualClock())


def test_entries_come_back_after_a_kill_and_after_a_close(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.append([entry("g", 0, 5), entry("g", 1, 6)], durable=False)
    log.append([entry("g", 0, 9), entry("h", 0, 1), entry("g", 1, None)], durable=True)
    found = log.replay()
    assert found.of("g") == {(7, 0): Committed(9, 3, "note", 1_700_000_000_000)}
    assert found.group_ids() == ["g", "h"]
    log.close()
    again = opened(tmp_path)
    assert list(again.replay().snapshot()) == list(found.snapshot())
    assert list(logged_offsets(tmp_path / "offsets").snapshot()) == list(found.snapshot())
    again.close()


def test_entries_of_thousands_take_several_batches(tmp_path: Path) -> None:
    log = opened(tmp_path)
    entries = [entry("g", number, number) for number in range(2_500)]
    log.append(entries, durable=False)
    assert list(log.replay().snapshot()) == entries
    log.close()


def test_what_is_outdated_goes_and_what_holds_stays(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.snapshot_records_min = 100
    offsets = log.replay()
    for offset in range(150):
        one = entry("g", offset % 3, offset)
        log.append([one], durable=False)
        offsets.apply(one)
    assert log.compact_if_due(offsets)
    assert log.record_count == 3
    assert not log.compact_if_due(offsets)
    log.append([entry("g", 0, 1_000)], durable=False)
    log.close()
    found = logged_offsets(tmp_path / "offsets")
    assert [one.offset for one in found.of("g").values()] == [1_000, 148, 149]


def test_a_refused_append_leaves_nothing_and_the_next_one_is_taken(tmp_path: Path) -> None:
    files = FailingFiles()
    log = opened(tmp_path, files)
    log.append([entry("g", 0, 1)], durable=True)
    files.fail("write")
    with pytest.raises(BrokerError):
        log.append([entry("g", 0, 2)], durable=False)
    assert log.replay().of("g")[7, 0].offset == 1
    log.append([entry("g", 0, 3)], durable=False)
    assert log.replay().of("g")[7, 0].offset == 3
    log.close()


def test_a_failed_sync_ends_the_process_because_nobody_can_know(tmp_path: Path) -> None:
    files = FailingFiles()
    log = opened(tmp_path, files)
    log.append([entry("g", 0, 1)], durable=True)
    log.append([entry("g", 0, 2)], durable=False)
    files.fail("fdatasync")
    with pytest.raises(OffsetLogFailed):
        log.sync()


def test_a_flush_in_another_thread_makes_durable_what_was_there(tmp_path: Path) -> None:
    log = opened(tmp_path)
    assert log.begin_flush() is None
    log.append([entry("g", 0, 1)], durable=False)
    job = log.begin_flush()
    assert job is not None
    log.append([entry("g", 0, 2)], durable=False)
    job.run()
    log.finish_flush(job)
    assert log.begin_flush() is not None, "what came meanwhile is not on the disk yet"
    log.close()


def test_an_entry_is_a_record_and_comes_back_from_it() -> None:
    for one in (entry("g", 4, 0), entry("ü", 0, 2**61)):
        assert entry_of(*record_of(one)) == one
    key, value = record_of(entry("g", 4, None))
    assert value is None
    assert entry_of(key, value) == OffsetEntry("g", "", 7, 4, None)


def test_what_is_no_entry_is_refused() -> None:
    key, value = record_of(entry("g", 4, 1))
    for bad in ((None, value), (b"", value), (key[:-1], value), (key, b"\xc1")):
        with pytest.raises(CorruptRecordError):
            entry_of(*bad)
    with pytest.raises(UnsupportedVersionError):
        entry_of(key[:1] + b"\x02" + key[2:], value)


def test_a_reader_of_files_sees_slots_before_the_log_until_they_are_folded(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.append([entry("g", 0, 5), entry("g", 1, 6)], durable=False)
    groups_dir = tmp_path / "groups"
    groups_dir.mkdir()
    names = SlotNames("g", "m", "", "")
    made = CoordinatorSlots.create(slot_file_path(groups_dir, 1, 1), names, 0, 0, 64)
    open_slot = made.open_slot(cell_key(7, 0), 5, 1)
    folded = made.open_slot(cell_key(7, 1), 6, 1)
    member = MemberSlots.attach(made.path)
    member.commit(open_slot, 50)
    member.commit(folded, 3)
    made.close_slot(folded)
    made.set_folded(folded)
    found = committed_offsets(tmp_path / "offsets", groups_dir)["g"]
    assert [(key, one.offset, one.topic) for key, one in found.items()] == [
        ((7, 0), 50, "orders"),
        ((7, 1), 6, "orders"),
    ]
    member.close()
    made.close()
    log.close()


def test_without_files_nobody_has_committed(tmp_path: Path) -> None:
    assert committed_offsets(tmp_path / "offsets", tmp_path / "groups") == {}


def test_a_torn_tail_is_left_out_by_a_reader_of_files(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.append([entry("g", 0, 5)], durable=False)
    log.append([entry("g", 0, 6)], durable=False)
    (segment,) = (tmp_path / "offsets").glob("*.log")
    data = bytearray(segment.read_bytes())
    (_, _), (position, header) = batches_in(data)
    data[position + header.size_bytes - 1] ^= 0xFF
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / segment.name).write_bytes(data)
    assert logged_offsets(tmp_path / "other").of("g")[7, 0].offset == 5
    log.close()


def test_a_second_coordinator_cannot_open_it(tmp_path: Path) -> None:
    log = opened(tmp_path)
    with pytest.raises((BrokerError, StorageError)):
        opened(tmp_path)
    log.close()
