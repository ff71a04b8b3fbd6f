"""What a broker wrote, read by a program that was written from the documents (`tests/stranger.py`)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import stranger
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.ids import TopicPartition
from zbroker.record.records import ConsumerRecord
from zbroker.record.rows import Row, encode_rows
from zbroker.record.view import RecordBatch
from zbroker.testing import Broker

T0 = 1_700_000_000_000
Written = dict[tuple[str, int], list[ConsumerRecord[Any, Any]]]


def rows_batch(topic: str, partition: int, first: int, count: int, compression: str) -> RecordBatch:
    """A batch as a Kafka client would have made it."""
    rows: list[Row] = []
    for number in range(first, first + count):
        key = None if number % 5 == 0 else b"k%d" % number
        rows.append((T0 + 7 * number, key, b"row %d " % number * 9, (("n", b"%d" % number),)))
    return RecordBatch(topic, partition, memoryview(encode_rows(rows, compression=compression)))


def write_everything(broker: Broker) -> None:
    """Batches of both kinds, plain and compressed, with every optional column, over several segments and epochs."""
    way = {"bootstrap_servers": broker.bootstrap_servers}
    with AdminClient(way) as admin:
        small = {"retention_ms": -1, "segment_bytes": 65_536, "max_message_bytes": 60_000, "index_interval_bytes": 512}
        admin.create_topics([NewTopic("gone", 1), NewTopic("orders", 2, config=small)])
        admin.create_topics(
            [NewTopic("stamped", 1, config={"message_timestamp_type": "LogAppendTime", "retention_ms": -1})]
        )
        admin.delete_topics(["gone"])
        admin.create_partitions({"orders": 3})
    for codec in ("none", "lz4"):
        with Producer(way, compression_type=codec) as producer:
            for number in range(200):
                key = None if number % 3 == 0 else b"key %d" % number
                value = None if number % 7 == 0 else b"value %d " % number * (number % 50)
                headers = () if number % 4 else (("first", b"%d" % number), ("second", None), ("leér", b""))
                time = None if number % 2 else T0 + number
                producer.send("orders", value, key, headers=headers, timestamp_ms=time, partition=number % 3)
                if number % 10 == 9:
                    producer.flush()
                producer.send("stamped", b"s %d " % number * 20, timestamp_ms=T0)
            for first in range(0, 100, 10):
                producer.send_batch(rows_batch("orders", 1, first, 10, codec)).result(20)
            for number in range(30):
                producer.send_many("orders", [b"plain %d" % number] * 1_000, partition=2).result(20)
        broker.kill("worker-0")


def read_with_zbroker(broker: Broker) -> Written:
    found: Written = {}
    for topic, partitions in (("orders", 3), ("stamped", 1)):
        for partition in range(partitions):
            with Consumer(bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest") as consumer:
                tp = TopicPartition(topic, partition)
                consumer.assign([tp])
                end = consumer.end_offsets([tp])[tp]
                found[topic, partition] = []
                while consumer.position(tp) < end:
                    found[topic, partition] += consumer.consume(1_000, timeout_ms=20_000)
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Broker, Written, list[stranger.Frontier]]]:
    """A broker's files after a clean stop, what its own consumer read of them, and what the boards said before."""
    with Broker(workers=1, directory=tmp_path_factory.mktemp("formats")) as broker:
        write_everything(broker)
        records = read_with_zbroker(broker)
        where = stranger.directories(broker.paths.data_dir)
        frontiers = [stranger.frontier(broker.paths.boards_dir, where[key][0], key[1]) for key in records]
        assert broker.stop() == 0
        yield broker, records, frontiers


def test_the_stranger_knows_nothing_of_zbroker() -> None:
    tree = ast.parse(Path(stranger.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "collections.abc", "lz4.frame", "pathlib", "struct", "typing"}


def test_a_stranger_finds_every_topic_that_is_there(written: tuple[Broker, Written, Any]) -> None:
    broker, records, _ = written
    assert stranger.directories(broker.paths.data_dir).keys() == records.keys()


def test_a_stranger_reads_every_record_of_both_kinds_plain_and_compressed(
    written: tuple[Broker, Written, Any],
) -> None:
    broker, records, _ = written
    where = stranger.directories(broker.paths.data_dir)
    seen = set()
    for key, expected in records.items():
        directory = where[key][1]
        for base in stranger.bases(directory):
            for batch in stranger.batches((directory / f"{base:020}.log").read_bytes()):
                seen.add((batch.magic, batch.compression))
        assert list(stranger.records(directory, 0, len(expected))) == [
            (one.offset, one.timestamp, one.key, one.value, list(one.headers)) for one in expected
        ]
    assert seen == {(2, 0), (2, 3), (67, 0), (67, 3)}
    assert max(len(stranger.bases(path)) for _, path in where.values()) >= 3


def test_a_stranger_begins_at_any_offset_and_time(written: tuple[Broker, Written, Any]) -> None:
    broker, records, _ = written
    where = stranger.directories(broker.paths.data_dir)
    used_index = 0
    for key, expected in records.items():
        directory = where[key][1]
        for start in range(0, len(expected), max(1, len(expected) // 40)):
            first = next(stranger.records(directory, start, len(expected)))
            assert (first.offset, first.value) == (start, expected[start].value)
            base = max(one for one in stranger.bases(directory) if one <= start)
            used_index += stranger.position_in(directory, base, start) > 0
        base = stranger.bases(directory)[0]
        for time in (T0 + 1, T0 + 50, T0 + 150, expected[-1].timestamp + 1):
            below = stranger.offset_not_as_late(directory, base, time)
            assert all(one.timestamp < time for one in expected[: below + 1])
    assert used_index > 20


def test_a_stranger_reads_epochs_and_saved_positions_and_the_mark_of_a_clean_stop(
    written: tuple[Broker, Written, Any],
) -> None:
    broker, records, _ = written
    for key, (_, directory) in stranger.directories(broker.paths.data_dir).items():
        count = len(records[key])
        positions = stranger.saved_positions(directory)
        assert (positions.high_watermark, positions.recovery_point, positions.log_start) == (count, count, 0)
        log_start, log_end, active_base, active_position = stranger.clean_end(directory) or (None,) * 4
        assert (log_start, log_end, active_base) == (0, count, stranger.bases(directory)[-1])
        last = list(stranger.batches((directory / f"{active_base:020}.log").read_bytes()))[-1]
        assert active_position == last.position + last.size_bytes
        found = stranger.epochs(directory)
        assert len(found) >= 2, "the worker was killed in between"
        assert found[-1][0] == last.epoch


def test_a_stranger_reads_how_far_a_partition_may_be_read_from_the_boards(
    written: tuple[Broker, Written, list[stranger.Frontier]],
) -> None:
    broker, records, frontiers = written
    where = stranger.directories(broker.paths.data_dir)
    for (key, expected), frontier in zip(records.items(), frontiers, strict=True):
        directory = where[key][1]
        assert (frontier.log_start, frontier.high_watermark) == (0, len(expected))
        assert frontier.segment_base == stranger.bases(directory)[-1]
        last = list(stranger.batches((directory / f"{frontier.segment_base:020}.log").read_bytes()))[-1]
        assert frontier.position >= last.position + last.size_bytes
        assert frontier.leader_epoch >= last.epoch


def test_a_stranger_notices_a_changed_byte(written: tuple[Broker, Written, Any]) -> None:
    broker, _, _ = written
    log = bytearray((stranger.directories(broker.paths.data_dir)["orders", 0][1] / f"{0:020}.log").read_bytes())
    log[70] ^= 1
    with pytest.raises(stranger.UnreadableError, match="CRC"):
        list(stranger.batches(bytes(log)))
    metadata = bytearray((broker.paths.metadata_dir / "log").read_bytes())
    metadata[20] ^= 1
    with pytest.raises(stranger.UnreadableError, match="metadata at 0"):
        list(stranger.entries(bytes(metadata)))
