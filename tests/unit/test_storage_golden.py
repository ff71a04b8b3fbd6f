"""The bytes of every file of a copy, as they were first written: a change of format shows here."""

from __future__ import annotations

import struct
from pathlib import Path

from tests.storage_logs import RebootableFiles, append_batch, make_batch, open_log
from zbroker.storage.layout import (
    CleanMarker,
    SavedPositions,
    pack_marker,
    pack_saved,
    parse_segment_name,
    segment_name,
    unpack_marker,
    unpack_saved,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "storage_files.txt"


def hex_lines(data: bytes, row_bytes: int) -> list[str]:
    return [data[start : start + row_bytes].hex(" ", 4) for start in range(0, len(data), row_bytes)]


def written_copy(directory: Path) -> str:
    """A small copy of known content, as text."""
    log = open_log(directory, files=RebootableFiles(), segment_bytes=4096, index_interval_bytes=200)
    for number in range(12):
        values = [b"value-%02d" % (number * 3 + index) for index in range(3)]
        epoch = 1 if number < 6 else 4
        append_batch(log, make_batch(log.log_end, values, epoch=epoch, timestamp_ms=1_700_000_000_000 + number % 5))
    log.flush()
    log.save_high_watermark(33)
    log.close()
    lines: list[str] = []
    for name, row_bytes, limit in (
        ("00000000000000000000.log", 16, 112),
        ("00000000000000000000.index", 8, 1 << 20),
        ("00000000000000000000.timeindex", 12, 1 << 20),
        ("high-watermark", 16, 1 << 20),
        ("clean-shutdown", 16, 1 << 20),
    ):
        lines += [f"# {name}, the first {limit} bytes" if limit < 1 << 20 else f"# {name}"]
        rows = hex_lines((directory / name).read_bytes()[:limit], row_bytes)
        lines += [row for row in rows if row.strip("0 ")]
    lines += ["# leader-epoch-checkpoint", (directory / "leader-epoch-checkpoint").read_text()]
    return "\n".join(lines)


def test_the_files_of_a_copy_have_the_bytes_that_they_always_had(tmp_path: Path) -> None:
    assert written_copy(tmp_path / "p") == GOLDEN.read_text()


def test_a_slot_and_a_marker_come_back_as_they_were() -> None:
    saved = SavedPositions(7, 100, 90, 10, bytes(range(16)))
    assert unpack_saved(pack_saved(saved)) == saved
    marker = CleanMarker(10, 100, 64, 4_000)
    assert unpack_marker(pack_marker(marker)) == marker


def test_every_flipped_bit_makes_a_slot_and_a_marker_unsound() -> None:
    saved = pack_saved(SavedPositions(7, 100, 90, 10, bytes(16)))
    marker = pack_marker(CleanMarker(10, 100, 64, 4_000))
    for position in range(64):
        for bit in range(8):
            flip = 1 << bit
            assert unpack_saved(saved[:position] + bytes([saved[position] ^ flip]) + saved[position + 1 :]) is None
            assert unpack_marker(marker[:position] + bytes([marker[position] ^ flip]) + marker[position + 1 :]) is None


def test_the_newest_sound_slot_counts() -> None:
    old = pack_saved(SavedPositions(6, 50, 50, 0, bytes(16)))
    new = pack_saved(SavedPositions(7, 100, 90, 0, bytes(16)))
    gap = bytes(512 - 64)
    for data in (old + gap + new, new + gap + old):
        found = unpack_saved(data)
        assert found is not None
        assert found.high_watermark == 100
    torn = unpack_saved(old + gap + new[:40])
    assert torn is not None
    assert torn.high_watermark == 50


def test_an_unknown_version_is_as_if_the_file_were_not_there() -> None:
    from zbroker.record.crc import crc32c

    body = bytearray(pack_marker(CleanMarker(10, 100, 64, 4_000))[:60])
    body[4] = 2
    assert unpack_marker(bytes(body) + struct.pack("<I", crc32c(bytes(body)))) is None


def test_segments_are_named_by_their_first_offset_in_twenty_digits() -> None:
    assert segment_name(345) == "00000000000000000345.log"
    assert segment_name((1 << 63) - 1) == "09223372036854775807.log"
    assert parse_segment_name("00000000000000000345.timeindex") == (345, ".timeindex")
    for name in ("345.log", "00000000000000000345.log.deleted", "0000000000000000034x.log", "00000000000000000345.txt"):
        assert parse_segment_name(name) is None
