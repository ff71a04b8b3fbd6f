"""The file that says what a log knows of producers: its bytes, and when it is not believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storage_logs import append_batch, kill
from tests.unit.test_storage_copied_log import open_copy
from zbroker.record.batch import read_header, stamp
from zbroker.record.columns import encode_columns
from zbroker.storage.copied_log import CopiedLog
from zbroker.storage.files import Files
from zbroker.storage.layout import PRODUCERS, KnownBatch, KnownProducer, pack_snapshot, unpack_snapshot
from zbroker.storage.producer_snapshot import load, save

KNOWN = [
    KnownProducer(7, 1_700_000_000_000, 3, [KnownBatch(0, 2, 0, 3), KnownBatch(3, 5, 10, 13)]),
    KnownProducer(1 << 62 | 5, 1_700_000_000_001, 0, [KnownBatch(0, 0, 20, 24)]),
]
GOLDEN = (
    "7a427073 01000000 2a00000000000000 02000000 00000000"
    "0700000000000000 0068e5cf8b010000 0300 0200 00000000"
    "00000000 02000000 0000000000000000 0300000000000000"
    "03000000 05000000 0a00000000000000 0d00000000000000"
    "0500000000000040 0168e5cf8b010000 0000 0100 00000000"
    "00000000 00000000 1400000000000000 1800000000000000"
)


def add(log: CopiedLog, sequence: int, *, producer_id: int = 7, epoch: int = 1) -> None:
    encoded = encode_columns(
        [b"v"] * 3, timestamp_ms=1, producer_id=producer_id, producer_epoch=0, base_sequence=sequence
    )
    stamp(encoded, log.log_end, epoch)
    append_batch(log, encoded)


def test_the_bytes_are_those_of_the_document() -> None:
    data = pack_snapshot(42, KNOWN)
    assert data[:-4].hex() == GOLDEN.replace(" ", "")
    assert unpack_snapshot(data) == (42, KNOWN)


@pytest.mark.parametrize("flip", range(0, 172, 3))
def test_a_changed_byte_is_found(flip: int) -> None:
    data = bytearray(pack_snapshot(42, KNOWN))
    data[flip % len(data)] ^= 0x40
    assert unpack_snapshot(bytes(data)) is None


@pytest.mark.parametrize("size", [0, 3, 24, 27, 60])
def test_a_short_file_is_no_snapshot(size: int) -> None:
    assert unpack_snapshot(pack_snapshot(42, KNOWN)[:size]) is None


def test_a_start_reads_the_snapshot_and_the_headers_behind_it(tmp_path: Path) -> None:
    files = Files()
    log = open_copy(tmp_path, files)
    for number in range(10):
        add(log, 3 * number)
    save(tmp_path, files, 15, KNOWN)
    known, headers = load(log, files)
    assert known == KNOWN
    assert [header.base_sequence for header in headers] == [15, 18, 21, 24, 27]
    kill(log)


def test_t05_without_a_sound_snapshot_every_header_is_read(tmp_path: Path) -> None:
    files = Files()
    log = open_copy(tmp_path, files)
    for number in range(10):
        add(log, 3 * number)
    for content in (None, b"", b"garbage" * 9, pack_snapshot(31, KNOWN), pack_snapshot(15, KNOWN)[:-1]):
        if content is not None:
            (tmp_path / PRODUCERS).write_bytes(content)
        known, headers = load(log, files)
        assert known == []
        assert [header.base_sequence for header in headers] == list(range(0, 30, 3))
        assert not (tmp_path / PRODUCERS).exists()
    kill(log)


@pytest.mark.parametrize("way", ["truncate", "reset"])
def test_a_snapshot_goes_with_the_history_that_it_tells_of(tmp_path: Path, way: str) -> None:
    files = Files()
    log = open_copy(tmp_path, files)
    for number in range(10):
        add(log, 3 * number)
    save(tmp_path, files, 30, KNOWN)
    if way == "truncate":
        log.truncate_to(12)
    else:
        log.reset_to(0)
    begin = log.log_end // 3
    for number in range(begin, 20):
        add(log, 3 * number, producer_id=8, epoch=2)
    known, headers = load(log, files)
    assert known == []
    found = [(header.producer_id, header.base_sequence) for header in headers]
    assert found == [(7 if number < begin else 8, 3 * number) for number in range(20)]
    assert read_header(log.read(log.log_start, 1 << 16, log.log_end)).base_sequence == 0
    kill(log)
