"""Kafka's rows: byte for byte what kafka-python and aiokafka write, and read back from both; refusals of damage."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka.record import default_records as aiokafka_records

from zbroker.errors import CorruptRecordError
from zbroker.record.batch import check_batch, read_header, write_crc
from zbroker.record.layout import HEADER_BYTES
from zbroker.record.records import Header
from zbroker.record.rows import Row, decode_rows, encode_rows

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # its import reads resources in a deprecated way
    from kafka.record import default_records as kafka_python_records

NOON_MS = 1_795_435_200_000
PEERS = [
    pytest.param(kafka_python_records.DefaultRecordBatchBuilder, id="kafka-python"),
    pytest.param(aiokafka_records._DefaultRecordBatchBuilderPy, id="aiokafka-python"),
    pytest.param(aiokafka_records.DefaultRecordBatchBuilder, id="aiokafka-c"),
]
READERS = [
    pytest.param(kafka_python_records.DefaultRecordBatch, id="kafka-python"),
    pytest.param(aiokafka_records._DefaultRecordBatchPy, id="aiokafka-python"),
    pytest.param(aiokafka_records.DefaultRecordBatch, id="aiokafka-c"),
]


def random_rows(seed: int) -> list[Row]:
    chance = random.Random(seed)

    def blob(null_share: float) -> bytes | None:
        if chance.random() < null_share:
            return None
        return chance.randbytes(chance.choice((0, 1, 63, 64, 100, 8191, 8192)))

    rows: list[Row] = []
    for _ in range(chance.choice((1, 2, 63, 64, 65, 130))):
        headers: tuple[Header, ...] = tuple(
            (chance.choice(("", "a", "größe", "x" * 64)), blob(0.3)) for _ in range(chance.choice((0, 0, 1, 3)))
        )
        rows.append((NOON_MS + chance.choice((0, 1, 64, 8192, 1 << 33, -1, -8193)), blob(0.5), blob(0.2), headers))
    return rows


def by_peer(builder: Any, rows: Sequence[Row], codec: int = 0, producer: tuple[int, int, int] = (-1, -1, -1)) -> bytes:
    build = builder(
        magic=2, compression_type=codec, is_transactional=0, producer_id=producer[0], producer_epoch=producer[1],
        base_sequence=producer[2], batch_size=1 << 30,
    )  # fmt: skip
    for offset, (timestamp_ms, key, value, headers) in enumerate(rows):
        assert build.append(offset, timestamp=timestamp_ms, key=key, value=value, headers=list(headers)) is not None
    return bytes(build.build())


def without_epoch(batch: bytes | bytearray) -> bytes:
    """A producer leaves leader_epoch (bytes 12 to 15) as it likes: Kafka's Java clients -1, Python's 0."""
    return bytes(batch[:12]) + bytes(batch[16:])


@pytest.mark.parametrize("builder", PEERS)
@pytest.mark.parametrize("seed", range(8))
def test_encoded_rows_are_byte_for_byte_those_of_kafkas_python_clients(builder: Any, seed: int) -> None:
    rows = random_rows(seed)
    producer = (-1, -1, -1) if seed % 2 else (1 << 40, 7, 12345)
    ours = encode_rows(rows, producer_id=producer[0], producer_epoch=producer[1], base_sequence=producer[2])
    assert without_epoch(ours) == without_epoch(by_peer(builder, rows, producer=producer)), f"seed {seed}"


@pytest.mark.parametrize("builder", PEERS)
@pytest.mark.parametrize("seed", range(8, 14))
def test_rows_of_kafkas_python_clients_are_read(builder: Any, seed: int) -> None:
    rows = random_rows(seed)
    batch = by_peer(builder, rows)
    header = check_batch(batch, size_bytes_max=len(batch), records_max=1000)
    assert decode_rows(memoryview(batch), header) == rows, f"seed {seed}"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("seed", range(14, 20))
def test_kafkas_python_clients_read_our_rows(reader: Any, seed: int) -> None:
    rows = random_rows(seed)
    batch = reader(bytes(encode_rows(rows)))
    assert batch.validate_crc()
    found = [(record.timestamp, record.key, record.value, tuple(record.headers)) for record in batch]
    assert found == rows, f"seed {seed}"


@pytest.mark.parametrize(("name", "codec"), [("gzip", 1), ("lz4", 3), ("zstd", 4)])
def test_compressed_rows_go_both_ways_between_us_and_kafka_python(name: str, codec: int) -> None:
    rows: list[Row] = [(NOON_MS + n, b"key%d" % (n % 3), b"value " * 50, ()) for n in range(200)]
    theirs = by_peer(kafka_python_records.DefaultRecordBatchBuilder, rows, codec)
    header = check_batch(theirs, size_bytes_max=len(theirs), records_max=1000)
    assert header.compression == codec
    assert decode_rows(memoryview(theirs), header) == rows
    ours = encode_rows(rows, compression=name)
    assert read_header(ours).compression == codec
    batch = kafka_python_records.DefaultRecordBatch(bytes(ours))
    assert batch.validate_crc()
    assert [(record.timestamp, record.key, record.value, tuple(record.headers)) for record in batch] == rows


def test_rows_that_do_not_shrink_are_stored_as_they_are() -> None:
    assert read_header(encode_rows([(NOON_MS, None, b"x", ())], compression="lz4")).compression == 0


def damaged(rows: Sequence[Row], position: int, found: int) -> memoryview:
    """A batch with one byte of its rows changed and a CRC that fits: what a broken producer could write."""
    batch = encode_rows(rows)
    batch[HEADER_BYTES + position] = found
    write_crc(batch)
    return memoryview(batch)


@pytest.mark.parametrize(
    ("position", "byte", "reason"),
    [
        (0, 0x7E, "row 0 says 63 bytes"),
        (0, 0x01, "row 0 says -1 bytes"),
        (0, 0x0C, "ends at"),
        (3, 0x02, "says it is row 1"),
        (4, 0x03, "a field says -2 bytes"),
        (5, 0x7E, "a field says 63 bytes"),
        (7, 0x04, "cut short"),
    ],
)
def test_rows_that_lie_are_refused(position: int, byte: int, reason: str) -> None:
    batch = damaged([(NOON_MS, None, b"v", ())], position, byte)
    with pytest.raises(CorruptRecordError, match=reason):
        decode_rows(batch, read_header(batch))


def test_a_header_without_a_name_is_refused() -> None:
    batch = damaged([(NOON_MS, None, b"", (("", b""),))], 7, 0x01)
    with pytest.raises(CorruptRecordError, match="no name"):
        decode_rows(batch, read_header(batch))


def test_a_header_name_that_is_no_text_is_refused() -> None:
    batch = damaged([(NOON_MS, None, b"", (("a", b""),))], 8, 0xFF)
    with pytest.raises(CorruptRecordError, match="damaged"):
        decode_rows(batch, read_header(batch))


def test_a_varint_without_an_end_is_refused() -> None:
    batch = encode_rows([(NOON_MS, None, b"x" * 40, ())])
    batch[HEADER_BYTES : HEADER_BYTES + 12] = b"\xff" * 12
    with pytest.raises(CorruptRecordError, match="varint"):
        decode_rows(memoryview(batch), read_header(batch))


def test_bytes_behind_the_last_row_are_refused() -> None:
    batch = encode_rows([(NOON_MS, None, b"v", ()), (NOON_MS, None, b"v", ())])
    header = read_header(batch)._replace(record_count=1)
    with pytest.raises(CorruptRecordError, match="follow the last row"):
        decode_rows(memoryview(batch), header)


def test_a_row_count_beyond_the_rows_is_refused() -> None:
    batch = encode_rows([(NOON_MS, None, b"v", ())])
    with pytest.raises(CorruptRecordError):
        decode_rows(memoryview(batch), read_header(batch)._replace(record_count=1 << 30))


def test_a_time_beyond_64_bits_is_refused() -> None:
    batch = encode_rows([(0, None, b"v", ()), (1, None, b"v", ())])
    with pytest.raises(CorruptRecordError, match="64 bits"):
        decode_rows(memoryview(batch), read_header(batch)._replace(base_timestamp=(1 << 63) - 1))
