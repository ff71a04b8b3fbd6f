"""T08: the power goes under load, for all copies at once, on a real ext4.

ZBROKER_POWER_CUTS says how many cuts with acks=fsync (the soak: 2,000; with acks=all a fifth of them). Skipped, with
the reason, where nothing can be mounted.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.conditions import wait_until
from tests.power_cuts import BOOT_VARIABLE, Broker, LoopDisk, NoLoopDiskError
from zbroker.check.copies import compare_copies
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.errors import BrokerError
from zbroker.ids import TopicPartition
from zbroker.load.soak import COUNTS_VARIABLE

CUTS = int(os.environ.get("ZBROKER_POWER_CUTS", "6"))
CUTS_OF_ALL = max(3, CUTS // 5)
SEED = int(os.environ.get("ZBROKER_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
PRODUCERS = 2
WARNING = "the power went while this copy was open: what was not synced is lost"
SETTINGS = {"min.insync.replicas": "2", "segment.bytes": "65536", "max.message.bytes": "65536"}


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopDisk]:
    monkeypatch.setenv(BOOT_VARIABLE, "00000000-0000-0000-0000-000000000001")
    try:
        disk = LoopDisk(tmp_path)
    except NoLoopDiskError as error:
        pytest.skip(f"the power cannot be cut here: {error}")
    yield disk
    disk.close()


class Load:
    """Producers that send numbered records until the power goes; `acknowledged` are those that they were promised."""

    def __init__(self, broker: Broker, acks: str) -> None:
        self.acknowledged: set[bytes] = set()
        self.errors: list[BrokerError] = []
        self._broker = broker
        self._acks = acks
        self._numbers = [0] * PRODUCERS
        self._end = threading.Event()
        self._threads: list[threading.Thread] = []

    def begin(self) -> None:
        """Send."""
        self._end.clear()
        self._threads = [threading.Thread(target=self._send, args=(one,)) for one in range(PRODUCERS)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Send no more. What was not acknowledged by now never will be."""
        self._end.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, count: int) -> None:
        """Wait until so many records were acknowledged; else fail with what the broker and the producers say."""
        try:
            wait_until(lambda: len(self.acknowledged) >= count, what=f"{count} acknowledged records")
        except AssertionError as error:
            raise AssertionError(f"{error}; seed {SEED}; {self.errors[-5:]}\n{self._broker.log[-6_000:]}") from None

    def _send(self, producer_number: int) -> None:
        settings = {"acks": self._acks, "delivery_timeout_ms": 2_000, "request_timeout_ms": 1_000}
        with Producer(bootstrap_servers=self._broker.bootstrap_servers, **settings) as producer:
            while not self._end.is_set():
                values = [b"%d-%d" % (producer_number, self._numbers[producer_number] + one) for one in range(5)]
                self._numbers[producer_number] += 5
                try:
                    producer.send_many("t", values, partition=producer_number % 2).result(5)
                except BrokerError as error:
                    self.errors.append(error)
                    continue
                self.acknowledged.update(values)


def is_settled(admin: AdminClient) -> bool:
    """Whether readers may see all that there is: after an election a leader first hears how far the others are."""
    found = admin.describe_topics(["t"])["t"].partitions
    return all(one.log_end is not None and one.high_watermark == one.log_end for one in found)


def read_all(broker: Broker) -> list[bytes]:
    with Consumer(bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition("t", 0), TopicPartition("t", 1)])
        ends = consumer.end_offsets(consumer.assignment())
        found: list[bytes] = []
        while any(consumer.position(one) < end for one, end in ends.items()):
            for records in consumer.poll(timeout_ms=1_000).values():
                found += [record.value or b"" for record in records]
    return found


def broker_on(disk: LoopDisk, tmp_path: Path) -> Broker:
    places = {"data_dir": str(disk.mount / "data"), "run_dir": str(tmp_path / "run")}
    return Broker(workers=2, replicas=1, config={"broker": places}, directory=tmp_path / "broker")


def cut_again_and_again(broker: Broker, disk: LoopDisk, load: Load, cuts: int) -> Iterator[list[bytes]]:
    """After each cut, everything that can be read."""
    generator = random.Random(f"power {SEED}")
    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        admin.create_topics([NewTopic("t", 2, 3, SETTINGS)])
    for _ in range(cuts):
        enough = len(load.acknowledged) + 50
        load.begin()
        try:
            load.wait_for(enough)
            time.sleep(generator.uniform(0, 0.2))
            broker.cut_power(disk)
        finally:
            load.end()
        with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
            wait_until(partial(is_settled, admin))
        yield read_all(broker)


def count(number: int, what: str) -> None:
    """Add to the sums of `zbroker soak`, if it runs this."""
    path = os.environ.get(COUNTS_VARIABLE)
    if path:
        with open(path, "a") as file:
            file.write(f"{number} {what}\n")


def counters_of(values: list[bytes], producer_number: int) -> list[int]:
    pairs = (value.split(b"-") for value in values)
    return [int(counter) for number, counter in pairs if int(number) == producer_number]


@pytest.mark.timeout(30 + 10 * CUTS)
def test_t08_a_power_cut_takes_nothing_that_was_acknowledged_with_acks_fsync(disk: LoopDisk, tmp_path: Path) -> None:
    with broker_on(disk, tmp_path) as broker:
        load = Load(broker, "fsync")
        for found in cut_again_and_again(broker, disk, load, CUTS):
            lost = load.acknowledged - set(found)
            assert not lost, f"seed {SEED}: {len(lost)} of {len(load.acknowledged)} lost: {sorted(lost)[:5]}"
            for number in range(PRODUCERS):
                counters = counters_of(found, number)
                assert counters == sorted(set(counters)), f"seed {SEED}: producer {number} twice or out of order"
        count(CUTS, "power cuts with acks=fsync")
        count(len(load.acknowledged), "records acknowledged with acks=fsync")
        assert broker.stop() == 0
        assert compare_copies([broker.paths.data_dir]) == []


@pytest.mark.timeout(90 + 10 * CUTS_OF_ALL)
def test_t08_what_a_power_cut_takes_of_acks_all_is_missing_at_the_end_only_and_said(
    disk: LoopDisk, tmp_path: Path
) -> None:
    lost_in_all = 0
    with broker_on(disk, tmp_path) as broker:
        load = Load(broker, "all")
        for found in cut_again_and_again(broker, disk, load, CUTS_OF_ALL):
            for number in range(PRODUCERS):
                counters = counters_of(found, number)
                assert counters == sorted(set(counters)), f"seed {SEED}: producer {number} twice or out of order"
            lost = load.acknowledged - set(found)
            lost_in_all += len(lost)
            load.acknowledged -= lost
            for partition in range(2):
                assert f"{WARNING} topic=t partition={partition}" in broker.log
        count(CUTS_OF_ALL, "power cuts with acks=all")
        count(len(load.acknowledged) + lost_in_all, "records acknowledged with acks=all")
        count(lost_in_all, "records lost with acks=all, all of them at the end, and each time said")
        assert broker.stop() == 0
        assert compare_copies([broker.paths.data_dir]) == []
        warnings = broker.log.count(WARNING)
        with broker:
            assert broker.log.count(WARNING) == warnings, "it was stopped in order"
    assert lost_in_all, "the power was cut, and nothing was lost: this test cannot see a missing sync"
