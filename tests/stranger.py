"""A reader of zbroker's files as a stranger would write it from docs/formats.md and docs/shm.md, in any language.

It imports nothing of zbroker: struct, and an lz4 library. Whoever changes it because a file could not be read has found
a fault in the documents, and mends them too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lz4.frame

CRC_TABLE = []
for number in range(256):
    for _ in range(8):
        number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
    CRC_TABLE.append(number)


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class UnreadableError(Exception):
    """Bytes that the documents tell a reader to refuse."""


class Batch(NamedTuple):
    position: int
    size_bytes: int
    base_offset: int
    last_offset: int
    epoch: int
    magic: int
    compression: int
    records: list[Record]


class Record(NamedTuple):
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


# --- a segment file -------------------------------------------------------------------------------------------------


def batches(log: bytes, position: int = 0) -> Iterator[Batch]:
    """Whole batches from a position on, up to the logical end."""
    while position + 61 <= len(log):
        (base, length, epoch, magic, crc, attributes, last, base_time, max_time, _, _, _, count) = struct.unpack_from(
            ">qiibIhiqqqhii", log, position
        )
        if magic == 0:
            return
        end = position + 12 + length
        if magic not in (2, 67) or length < 49 or end > len(log) or last != count - 1 or attributes & 7 > 4:
            raise UnreadableError(f"batch at {position}")
        if crc32c(log[position + 21 : end]) != crc:
            raise UnreadableError(f"CRC at {position}")
        codec = attributes & 7
        if magic == 2:
            rows = log[position + 61 : end]
            found = read_rows(lz4.frame.decompress(rows) if codec == 3 else rows, count, base_time)
        else:
            flags, zero = log[position + 61], log[position + 62 : position + 64]
            if flags & ~31 or zero != b"\0\0" or (12 + length) % 8:
                raise UnreadableError(f"columns at {position}")
            body = log[position + 64 : end]
            if codec == 3:
                stored, plain = struct.unpack_from("<II", body)
                body = lz4.frame.decompress(body[8 : 8 + stored])
                if len(body) != plain:
                    raise UnreadableError(f"length at {position}")
            found = read_columns(body, flags, count, base_time)
        if attributes & 8:
            found = [(max_time, *rest) for _, *rest in found]
        records = [Record(base + number, *one) for number, one in enumerate(found)]
        yield Batch(position, 12 + length, base, base + last, epoch, magic, codec, records)
        position = end


def read_columns(body: bytes, flags: int, count: int, base_time: int) -> list[Any]:
    position = 0

    def array(code: str, size: int, length: int) -> tuple[int, ...]:
        nonlocal position
        position = (position + 7) // 8 * 8
        found = struct.unpack_from(f"<{length}{code}", body, position)
        position += size * length
        return found

    nulls_bytes = (count + 7) // 8
    value_ends = array("I", 4, count)
    key_ends = array("I", 4, count) if flags & 1 else None
    value_nulls = array("B", 1, nulls_bytes) if flags & 2 else None
    key_nulls = array("B", 1, nulls_bytes) if flags & 4 else None
    times = array("q", 8, count) if flags & 8 else [base_time] * count
    header_ends = array("I", 4, count) if flags & 16 else None
    position = (position + 7) // 8 * 8

    def blobs(ends: tuple[int, ...] | None, nulls: tuple[int, ...] | None) -> list[bytes | None]:
        nonlocal position
        if ends is None:
            return [None] * count
        found: list[bytes | None] = []
        start = 0
        for number, end in enumerate(ends):
            if nulls is not None and nulls[number // 8] >> number % 8 & 1:
                found.append(None)
            else:
                found.append(body[position + start : position + end])
            start = end
        position += ends[-1]
        return found

    values, keys = blobs(value_ends, value_nulls), blobs(key_ends, key_nulls)
    headers = [read_headers(blob) for blob in blobs(header_ends, None)]
    if any(body[position:]):
        raise UnreadableError("bytes behind the last blob")
    return list(zip(times, keys, values, headers, strict=True))


def read_headers(blob: bytes | None) -> list[tuple[str, bytes | None]]:
    found: list[tuple[str, bytes | None]] = []
    position = 0
    while blob is not None and position < len(blob):
        name_bytes, value_bytes = struct.unpack_from("<HI", blob, position)
        position += 6
        name = blob[position : position + name_bytes].decode()
        position += name_bytes
        if value_bytes == 0xFFFFFFFF:
            found.append((name, None))
        else:
            found.append((name, blob[position : position + value_bytes]))
            position += value_bytes
    return found


def read_rows(body: bytes, count: int, base_time: int) -> list[Any]:
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = body[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value >> 1 ^ -(value & 1)

    def blob() -> bytes | None:
        nonlocal position
        length = varint()
        if length < 0:
            return None
        position += length
        return body[position - length : position]

    found = []
    for number in range(count):
        length = varint()
        end = position + length
        position += 1  # attributes
        time = base_time + varint()
        if varint() != number:
            raise UnreadableError("offset delta")
        key, value = blob(), blob()
        headers = [((blob() or b"").decode(), blob()) for _ in range(varint())]
        if position != end:
            raise UnreadableError("row length")
        found.append((time, key, value, headers))
    return found


# --- a copy's directory ---------------------------------------------------------------------------------------------


def bases(directory: Path) -> list[int]:
    """Base offsets of the segments."""
    return sorted(int(path.stem) for path in directory.iterdir() if path.suffix == ".log" and len(path.stem) == 20)


def position_in(directory: Path, base: int, offset: int) -> int:
    """The position of a batch at or before an offset, by the segment's index."""
    data = (directory / f"{base:020}.index").read_bytes()
    best = 0
    for relative, position in struct.iter_unpack(">II", data):
        if base + relative > offset:
            break
        best = position
    return best


def offset_not_as_late(directory: Path, base: int, timestamp: int) -> int:
    """Up to this offset no record of the segment is as late as the timestamp; base - 1 when nothing is known."""
    data = (directory / f"{base:020}.timeindex").read_bytes()
    best = base - 1
    for time, relative in struct.iter_unpack(">qI", data):
        if time >= timestamp:
            break
        best = base + relative
    return best


def records(directory: Path, start: int, end: int) -> Iterator[Record]:
    """The records with start <= offset < end."""
    found = bases(directory)
    base = max(one for one in found if one <= start)
    position = position_in(directory, base, start)
    while True:
        following = start
        for batch in batches((directory / f"{base:020}.log").read_bytes(), position):
            following = batch.last_offset + 1
            for record in batch.records:
                if record.offset >= end:
                    return
                if record.offset >= start:
                    yield record
        if following not in found or following == base:
            return
        base, position = following, 0


def epochs(directory: Path) -> list[tuple[int, int]]:
    """(epoch, its first offset)."""
    lines = (directory / "leader-epoch-checkpoint").read_text().splitlines()
    assert lines[0] == "0"
    assert int(lines[1]) == len(lines) - 2
    return [(int(epoch), int(start)) for epoch, start in (line.split() for line in lines[2:])]


class Positions(NamedTuple):
    sequence: int
    high_watermark: int
    recovery_point: int
    log_start: int


def is_sound(data: bytes, magic: bytes) -> bool:
    """Whether these are the 64 bytes of a slot or marker of version 1."""
    return (
        len(data) == 64 and data[:8] == magic + b"\1\0\0\0" and crc32c(data[:60]) == int.from_bytes(data[60:], "little")
    )


def saved_positions(directory: Path) -> Positions:
    """The newest sound slot of `high-watermark`."""
    data = (directory / "high-watermark").read_bytes()
    sound = []
    for at in (0, 512):
        slot = data[at : at + 64]
        if is_sound(slot, b"zBhw"):
            sound.append(Positions(*struct.unpack_from("<Qqqq", slot, 8)))
    return max(sound)


def clean_end(directory: Path) -> tuple[int, int, int, int] | None:
    """What a clean stop left: log start, log end, active base, active position."""
    path = directory / "clean-shutdown"
    marker = path.read_bytes() if path.exists() else b""
    if (
        len(marker) != 64
        or marker[:8] != b"zBcs\1\0\0\0"
        or crc32c(marker[:60]) != int.from_bytes(marker[60:], "little")
    ):
        return None
    log_start, log_end, active_base, active_position = struct.unpack_from("<qqqq", marker, 8)
    return log_start, log_end, active_base, active_position


# --- the metadata log -----------------------------------------------------------------------------------------------


def msgpack(data: bytes) -> Any:
    """One msgpack value, of the kinds that the metadata log has."""
    found, end = _msgpack(data, 0)
    if end != len(data):
        raise UnreadableError("bytes behind an entry")
    return found


_NUMBERS = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_LENGTHS = {0xD9: (">B", "str"), 0xDA: (">H", "str"), 0xDB: (">I", "str")}
_LENGTHS |= {0xDC: (">H", "array"), 0xDD: (">I", "array"), 0xDE: (">H", "map"), 0xDF: (">I", "map")}


def _msgpack(data: bytes, at: int) -> tuple[Any, int]:
    first = data[at]
    at += 1
    if first <= 0x7F:
        return first, at
    if first >= 0xE0:
        return first - 256, at
    if first in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[first], at
    if first in _NUMBERS:
        code = _NUMBERS[first]
        return struct.unpack_from(code, data, at)[0], at + struct.calcsize(code)
    if first in _LENGTHS:
        code, kind = _LENGTHS[first]
        length = struct.unpack_from(code, data, at)[0]
        at += struct.calcsize(code)
    elif first <= 0x8F:
        kind, length = "map", first & 0x0F
    elif first <= 0x9F:
        kind, length = "array", first & 0x0F
    elif first <= 0xBF:
        kind, length = "str", first & 0x1F
    else:
        raise UnreadableError(f"msgpack byte {first:#x}")
    if kind == "str":
        return data[at : at + length].decode(), at + length
    items = []
    for _ in range(length * (2 if kind == "map" else 1)):
        item, at = _msgpack(data, at)
        items.append(item)
    return (dict(zip(items[::2], items[1::2], strict=True)) if kind == "map" else items), at


def entries(log: bytes) -> Iterator[dict[str, Any]]:
    """The entries of a metadata log that was closed in order."""
    at = 0
    while at < len(log):
        length, crc, synced = struct.unpack_from("<IIQ", log, at)
        if crc32c(log[at + 8 : at + 16 + length]) != crc or synced > at:
            raise UnreadableError(f"metadata at {at}")
        if length:
            yield msgpack(log[at + 16 : at + 16 + length])
        at += 16 + length


def directories(data_dir: Path) -> dict[tuple[str, int], tuple[int, Path]]:
    """(topic, partition) -> (topic id, directory of its copy)."""
    topics: dict[int, tuple[str, list[Any]]] = {}
    for entry in entries((data_dir / "metadata" / "log").read_bytes()):
        if entry["type"] == "TopicCreated":
            topics[entry["topic_id"]] = (entry["name"], list(entry["placements"]))
        elif entry["type"] == "PartitionsAdded":
            topics[entry["topic_id"]][1].extend(entry["placements"])
        elif entry["type"] == "TopicDeleted":
            del topics[entry["topic_id"]]
    found = {}
    for topic_id, (name, placements) in topics.items():
        for one in placements:
            assert one["disk"] == "data"
            path = data_dir / "copies" / str(one["copy_id"]) / f"t{topic_id:08x}-{one['partition']}"
            found[name, one["partition"]] = (topic_id, path)
    return found


# --- boards ---------------------------------------------------------------------------------------------------------


def words(path: Path, kind: int) -> tuple[int, ...]:
    data = path.read_bytes()
    found = struct.unpack(f"={len(data) // 8}Q", data)
    if data[:8] != b"zbBOARD\0" or found[1] != 1 or found[2] != kind:
        raise UnreadableError(str(path))
    return found


def cell_of(board: tuple[int, ...], cell_words: int, key: int) -> tuple[int, ...]:
    first = board[7] // 8
    for number in range(board[6]):
        cell = board[first + number * cell_words : first + (number + 1) * cell_words]
        if cell[1] == key:
            return cell
    raise UnreadableError(f"no cell of {key:#x}")


class Frontier(NamedTuple):
    leader_epoch: int
    log_start: int
    high_watermark: int
    segment_base: int
    position: int


def frontier(boards: Path, topic_id: int, partition: int) -> Frontier:
    """What the leader's board says of a partition, found by way of the coordinator's board."""
    key = topic_id << 32 | partition
    for path in boards.glob("coordinator.*.board"):
        board = words(path, 2)
        if board[24] == 0:
            _, _, _, incarnation, process, *_ = cell_of(board, 8, key)
            leader = boards / f"worker-{(process - 16) // 2}.{incarnation:016x}.board"
            _, _, epoch, log_start, _, segment_base, position, high_watermark, *_ = cell_of(words(leader, 1), 16, key)
            return Frontier(epoch, log_start, high_watermark, segment_base, position)
    raise UnreadableError("no coordinator's board")
