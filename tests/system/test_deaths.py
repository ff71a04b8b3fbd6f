"""Deaths of the broker's processes under the load of a producer, with real processes.

What must hold: every acknowledged record is in the log afterwards, in the order in which it was sent, a second time
only if it was sent a second time; the producer goes on by itself and shows its user no error; a clean stop leaves
nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conditions import wait_until
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.producer import Producer
from zbroker.ids import TopicPartition
from zbroker.record.batch import batches_in, check_batch
from zbroker.record.view import RecordBatch
from zbroker.testing import Broker

TOPIC = "deaths"
PARTITIONS = 3


class Load:
    """A thread that sends numbered records to each partition until it is told to stop, a few unanswered at a time."""

    def __init__(self, broker: Broker, **settings: Any) -> None:
        self._producer = Producer(bootstrap_servers=broker.bootstrap_servers, request_timeout_ms=10_000, **settings)
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.acknowledged: list[list[tuple[int, int]]] = [[] for _ in range(PARTITIONS)]  # (number, offset)
        self.errors: list[BaseException] = []
        self.count = 0

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopping.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "the producer hangs"
        self._producer.close()

    def _run(self) -> None:
        try:
            while not self._is_stopping.is_set():
                futures = []
                for _ in range(20):
                    for partition in range(PARTITIONS):
                        value = b"%d" % self.count
                        futures.append((partition, self.count, self._producer.send(TOPIC, value, partition=partition)))
                        self.count += 1
                for partition, number, future in futures:
                    self.acknowledged[partition].append((number, future.result(60).offset))
        except BaseException as error:
            self.errors.append(error)

    @property
    def total(self) -> int:
        """How many records are acknowledged."""
        return sum(map(len, self.acknowledged))

    def wait_for_more(self, count: int = 300) -> None:
        """Return when so many more records are acknowledged: the load goes on."""
        target = self.total + count
        wait_until(lambda: self.errors or self.total >= target, timeout_s=40, what=f"{count} more acknowledgements")
        assert not self.errors, f"the user saw {self.errors[0]!r}"


def read_partition(directory: Path) -> list[tuple[int, int]]:
    """(offset, number) of every record in a copy's files; each batch is checked."""
    found = []
    for path in sorted(directory.glob("*.log")):
        data = memoryview(path.read_bytes())
        for position, header in batches_in(data):
            view = data[position : position + header.size_bytes]
            check_batch(view, size_bytes_max=1 << 20, records_max=10_000)
            values = RecordBatch(TOPIC, 0, view).values()
            found += [(header.base_offset + index, int(bytes(value))) for index, value in enumerate(values)]
    return found


def check_nothing_lost(broker: Broker, load: Load) -> None:
    """Compare what was acknowledged with what the files hold and what the broker says of them."""
    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        admin.wait_for_topics([TOPIC])
        partitions = admin.describe_topics([TOPIC])[TOPIC].partitions
        latest = admin.list_offsets({(TOPIC, number): "latest" for number in range(PARTITIONS)})
    for info in partitions:
        written = read_partition(Path(info.directory))
        by_offset = dict(written)
        assert len(by_offset) == len(written), "no offset twice"
        assert sorted(by_offset) == list(range(latest[TopicPartition(TOPIC, info.partition)].offset))
        for number, offset in load.acknowledged[info.partition]:
            assert by_offset[offset] == number, f"record {number} was acknowledged at {offset}"
        firsts = list(dict.fromkeys(number for _, number in written))
        assert firsts == sorted(firsts), "the first occurrences are in the order of sending"


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker(workers=2, config={"topics": {"segment_bytes": 65_536, "max_message_bytes": 65_536}}) as found:
        with AdminClient(bootstrap_servers=found.bootstrap_servers) as admin:
            admin.create_topics([NewTopic(TOPIC, PARTITIONS)])
        yield found


@pytest.mark.parametrize("way", ["auto", "zmq"])
def test_t16_each_process_in_turn_dies_and_the_producer_goes_on(broker: Broker, way: str) -> None:
    with Load(broker, transport=way) as load:
        load.wait_for_more()
        for name in ("worker-0", "router", "coordinator", "worker-1", "router"):
            pid = broker.kill(name)
            broker.wait_for_restart(name, pid)
            load.wait_for_more()
    assert not load.errors, load.errors
    check_nothing_lost(broker, load)


def test_t18_all_processes_die_at_once(broker: Broker) -> None:
    with Load(broker) as load:
        load.wait_for_more()
        for _ in range(2):
            broker.kill_all()
            broker.start()
            load.wait_for_more()
    assert not load.errors, load.errors
    check_nothing_lost(broker, load)


def test_t18_a_clean_stop_leaves_neither_sockets_nor_shared_memory(broker: Broker) -> None:
    with Load(broker) as load:
        load.wait_for_more()
        broker.wait_for_restart("worker-0", broker.kill("worker-0"))
        load.wait_for_more()
    assert broker.stop() == 0
    left = [path.name for path in broker.paths.run_dir.rglob("*") if not path.is_dir()]
    assert not left, left
    assert not broker.paths.boards_dir.exists() or not any(broker.paths.boards_dir.iterdir())
