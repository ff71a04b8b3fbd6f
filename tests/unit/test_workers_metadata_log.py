"""The metadata log: appends are replayed, a torn tail is cut, damage is refused, a snapshot replaces it whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pytest

from zbroker.core.entries import (
    Adopted,
    AnyEntry,
    Booted,
    ClusterCreated,
    Continued,
    CopiesChanged,
    CopyPlaced,
    Elected,
    Former,
    InSync,
    IsrChanged,
    PartitionsAdded,
    Placement,
    ProducerIds,
    TopicConfigured,
    TopicCreated,
    TopicDeleted,
    TransactionalId,
)
from zbroker.errors import CopyDamagedError, UnsupportedVersionError
from zbroker.storage.files import Files
from zbroker.workers.metadata_log import FRAME, LOG_NAME, MetadataLog, frame, frames, parse

GOLDEN = Path(__file__).parent.parent / "golden"

ENTRIES: list[AnyEntry] = [
    ClusterCreated("0123456789abcdefABCDEF"),
    TopicCreated(1, "orders", {"retention.ms": "60000"}, [Placement(0, 1, "data", 16), Placement(1, 2, "data", 18)]),
    Elected(16, 12345, [(1, 0, 0)]),
    TopicDeleted(1),
]


def filled(directory: Path, *, durable: bool = True) -> bytes:
    """A log with the entries, each appended by itself; its bytes."""
    log = MetadataLog.open(directory, Files())
    for entry in ENTRIES:
        log.append([entry], durable=durable)
    log.close()
    return (directory / LOG_NAME).read_bytes()


def reopened(directory: Path) -> tuple[list[AnyEntry], int]:
    log = MetadataLog.open(directory, Files())
    log.close()
    return log.entries, log.cut_bytes


@pytest.mark.parametrize("durable", [True, False])
def test_what_was_appended_is_read_again_in_order(tmp_path: Path, durable: bool) -> None:
    filled(tmp_path, durable=durable)
    assert reopened(tmp_path) == (ENTRIES, 0)


def test_one_append_is_one_write_and_one_sync(tmp_path: Path) -> None:
    calls: list[str] = []

    class Counting(Files):
        def write_some(self, fd: int, data: bytes | bytearray | memoryview, position: int) -> int:
            calls.append("write" if len(data) > FRAME.size else "mark")
            return super().write_some(fd, data, position)

        def fdatasync(self, fd: int) -> None:
            calls.append("sync")
            super().fdatasync(fd)

    log = MetadataLog.open(tmp_path, Counting())
    calls.clear()
    log.append(ENTRIES, durable=True)
    assert calls == ["write", "sync", "mark"]
    calls.clear()
    log.append(ENTRIES[:1], durable=False)
    assert calls == ["write"]
    log.sync()
    assert calls == ["write", "sync", "mark"]
    log.sync()
    assert calls == ["write", "sync", "mark"], "nothing to sync"
    log.close()


def test_t14_a_tail_torn_at_any_byte_is_cut_and_reported(tmp_path: Path) -> None:
    log = MetadataLog.open(tmp_path, Files())
    log.append(ENTRIES[:2], durable=True)
    whole = log.size_bytes
    log.append(ENTRIES[2:], durable=False)
    log.close()
    data = (tmp_path / LOG_NAME).read_bytes()
    first_unsynced = whole + len(frames(ENTRIES[2:3], whole))
    for size_bytes in range(whole, len(data)):
        (tmp_path / LOG_NAME).write_bytes(data[:size_bytes])
        good = first_unsynced if size_bytes >= first_unsynced else whole
        entries, cut_bytes = reopened(tmp_path)
        assert entries == ENTRIES[: 3 if size_bytes >= first_unsynced else 2], f"cut at {size_bytes}"
        assert cut_bytes == size_bytes - good, f"cut at {size_bytes}"
        assert reopened(tmp_path) == (entries, 0), "a second opening finds nothing to cut"


def test_t14_an_unsynced_append_may_be_lost_although_a_later_one_was_kept(tmp_path: Path) -> None:
    """The page cache is written back in any order: a hole before a good frame is no damage if nothing was synced."""
    log = MetadataLog.open(tmp_path, Files())
    log.append(ENTRIES[:1], durable=True)
    start = log.size_bytes
    log.append(ENTRIES[1:2], durable=False)
    end = log.size_bytes
    log.append(ENTRIES[2:], durable=False)
    log.close()
    data = bytearray((tmp_path / LOG_NAME).read_bytes())
    data[start:end] = bytes(end - start)
    (tmp_path / LOG_NAME).write_bytes(data)
    assert reopened(tmp_path) == (ENTRIES[:1], len(data) - start)


def test_damage_in_what_was_synced_is_refused_and_names_the_file_and_the_byte(tmp_path: Path) -> None:
    data = bytearray(filled(tmp_path))
    data[len(data) // 2] ^= 1
    (tmp_path / LOG_NAME).write_bytes(data)
    with pytest.raises(CopyDamagedError, match=rf"{tmp_path / LOG_NAME}: damage at byte \d+"):
        MetadataLog.open(tmp_path, Files())
    assert (tmp_path / LOG_NAME).read_bytes() == bytes(data), "the file is left as it was found"


def test_every_flipped_bit_of_a_synced_log_is_refused_or_hits_only_its_last_mark(tmp_path: Path) -> None:
    data = filled(tmp_path)
    last_mark = len(data) - FRAME.size
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << (at % 8)
        (tmp_path / LOG_NAME).write_bytes(damaged)
        if at >= last_mark:
            assert reopened(tmp_path)[0] == ENTRIES, f"byte {at}"
        else:
            with pytest.raises(CopyDamagedError):
                MetadataLog.open(tmp_path, Files())


def test_an_append_after_a_cut_is_read_again(tmp_path: Path) -> None:
    data = filled(tmp_path)
    (tmp_path / LOG_NAME).write_bytes(data + b"\x99" * 7)
    log = MetadataLog.open(tmp_path, Files())
    assert log.cut_bytes == 7
    log.append([Booted("b")], durable=True)
    log.close()
    assert reopened(tmp_path) == ([*ENTRIES, Booted("b")], 0)


def test_a_snapshot_replaces_the_log_and_is_appended_to(tmp_path: Path) -> None:
    log = MetadataLog.open(tmp_path, Files())
    log.append(ENTRIES * 10, durable=True)
    log.replace(ENTRIES[:1])
    assert log.entry_count == 1
    log.append(ENTRIES[1:2], durable=True)
    log.close()
    assert reopened(tmp_path) == (ENTRIES[:2], 0)
    assert sorted(os.listdir(tmp_path)) == [LOG_NAME]


def test_what_a_snapshot_that_was_not_finished_left_behind_is_removed(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / f"{LOG_NAME}.tmp").write_bytes(b"half")
    assert reopened(tmp_path) == (ENTRIES, 0)
    assert sorted(os.listdir(tmp_path)) == [LOG_NAME]


def test_a_newer_brokers_log_is_refused_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / LOG_NAME).write_bytes(frame(b"\x81\xa4type\xa7Unknown", 0))
    with pytest.raises(UnsupportedVersionError, match="newer zbroker"):
        MetadataLog.open(tmp_path, Files())
    (tmp_path / LOG_NAME).write_bytes(frames([ClusterCreated("id", layout=2)], 0))
    with pytest.raises(UnsupportedVersionError, match="layout 2"):
        MetadataLog.open(tmp_path, Files())


def test_the_bytes_of_every_entry_are_those_of_the_golden_file() -> None:
    every: list[AnyEntry] = [
        *ENTRIES,
        Booted("7d9e"),
        PartitionsAdded(1, [Placement(2, 3, "/disk2", 16)]),
        TopicConfigured(1, {}),
        Adopted(18, [1, 2]),
        Continued(9, 2, 4),
        TopicCreated(2, "pay", {}, [Placement(0, 4, "data", 16, (CopyPlaced(5, "/disk2", 17),), home=18)]),
        IsrChanged([InSync(2, 0, 1, [4], [5])]),
        Elected(16, 7, [(2, 0, 3)], [4], [InSync(2, 0, 2, [4], [])], [Former(2, 0, 9)]),
        CopiesChanged(2, 0, 3, [CopyPlaced(4, "data", 16), CopyPlaced(6, "data", 19)], [6], [4]),
        ProducerIds(1000),
        TransactionalId("till-1", 7, 2),
    ]
    assert {type(entry) for entry in every} == set(get_args(AnyEntry)), "every type of entry has its golden bytes"
    lines = [f"{type(entry).__name__} {frames([entry], 5).hex()}\n" for entry in every]
    if os.environ.get("ZB_REWRITE_GOLDEN"):
        (GOLDEN / "cluster_metadata_log.txt").write_text("".join([*lines, f"mark {frame(b'', 5).hex()}\n"]))
    assert (GOLDEN / "cluster_metadata_log.txt").read_text() == "".join([*lines, f"mark {frame(b'', 5).hex()}\n"])


def test_zeros_are_no_entries() -> None:
    assert parse(bytes(100)) == ([], 0, False)


def test_the_cluster_id_is_shown_to_others_and_kept_right(tmp_path: Path) -> None:
    log = MetadataLog.open(tmp_path, Files())
    for cluster_id in ("first", "first", "second"):
        log.write_cluster_id(cluster_id)
        assert (tmp_path / "cluster-id").read_text() == f"{cluster_id}\n"
    log.close()
