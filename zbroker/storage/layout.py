"""The names and bytes of a copy's files, but for the log itself (`zbroker.record.layout`).

A copy is one directory. Names of segment files are the offset of their first record in 20 digits:

    00000000000000000345.log         whole batches, one after the other; zeros behind the logical end
    00000000000000000345.index       Kafka's offset index, big-endian
    00000000000000000345.timeindex   Kafka's time index, big-endian
    leader-epoch-checkpoint          Kafka's text: "0", the number of lines, then "EPOCH START_OFFSET" lines
    high-watermark                   two slots (below)
    clean-shutdown                   one marker (below); there only while nobody writes
    producer-snapshot                what the log says of producers up to an offset (below)
    compaction                       text: "0", the number of lines, then "END_OFFSET WALL_MS TOMBSTONES" lines (below)
    BASE-END.swap                    a whole segment that is about to take the place of those from BASE up to END

    .index, 8 bytes an entry                       .timeindex, 12 bytes an entry
     0 relative offset u32 | 4 position u32         0 timestamp i64 | 8 relative offset u32

An .index entry names the last offset of a batch, less the segment's base offset, and the byte where that batch begins
(base 345, batch of 350 to 355: relative offset 10). Entries stand `index_interval_bytes` apart and only rise. A
.timeindex entry says: TIMESTAMP is the largest of all records up to and including OFFSET.

    high-watermark: slot 0 at byte 0, slot 1 at byte 512, 64 bytes each, little-endian; the newest sound one counts
     0 magic "zBhw" | 4 version u32 = 1 | 8 sequence u64 | 16 high watermark i64 | 24 recovery point i64
    32 log start i64 | 40 boot id, 16 bytes | 56 zero u32 | 60 CRC-32C of bytes 0 to 60

    clean-shutdown: 64 bytes, little-endian
     0 magic "zBcs" | 4 version u32 = 1 | 8 log start i64 | 16 log end i64 | 24 active base i64 | 32 active position i64
    40 zero, 20 bytes | 60 CRC-32C of bytes 0 to 60

    producer-snapshot: little-endian, CRC-32C of everything before it as the last 4 bytes
     0 magic "zBps" | 4 version u32 = 1 | 8 offset i64 | 16 producers u32 | 20 zero u32
    then each producer, the longest unused first:
     0 producer id i64 | 8 wall time of the last use in ms i64 | 16 epoch i16 | 18 batches u16 | 20 zero u32
    and behind it each of its last batches, oldest first:
     0 first sequence i32 | 4 last sequence i32 | 8 base offset i64 | 16 next offset i64

A snapshot tells of all batches below its offset, and of none behind it.

A line of `compaction` says: at WALL_MS every key had one record at most below END_OFFSET, and TOMBSTONES of these had
no value. END_OFFSET and WALL_MS only rise. Both offsets of a .swap file's name have 20 digits; it is whole and synced
when it has that name, and a start that finds one puts it in its place.

An unknown version, a wrong magic or a wrong CRC is as if the file were not there: each of these files can be rebuilt
from the log, and a start without them is only slower.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from zbroker.record.crc import crc32c

LOG: Final = ".log"
INDEX: Final = ".index"
TIMEINDEX: Final = ".timeindex"
DELETED: Final = ".deleted"
TEMPORARY: Final = ".tmp"
SEGMENT_SUFFIXES: Final = (LOG, INDEX, TIMEINDEX)
EPOCHS: Final = "leader-epoch-checkpoint"
HIGH_WATERMARK: Final = "high-watermark"
CLEAN_MARKER: Final = "clean-shutdown"
PRODUCERS: Final = "producer-snapshot"
COMPACTION: Final = "compaction"
_SWAP_NAME = re.compile(r"([0-9]{20})-([0-9]{20})\.swap\Z")
_SEGMENT_NAME = re.compile(r"([0-9]{20})(\.log|\.index|\.timeindex)\Z")

INDEX_ENTRY = struct.Struct(">II")
TIMEINDEX_ENTRY = struct.Struct(">qI")
assert INDEX_ENTRY.size == 8
assert TIMEINDEX_ENTRY.size == 12

SAVED = struct.Struct("<4sIQqqq16sI")
MARKER = struct.Struct("<4sIqqqq20x")
RECORD_BYTES: Final = 64  # of a slot and of the marker
SLOT_SPACING: Final = 512  # apart by a sector: a torn write damages one slot at most
SAVED_FILE_BYTES: Final = 2 * SLOT_SPACING
_CRC = struct.Struct("<I")
assert SAVED.size + _CRC.size == RECORD_BYTES
assert MARKER.size + _CRC.size == RECORD_BYTES
SNAPSHOT_HEAD = struct.Struct("<4sIqI4x")
SNAPSHOT_PRODUCER = struct.Struct("<qqhH4x")
SNAPSHOT_BATCH = struct.Struct("<iiqq")
assert SNAPSHOT_HEAD.size == 24
assert SNAPSHOT_PRODUCER.size == 24
assert SNAPSHOT_BATCH.size == 24
SNAPSHOT_BYTES_MAX: Final = 1 << 28
_SNAPSHOT_MAGIC: Final = b"zBps"
_SAVED_MAGIC: Final = b"zBhw"
_MARKER_MAGIC: Final = b"zBcs"
VERSION: Final = 1

PAGE_BYTES: Final = 4096
SEAL_MARGIN_BYTES: Final = 64  # zeros that stay mapped behind the end of a sealed segment: room to see that it ends
RELATIVE_MAX: Final = 0xFFFF_FFFF
BATCH_BYTES_MAX: Final = 16 << 20  # what max_message_bytes may be at most; a longer one in a log is damage
EPOCH_LINES_MAX: Final = 1_000_000


class SavedPositions(NamedTuple):
    """What `high-watermark` holds. All offsets; everything below `recovery_point` was fdatasynced."""

    sequence: int
    high_watermark: int
    recovery_point: int
    log_start: int
    boot_id: bytes


class CleanMarker(NamedTuple):
    """What a clean stop says about the end of the log."""

    log_start: int
    log_end: int
    active_base: int
    active_position: int


class KnownBatch(NamedTuple):
    """A batch in `producer-snapshot`: its first and last sequence, its place, and the offset behind it."""

    first_sequence: int
    last_sequence: int
    base_offset: int
    next_offset: int


class KnownProducer(NamedTuple):
    """A producer in `producer-snapshot`. `used_ms` is wall time."""

    producer_id: int
    used_ms: int
    epoch: int
    batches: list[KnownBatch]


def segment_name(base_offset: int, suffix: str = LOG) -> str:
    """The name of a segment's file."""
    assert base_offset >= 0
    return f"{base_offset:020d}{suffix}"


def parse_segment_name(name: str) -> tuple[int, str] | None:
    """(base offset, suffix) of a segment's file; None for any other name."""
    found = _SEGMENT_NAME.match(name)
    return (int(found[1]), found[2]) if found else None


def swap_name(base_offset: int, next_offset: int) -> str:
    """The name of a segment that is about to replace others."""
    assert 0 <= base_offset < next_offset
    return f"{base_offset:020d}-{next_offset:020d}.swap"


def parse_swap_name(name: str) -> tuple[int, int] | None:
    """(base offset, the offset behind the last segment that it replaces); None for any other name."""
    found = _SWAP_NAME.match(name)
    return (int(found[1]), int(found[2])) if found else None


def _with_crc(body: bytes) -> bytes:
    return body + _CRC.pack(crc32c(body))


def _is_sound(record: bytes, magic: bytes) -> bool:
    return (
        len(record) == RECORD_BYTES
        and record[:4] == magic
        and int.from_bytes(record[4:8], "little") == VERSION
        and _CRC.unpack_from(record, RECORD_BYTES - _CRC.size)[0] == crc32c(record[: -_CRC.size])
    )


def pack_saved(saved: SavedPositions) -> bytes:
    """The 64 bytes of one slot."""
    return _with_crc(SAVED.pack(_SAVED_MAGIC, VERSION, *saved, 0))


def unpack_saved(data: bytes) -> SavedPositions | None:
    """The newest sound slot of the file's content; None when there is none."""
    best: SavedPositions | None = None
    for position in (0, SLOT_SPACING):
        record = data[position : position + RECORD_BYTES]
        if _is_sound(record, _SAVED_MAGIC):
            found = SavedPositions(*SAVED.unpack_from(record)[2:7])
            if best is None or found.sequence > best.sequence:
                best = found
    return best


def pack_marker(marker: CleanMarker) -> bytes:
    """The 64 bytes of a clean stop."""
    return _with_crc(MARKER.pack(_MARKER_MAGIC, VERSION, *marker))


def unpack_marker(data: bytes) -> CleanMarker | None:
    """The marker in the file's content; None when it is not sound."""
    record = data[:RECORD_BYTES]
    return CleanMarker(*MARKER.unpack_from(record)[2:]) if _is_sound(record, _MARKER_MAGIC) else None


def pack_snapshot(offset: int, producers: Sequence[KnownProducer]) -> bytes:
    """The whole `producer-snapshot`: what batches below `offset` say of producers."""
    parts = [SNAPSHOT_HEAD.pack(_SNAPSHOT_MAGIC, VERSION, offset, len(producers))]
    for known in producers:
        parts.append(SNAPSHOT_PRODUCER.pack(known.producer_id, known.used_ms, known.epoch, len(known.batches)))
        parts += [SNAPSHOT_BATCH.pack(*batch) for batch in known.batches]
    return _with_crc(b"".join(parts))


def unpack_snapshot(data: bytes) -> tuple[int, list[KnownProducer]] | None:
    """(offset, producers); None when the content is not sound."""
    end = len(data) - _CRC.size
    if end < SNAPSHOT_HEAD.size or _CRC.unpack_from(data, end)[0] != crc32c(data[:end]):
        return None
    magic, version, offset, count = SNAPSHOT_HEAD.unpack_from(data)
    if magic != _SNAPSHOT_MAGIC or version != VERSION or count * SNAPSHOT_PRODUCER.size > end:
        return None
    position, producers = SNAPSHOT_HEAD.size, []
    for _ in range(count):
        if position + SNAPSHOT_PRODUCER.size > end:
            return None
        producer_id, used_ms, epoch, batches = SNAPSHOT_PRODUCER.unpack_from(data, position)
        position += SNAPSHOT_PRODUCER.size
        following = position + batches * SNAPSHOT_BATCH.size
        if following > end:
            return None
        found = [KnownBatch(*one) for one in SNAPSHOT_BATCH.iter_unpack(data[position:following])]
        producers.append(KnownProducer(producer_id, used_ms, epoch, found))
        position = following
    return (offset, producers) if position == end else None
