"""T39: segments are rolled and deleted under readers that have them mapped: no SIGBUS, no wrong record."""

from __future__ import annotations

import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.conditions import wait_until
from tests.consuming import broker_with_tcp, make_topic, settings_for
from zbroker.client.admin import AdminClient
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.errors import OffsetOutOfRangeError, UnknownTopicOrPartitionError
from zbroker.ids import TopicPartition
from zbroker.shm.board_reader import BoardReader, find_boards
from zbroker.shm.layout import Counter
from zbroker.testing import Broker

DURATION_S = 10.0
ROLLS = 100
VALUE_BYTES = 400

# A reader checks every value, holds some batches back while their files go, and reports what it saw as one line.
_READER = """
import sys, zlib
from zbroker.client.consumer import Consumer
from zbroker.errors import UnknownTopicOrPartitionError
seen = wrong = jumps = 0
held = []
expected = None
consumer = Consumer(bootstrap_servers=sys.argv[1], transport="shm", auto_offset_reset="earliest")
consumer.assign([("churned", 0)])
lazy = sys.argv[2] == "lazy"
print("ready", flush=True)
try:
    for batch in consumer.batches():
        if expected is not None and batch.base_offset != expected:
            jumps += 1
            wrong += batch.base_offset < expected
        expected = batch.last_offset + 1
        for offset, value in enumerate(batch.values().tolist(), batch.base_offset):
            number, crc = int.from_bytes(value[:8], "big"), int.from_bytes(value[8:12], "big")
            wrong += number != offset or crc != zlib.crc32(value[12:])
            seen += 1
        if seen % 50 == 0:
            held.append(batch)
        if len(held) > 200:
            old = held.pop(0)
            wrong += sum(zlib.crc32(v[12:]) != int.from_bytes(v[8:12], "big") for v in old.values().tolist())
            old.release()
        if lazy:
            import time; time.sleep(0.02)
except UnknownTopicOrPartitionError:
    pass
print(f"{seen} {wrong} {jumps}", flush=True)
"""


def value_for(offset: int) -> bytes:
    body = offset.to_bytes(8, "little") * (VALUE_BYTES // 8)
    return offset.to_bytes(8, "big") + zlib.crc32(body).to_bytes(4, "big") + body


@pytest.mark.slow
def test_t39_retention_and_roll_under_mapped_readers_and_the_topics_end() -> None:
    """T39: a hundred rolls and as many deletions, for ten seconds at least, under four readers; then what one who asks
    for the deleted range is told; then the end of the topic. (The copies' part is not in this version.)"""
    broker, _ = broker_with_tcp(workers=1)
    with broker:
        way = settings_for("shm", broker, "")
        make_topic(
            way, "churned", 1, segment_bytes=65_536, max_message_bytes=60_000, retention_bytes=131_072,
            file_delete_delay_ms=0, segment_ms=100,
        )  # fmt: skip
        command = [sys.executable, "-c", _READER, broker.bootstrap_servers]
        kinds = ["eager", "eager", "lazy", "lazy"]
        readers = [subprocess.Popen([*command, kind], stdout=subprocess.PIPE, text=True) for kind in kinds]
        try:
            for reader in readers:
                assert reader.stdout is not None
                assert reader.stdout.readline() == "ready\n"
            churn(way, broker)
            with Consumer(auto_offset_reset="none", **way) as late:
                late.assign([TopicPartition("churned", 0)])
                late.seek(TopicPartition("churned", 0), 10)
                with pytest.raises(OffsetOutOfRangeError, match="churned:0: offset 10 is not in"):
                    late.poll(timeout_ms=10_000)
            with AdminClient(way) as admin:
                admin.delete_topics(["churned"])
            outcomes = [reader.communicate(timeout=30)[0].split() for reader in readers]
        finally:
            for reader in readers:
                reader.kill()
                reader.wait()
        assert [reader.returncode for reader in readers] == [0, 0, 0, 0], "a reader died; -7 is SIGBUS"
        for seen, wrong, _ in outcomes:
            assert int(wrong) == 0
            assert int(seen) > 0
        assert any(int(jumps) > 0 for _, _, jumps in outcomes[2:]), "a slow reader was overtaken by retention"


def rolled_segments(broker: Broker) -> int:
    """How many segments the worker has rolled and deleted; the smaller of the two."""
    (_, _, path), *_ = find_boards(broker.paths.boards_dir, "worker-0")
    board = BoardReader.open(path)
    counts = board.counters()
    board.close()
    return min(counts[Counter.SEGMENTS_ROLLED], counts[Counter.SEGMENTS_DELETED])


def churn(way: dict[str, Any], broker: Broker) -> None:
    """Write as fast as it goes, for a time and until so many segments came and went."""
    offset = 0
    deadline_s = time.monotonic() + DURATION_S
    with Producer(way) as producer:
        while time.monotonic() < deadline_s or rolled_segments(broker) < ROLLS:
            for _ in range(50):
                producer.send_many("churned", [value_for(offset + n) for n in range(10)], partition=0).result(20)
                offset += 10


def test_t39_a_deleted_range_is_an_error_where_no_policy_is_set() -> None:
    broker, _ = broker_with_tcp(workers=1)
    with broker:
        way = settings_for("shm", broker, "")
        make_topic(
            way, "short", 1, segment_bytes=65_536, max_message_bytes=60_000, retention_bytes=65_536,
            file_delete_delay_ms=0,
        )  # fmt: skip
        tp = TopicPartition("short", 0)
        with Consumer(auto_offset_reset="none", **way) as consumer, Producer(way) as producer:
            consumer.assign([tp])
            consumer.seek(tp, 0)
            producer.send_many("short", [b"." * 500] * 10, partition=0).result(20)
            assert len(consumer.consume(5, timeout_ms=20_000)) == 5
            for _ in range(60):
                producer.send_many("short", [b"." * 500] * 10, partition=0).result(20)
            wait_until(lambda: consumer.beginning_offsets([tp])[tp] > 10, what="retention")
            assert len(consumer.consume(5, timeout_ms=20_000)) == 5, "what was decoded before is still given out"
            for _ in range(2):
                with pytest.raises(OffsetOutOfRangeError, match="short:0: offset 10 is not in"):
                    consumer.poll(timeout_ms=10_000)
            assert consumer.position(tp) == 10


def test_a_batch_is_valid_after_its_topic_is_gone() -> None:
    broker, _ = broker_with_tcp(workers=1)
    with broker:
        way = settings_for("shm", broker, "")
        make_topic(way, "brief")
        values = [b"%d" % n for n in range(1000)]
        with Producer(way) as producer:
            producer.send_many("brief", values, partition=0).result(20)
        with Consumer("brief", auto_offset_reset="earliest", **way) as consumer:
            batch = next(consumer.batches())
            with AdminClient(way) as admin:
                directory = Path(admin.describe_topics(["brief"])["brief"].partitions[0].directory)
                admin.delete_topics(["brief"])
            with pytest.raises(UnknownTopicOrPartitionError):
                consumer.poll(timeout_ms=20_000)
            wait_until(lambda: not directory.exists(), what="the end of the files")
        assert batch.values().tolist() == values
        batch.release()
