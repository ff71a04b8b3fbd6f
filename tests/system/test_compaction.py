"""Compaction in real processes: what consumers read meanwhile, after restarts, and what other copies get."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conditions import wait_until
from tests.scripted_copies import TOPIC_ID, Copies
from zbroker import Consumer, Producer
from zbroker.dump.segments import dump_batches, verify_copy
from zbroker.errors import InvalidRecordError, StorageError
from zbroker.ids import TopicPartition
from zbroker.record.columns import encode_columns
from zbroker.record.records import ConsumerRecord
from zbroker.testing import Broker
from zbroker.wire.layout import FLAG_FIRST, Api

STORAGE = {
    "compaction_check_interval_ms": 20,
    "compaction_bytes_per_s": 100 << 20,
    "retention_check_interval_ms": 20,
    "scrub_interval_ms": 50,
    "scrub_bytes_per_s": 100 << 20,
}
TOPIC = {
    "cleanup.policy": "compact",
    "segment.bytes": "16384",
    "max.message.bytes": "4096",
    "min.cleanable.dirty.ratio": "0.01",
    "file.delete.delay.ms": "0",
}
KEYS = [b"key-%d" % number for number in range(7)]
Record = ConsumerRecord[bytes, bytes]


@pytest.fixture(params=["auto", "zmq"])
def transport(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker(workers=1, config={"storage": STORAGE}) as found:
        yield found


def create(broker: Broker, name: str) -> None:
    settings = [word for item in TOPIC.items() for word in ("--config", "=".join(item))]
    command = [sys.executable, "-m", "zbroker", "topics", "create", name, "--bootstrap-servers"]
    subprocess.run([*command, broker.bootstrap_servers, *settings], check=True, timeout=60)


def consumer_of(broker: Broker, transport: str) -> Consumer[bytes, bytes]:
    found: Consumer[bytes, bytes] = Consumer(
        "prices", bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest", transport=transport
    )
    return found


def send(broker: Broker, begin: int, end: int) -> None:
    """Records whose values say their offsets; record 3 of the first key only."""
    with Producer(bootstrap_servers=broker.bootstrap_servers, acks="all") as producer:
        for first in range(begin, end, 20):
            pairs = [(KEYS[number % 7], b"%d" % number + b"." * 40) for number in range(first, first + 20)]
            producer.send_many("prices", [value for _, value in pairs], keys=[key for key, _ in pairs])
            producer.flush()


def copies_in(broker: Broker) -> list[Path]:
    return sorted({path.parent for path in (broker.directory / "data").rglob("copies/*/t*/*.log")})


def stored(directory: Path) -> list[Record]:
    return [record for batch in dump_batches(directory) for record in batch.records()]


def compacted(directory: Path) -> list[Record]:
    """The records of a copy; none before no key comes twice before the active segment."""
    logs = sorted(directory.glob("*.log"))
    try:
        records = stored(directory)
    except StorageError:
        return []  # a segment was replaced while it was looked at
    keys = [record.key for record in records if record.offset < int(logs[-1].stem)]
    return records if len(logs) > 1 and len(keys) == len(set(keys)) else []


def is_compacted(directory: Path) -> bool:
    """Whether no key comes twice before the active segment."""
    return bool(compacted(directory))


def when_compacted(copies: Copies, directory: Path) -> list[Record]:
    """The records of a copy as they were when it was found compacted: its segments may be replaced once more."""
    found: list[Record] = []

    def is_it() -> bool:
        found[:] = compacted(directory)
        return bool(found)

    copies.pump_until(is_it)
    return found


def read(consumer: Consumer[bytes, bytes], count: int, *, until: int) -> list[Record]:
    found: list[Record] = []

    def has_enough() -> bool:
        for records in consumer.poll(timeout_ms=50, max_records=max(1, count - len(found))).values():
            found.extend(records)
        return len(found) >= count or bool(found and found[-1].offset == until)

    wait_until(has_enough)
    return found


def check(found: list[Record], end: int) -> None:
    assert [record.offset for record in found] == sorted({record.offset for record in found})
    for record in found:
        assert (record.value or b"").startswith(b"%d." % record.offset)
        assert record.key == KEYS[record.offset % 7]
    newest = {record.key: record.offset for record in found}
    assert newest == {KEYS[number % 7]: number for number in range(end - 7, end)}


def test_readers_old_and_new_find_the_last_record_of_every_key(broker: Broker, transport: str) -> None:
    create(broker, "prices")
    send(broker, 0, 200)
    with consumer_of(broker, transport) as early:
        seen = read(early, 60, until=199)
        send(broker, 200, 2_000)
        (directory,) = copies_in(broker)
        wait_until(lambda: is_compacted(directory))
        check(seen + read(early, 10_000, until=1_999), 2_000)
    with consumer_of(broker, transport) as late:
        found = read(late, 10_000, until=1_999)
        check(found, 2_000)
        assert len(found) < 500, "most of what was replaced is gone"
        late.seek(TopicPartition("prices", 0), 100)
        assert read(late, 10_000, until=1_999) == [record for record in found if record.offset >= 100]
    with consumer_of(broker, transport) as whole_batches:
        records: list[Record] = []
        for batch in whole_batches.batches(timeout_ms=20_000):
            assert len(batch) > 0
            records += batch.records()
            if records[-1].offset == 1_999:
                break
        assert records == found
    assert not verify_copy(directory).faults
    broker.restart()
    with consumer_of(broker, transport) as again:
        assert read(again, 10_000, until=1_999) == found
    send(broker, 2_000, 2_020)
    with consumer_of(broker, transport) as again:
        check(read(again, 10_000, until=2_019), 2_020)


def test_a_record_without_a_key_is_refused_where_keys_decide(broker: Broker) -> None:
    create(broker, "prices")
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        for values, keys in (([b"a"], None), ([b"a", b"b"], [b"k", None])):
            with pytest.raises(InvalidRecordError, match="without a key"):
                producer.send_many("prices", values, keys=keys).result(timeout=30)
        producer.send("prices", b"a", key=b"k").result(timeout=30)


def test_a_broker_killed_again_and_again_while_it_compacts_keeps_every_last_record(broker: Broker) -> None:
    create(broker, "prices")
    for begin in range(0, 1_600, 400):
        send(broker, begin, begin + 400)
        pid = broker.kill("worker-0")
        broker.wait_for_restart("worker-0", pid)
        with consumer_of(broker, "auto") as reader:
            check(read(reader, 10_000, until=begin + 399), begin + 400)
    (directory,) = copies_in(broker)
    wait_until(lambda: is_compacted(directory))
    with consumer_of(broker, "auto") as reader:
        check(read(reader, 10_000, until=1_599), 1_600)


# --- copies ----------------------------------------------------------------------------------------------------------


def produce(copies: Copies, begin: int, end: int) -> None:
    for first in range(begin, end, 20):
        values = [b"%d." % number + b"." * 40 for number in range(first, first + 20)]
        keys = [KEYS[number % 7] for number in range(first, first + 20)]
        batch = bytes(encode_columns(values, keys, timestamp_ms=time.time_ns() // 1_000_000))
        where: dict[str, Any] = {"topic_id": TOPIC_ID, "partition": 0, "acks": -1, "flags": FLAG_FIRST}
        copies.answer(copies.ask(copies.leader, Api.PRODUCE, batch, **where)).produced()


def leave(copies: Copies, number: int) -> None:
    """The coordinator takes a dead copy out of the ISR."""
    copies.kill(number)
    copies.isr = [copy_id for copy_id in copies.isr if copy_id != copies.copy_of(number)]
    copies.partition_epoch += 1
    copies.give_news()


def test_a_copy_comes_back_into_the_middle_of_what_was_compacted_and_a_new_one_from_nothing() -> None:
    with Copies(3, topic=TOPIC, config={"storage": STORAGE}) as copies:
        first, second, third = copies.numbers
        copies.elect(first)
        produce(copies, 0, 500)
        copies.wait_equal()
        leave(copies, second)
        leave(copies, third)
        shutil.rmtree(copies.copy_directory(third))
        produce(copies, 500, 3_000)
        leader = copies.copy_directory(first)
        copies.pump_until(lambda: is_compacted(leader))
        for number in (second, third):
            copies.start(number)
            assert copies.grant(number).error == 0
        copies.give_news()
        copies.wait_in_sync(3)
        for number in (second, third):
            check(when_compacted(copies, copies.copy_directory(number)), 3_000)
        for number in copies.numbers:
            assert not verify_copy(copies.copy_directory(number)).faults
        copies.leader = second
        copies.elect(second)
        produce(copies, 3_000, 3_500)
        copies.wait_equal()
        for number in copies.numbers:
            check(when_compacted(copies, copies.copy_directory(number)), 3_500)
        assert "damage" not in copies.log
        assert not copies.suspects
