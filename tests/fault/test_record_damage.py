"""Damaged, lying and hostile batches: only the declared errors, never a wrong record, bounded memory and time."""

from __future__ import annotations

import os
import random
import resource
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable

import lz4.frame
import pytest
import zstandard

from zbroker.errors import BrokerError, CorruptRecordError, UnsupportedCompressionTypeError
from zbroker.record import compression
from zbroker.record.batch import batches_in, check_batch, read_header, write_crc
from zbroker.record.columns import Columns, encode_columns
from zbroker.record.layout import COLUMN_BODY, COMPRESSED_HEAD, HEADER_BYTES
from zbroker.record.rows import decode_rows, encode_rows
from zbroker.record.view import RecordBatch

NOW_MS = 1_795_435_200_000
SEED = int(os.environ.get("ZBROKER_TEST_SEED", "20261123"))  # another number, another run
DECLARED = (CorruptRecordError, UnsupportedCompressionTypeError)


def columns_full(codec: str = "none") -> bytearray:
    return encode_columns(
        [b"one", None, b"", b"four" * 20],
        [b"k1", b"k1", None, b""],
        timestamp_ms=0,
        headers=[(), (("trace", b"\x01\x02"),), (), (("größe", None),)],
        timestamps_ms=[NOW_MS, NOW_MS + 1, NOW_MS - 1, NOW_MS],
        compression=codec,
    )


def columns_plain(codec: str = "none") -> bytearray:
    return encode_columns([b"first", b"", b"third value" * 20], timestamp_ms=NOW_MS, compression=codec)


def rows(codec: str = "none") -> bytearray:
    return encode_rows(
        [(NOW_MS, b"key", b"value" * 20, ()), (NOW_MS + 7, None, None, (("a", b"b"), ("c", None)))], compression=codec
    )


MAKERS: list[Callable[[str], bytearray]] = [columns_plain, columns_full, rows]


def everything_of(batch: RecordBatch) -> list[object]:
    return [batch.records(), batch.keys(), batch.values().tolist(), list(batch.values())]


@pytest.mark.parametrize("make", MAKERS)
def test_t04_every_flipped_bit_outside_offset_and_epoch_is_refused(make: Callable[[str], bytearray]) -> None:
    batch = make("none")
    check_batch(batch, size_bytes_max=1 << 20, records_max=100)
    for position in range(len(batch)):
        for bit in range(8):
            batch[position] ^= 1 << bit
            if position < 8 or 12 <= position < 16:
                check_batch(batch, size_bytes_max=1 << 20, records_max=100)
            else:
                with pytest.raises(BrokerError):
                    check_batch(batch, size_bytes_max=1 << 20, records_max=100)
                with pytest.raises(CorruptRecordError):
                    RecordBatch("t", 0, memoryview(batch))
            batch[position] ^= 1 << bit
    check_batch(batch, size_bytes_max=1 << 20, records_max=100)


def test_t03_a_log_cut_at_every_byte_gives_exactly_its_whole_batches() -> None:
    batches = [bytes(make("none")) for make in MAKERS for _ in range(3)]
    log = b"".join(batches)
    ends, end = [], 0
    for batch in batches:
        end += len(batch)
        ends.append(end)
    for cut in range(len(log) + 1):
        found = list(batches_in(log[:cut]))
        assert len(found) == sum(end <= cut for end in ends), f"cut at {cut}"


@pytest.mark.parametrize("seed", range(3))
def test_t04_a_random_tail_never_shows_a_batch_that_was_not_written(seed: int) -> None:
    chance = random.Random(seed)
    batch = bytes(columns_plain())
    tails = [chance.randbytes(tail_bytes) for tail_bytes in (1, 12, 61, 64, 200, 4096)]
    tails.append(batch[:COLUMN_BODY] + chance.randbytes(len(batch) - COLUMN_BODY))
    for tail in tails:
        log = batch + tail
        (first, _), *others = batches_in(log)
        assert first == 0
        for position, header in others:
            with pytest.raises(BrokerError):
                check_batch(log[position : position + header.size_bytes], size_bytes_max=1 << 20, records_max=1000)
    assert len(others) == 1, "nothing but its CRC tells of the last one"


def with_word(batch: bytearray, position: int, layout: str, value: int) -> memoryview:
    """The batch with one word changed and a CRC that fits: what a broken producer could write."""
    changed = bytearray(batch)
    struct.pack_into(layout, changed, position, value)
    write_crc(changed)
    return memoryview(changed)


def assert_refused_when_read(view: memoryview) -> None:
    with pytest.raises(CorruptRecordError):
        everything_of(RecordBatch("t", 0, view))


ENDS = [0, 4, 5, 6, 17, 1 << 16, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_value_end_that_lies_is_refused_by_the_reader(number: int, end: int) -> None:
    batch = encode_columns([b"first", b"second", b"third"], timestamp_ms=NOW_MS)
    true_ends = [5, 11, 16]
    view = with_word(batch, COLUMN_BODY + 4 * number, "<I", end)
    neighbours = [0, *true_ends][number] <= end <= [*true_ends, 16][number + 1]
    if neighbours and number < 2:
        assert len(everything_of(RecordBatch("t", 0, view))) == 4  # another split, which nothing contradicts
    else:
        assert_refused_when_read(view)
        plain = RecordBatch("t", 0, view)
        with pytest.raises(CorruptRecordError):
            plain.values()[0]


@pytest.mark.parametrize("end", [0, 8, 24, 0xFFFF_FFF0])
def test_data_and_ends_alone_are_refused_when_the_last_end_lies(end: int) -> None:
    view = with_word(encode_columns([b"first", b"second", b"third"], timestamp_ms=NOW_MS), COLUMN_BODY + 8, "<I", end)
    with pytest.raises(CorruptRecordError):
        RecordBatch("t", 0, view).values()


@pytest.mark.parametrize("codec", ["none", "lz4"])
@pytest.mark.parametrize("make", [columns_plain, columns_full])
def test_eight_bytes_more_than_the_columns_need_are_refused(make: Callable[[str], bytearray], codec: str) -> None:
    batch = make(codec) + bytes(8)
    assert_refused_when_read(with_word(batch, 8, ">i", len(batch) - 12))


@pytest.mark.parametrize("end", [0, 1, 0xFFFF_FFFF])
@pytest.mark.parametrize("column", ["value_ends", "key_ends", "header_ends"])
def test_the_last_end_of_any_column_must_fit_the_batch_exactly(column: str, end: int) -> None:
    batch = columns_full()
    position = COLUMN_BODY + {"value_ends": 12, "key_ends": 28, "header_ends": 16 + 16 + 8 + 8 + 32 + 12}[column]
    assert_refused_when_read(with_word(batch, position, "<I", end))


@pytest.mark.parametrize("column", ["key_ends", "header_ends"])
def test_ends_of_keys_and_headers_must_ascend(column: str) -> None:
    position = COLUMN_BODY + {"key_ends": 16, "header_ends": 80}[column]
    assert_refused_when_read(with_word(columns_full(), position, "<I", 4000))


@pytest.mark.parametrize("flags", [1, 2, 4, 8, 16, 31])
def test_flags_for_columns_that_are_not_there_are_refused(flags: int) -> None:
    assert_refused_when_read(with_word(columns_plain(), HEADER_BYTES, "<B", flags))


@pytest.mark.parametrize("count", [2, 4, 1 << 20, 0x7FFF_FFFF])
def test_a_record_count_that_lies_is_refused_before_anything_is_allocated(count: int) -> None:
    batch = columns_plain()
    struct.pack_into(">i", batch, 23, count - 1)
    view = with_word(batch, 57, ">i", count)
    tracemalloc.start()
    try:
        assert_refused_when_read(view)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("make", [columns_plain, columns_full])
@pytest.mark.parametrize("field", [0, 4])
@pytest.mark.parametrize("delta", [-1, 1, 1 << 31])
def test_a_compressed_body_must_be_as_long_as_both_lengths_say(
    make: Callable[[str], bytearray], field: int, delta: int
) -> None:
    batch = make("lz4")
    assert read_header(batch).compression == compression.LZ4
    said = struct.unpack_from("<I", batch, COLUMN_BODY + field)[0]
    assert_refused_when_read(with_word(batch, COLUMN_BODY + field, "<I", (said + delta) % (1 << 32)))


def fuzz_once(chance: random.Random, batch: bytearray) -> None:
    """Change a few bytes, make the CRC fit, and read everything: a declared error or some records."""
    changed = bytearray(batch)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        position = chance.randrange(21, len(changed))
        changed[position] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    if chance.random() < 0.2:
        del changed[chance.randrange(61, len(changed)) :]
        struct.pack_into(">i", changed, 8, len(changed) - 12)
    write_crc(changed)
    view = memoryview(changed)
    try:
        header = check_batch(view, size_bytes_max=1 << 20, records_max=10_000)
    except BrokerError:
        header = read_header(view)
    for read in (
        lambda: everything_of(RecordBatch("t", 0, view, header=header)),
        lambda: RecordBatch("t", 0, view, header=header).values()[:1],
    ):
        try:
            read()
        except DECLARED:
            continue


@pytest.mark.parametrize("codec", ["none", "gzip", "lz4", "zstd"])
@pytest.mark.parametrize("make", MAKERS)
def test_t46_mutated_batches_raise_only_the_declared_errors(make: Callable[[str], bytearray], codec: str) -> None:
    chance = random.Random(SEED)
    batch = make(codec)
    assert read_header(batch).compression == compression.CODEC_NUMBERS[codec]
    tracemalloc.start()
    try:
        slowest_s = 0.0
        for _ in range(2_500):
            started = time.thread_time()
            fuzz_once(chance, batch)
            slowest_s = max(slowest_s, time.thread_time() - started)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert slowest_s < 0.5, "a few hundred bytes must not keep a reader busy"
    assert peak_bytes < 4 << 20, "a few hundred bytes must not make a reader allocate megabytes"


BOMB_BYTES = 256 << 20


def bomb(codec: int) -> bytes:
    """Zeros, compressed piece by piece so that making them costs no memory."""
    zeros = bytes(1 << 20)
    if codec == compression.GZIP:
        deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
        return b"".join(deflate.compress(zeros) for _ in range(BOMB_BYTES >> 20)) + deflate.flush()
    if codec == compression.LZ4:
        pack = lz4.frame.LZ4FrameCompressor()
        blocks: list[bytes] = [pack.begin(), *(pack.compress(zeros) for _ in range(BOMB_BYTES >> 20)), pack.flush()]
        return b"".join(blocks)
    stream = zstandard.ZstdCompressor().compressobj()
    pieces: list[bytes] = [stream.compress(zeros) for _ in range(BOMB_BYTES >> 20)]
    return b"".join([*pieces, stream.flush()])


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("codec", [compression.GZIP, compression.LZ4, compression.ZSTD])
def test_t47_a_bomb_is_refused_at_the_bound_and_leaves_no_memory_behind(codec: int) -> None:
    data = bomb(codec)
    assert len(data) < BOMB_BYTES // 200
    before_bytes = resident_bytes()
    tracemalloc.start()
    try:
        with pytest.raises(CorruptRecordError, match="larger than 1048576 bytes"):
            compression.decompress(codec, data, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < (6 << 20) + 8 * len(data)
    finally:
        tracemalloc.stop()
    assert resident_bytes() - before_bytes <= 8 << 20


@pytest.mark.parametrize("codec", [compression.GZIP, compression.LZ4, compression.ZSTD])
def test_t47_a_columnar_bomb_is_stopped_at_the_length_that_it_admits(codec: int) -> None:
    batch = encode_columns([b"x" * 4000], timestamp_ms=NOW_MS, compression="lz4")
    data = bomb(codec)
    stored = COMPRESSED_HEAD.pack(len(data), 1 << 16) + data
    stored += bytes(-len(stored) % 8)
    changed = bytearray(batch[:COLUMN_BODY]) + stored
    struct.pack_into(">i", changed, 8, len(changed) - 12)
    struct.pack_into(">h", changed, 21, codec)
    write_crc(changed)
    check_batch(changed, size_bytes_max=1 << 24, records_max=10)
    before_bytes = resident_bytes()
    with pytest.raises(CorruptRecordError, match="larger than 65536 bytes"):
        RecordBatch("t", 0, memoryview(changed)).records()
    assert resident_bytes() - before_bytes <= 8 << 20
    struct.pack_into("<I", changed, COLUMN_BODY + 4, compression.DECOMPRESSED_BYTES_MAX + 1)
    write_crc(changed)
    with pytest.raises(CorruptRecordError, match="at most 67108864 are read"):
        RecordBatch("t", 0, memoryview(changed)).records()


def test_t47_a_zstd_frame_that_lies_about_its_size_is_refused() -> None:
    frame = bytearray(zstandard.ZstdCompressor().compress(bytes(1 << 20)))
    honest_bytes = zstandard.frame_content_size(bytes(frame))
    assert honest_bytes == 1 << 20
    at = bytes(frame).index((1 << 20).to_bytes(4, "little"))
    frame[at : at + 4] = (64).to_bytes(4, "little")
    with pytest.raises(CorruptRecordError):
        compression.decompress(compression.ZSTD, bytes(frame), 1 << 16)
    with pytest.raises(CorruptRecordError):
        compression.decompress(compression.ZSTD, bytes(frame), 1 << 24)


@pytest.mark.parametrize("codec", [compression.GZIP, compression.LZ4, compression.ZSTD])
def test_compressed_bodies_cut_short_or_with_a_tail_are_refused(codec: int) -> None:
    data = compression.compress(codec, b"body" * 100)
    assert compression.decompress(codec, data, 400) == b"body" * 100
    with pytest.raises(CorruptRecordError):
        compression.decompress(codec, data, 399)
    for cut in range(len(data)):
        with pytest.raises(CorruptRecordError):
            compression.decompress(codec, data[:cut], 400)
    if codec != compression.ZSTD:
        with pytest.raises(CorruptRecordError):
            compression.decompress(codec, data + b"x", 400)


@pytest.mark.parametrize("codec", [compression.SNAPPY, 5, 7])
def test_a_codec_that_is_not_here_is_told_apart_from_damage(codec: int) -> None:
    with pytest.raises(UnsupportedCompressionTypeError, match="cannot be read here"):
        compression.decompress(codec, b"anything")


def test_columns_and_rows_reject_random_bodies() -> None:
    chance = random.Random(SEED)
    for make, decode in (
        (columns_full, lambda view: Columns(view, read_header(view)).headers()),
        (rows, lambda view: decode_rows(view, read_header(view))),
    ):
        batch = make("none")
        refused = 0
        for _ in range(200):
            batch[64:] = chance.randbytes(len(batch) - 64)
            try:
                decode(memoryview(bytes(batch)))
            except CorruptRecordError:
                refused += 1
        assert refused >= 199
