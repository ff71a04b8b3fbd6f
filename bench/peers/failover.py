"""The longest time without an acknowledgement after SIGKILL of the leader: zbroker and Kafka with three copies each.

Both have one partition of three copies, acks=all, two in sync at least, and are sent 500 records a second whatever
happens. Kafka runs three nodes, each broker and controller, with its defaults; and again giving up a silent broker
after a third of its default time (`broker.session.timeout.ms` 3000, a heartbeat each 500 ms), because its defaults are
for clusters over a network. (With 1000 ms and quorum timeouts of 500 ms it acknowledged nothing for two minutes after a
second kill.) zbroker runs one worker and two replicas with its defaults. A killed process is started again, and its
copy is in sync again, before the next kill.
"""

from __future__ import annotations

import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.harness import run_rounds
from bench.peers.measures import Measured
from bench.peers.system import TIMEOUT_S
from zbroker.client.admin import AdminClient, NewTopic, PartitionDescription
from zbroker.client.batches import SendFuture
from zbroker.client.producer import Producer
from zbroker.testing import Broker

TOPIC = "failover"
INTERVAL_S = 0.002
COPIES = 3
SHORT_TIMES: dict[str, object] = {
    "broker.session.timeout.ms": 3000,
    "broker.heartbeat.interval.ms": 500,
}
_SETTLED_RECORDS = 250
Done = Callable[[BaseException | None], None]


class Cluster(ABC):
    """Three copies of one partition."""

    @abstractmethod
    def send(self, value: bytes, done: Done) -> None:
        """Send a record; `done` is called when it is acknowledged or has failed."""

    @abstractmethod
    def kill_leader(self) -> None:
        """SIGKILL the process that leads the partition."""

    @abstractmethod
    def is_whole(self) -> bool:
        """Whether there is a leader, and all copies are in sync."""

    @abstractmethod
    def restore(self) -> None:
        """Start what was killed, where it is not started by itself."""


Running = Callable[[], AbstractContextManager[Cluster]]


class ZbrokerCluster(Cluster):
    """One worker and two replicas."""

    def __init__(self, broker: Broker, admin: AdminClient, producer: Producer[Any, Any]) -> None:
        self._broker, self._admin, self._producer = broker, admin, producer

    @classmethod
    @contextmanager
    def running(cls, directory: Path) -> Iterator[ZbrokerCluster]:
        """Start it."""
        config = {"supervisor": {"crash_loop_window_ms": 1}}  # it is killed again and again
        with (
            Broker(workers=1, replicas=2, config=config, directory=directory) as broker,
            AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin,
        ):
            admin.create_topics([NewTopic(TOPIC, 1, COPIES, {"min.insync.replicas": "2"})])
            with Producer(bootstrap_servers=broker.bootstrap_servers, acks="all", linger_ms=0) as producer:
                yield cls(broker, admin, producer)

    def send(self, value: bytes, done: Done) -> None:
        def answered(future: SendFuture) -> None:
            done(future.exception(0))

        self._producer.send(TOPIC, value, partition=0).add_done_callback(answered)

    def kill_leader(self) -> None:
        name = self._partition().leader_name
        assert name is not None
        self._broker.kill(name)

    def is_whole(self) -> bool:
        found = self._partition()
        return found.leader is not None and len(found.isr) == COPIES

    def restore(self) -> None:
        pass  # the supervisor has done it

    def _partition(self) -> PartitionDescription:
        return self._admin.describe_topics([TOPIC])[TOPIC].partitions[0]


class Load:
    """A thread that sends a record each 2 ms and notes when each is acknowledged."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.acknowledged_ns: list[int] = []
        self.errors: list[BaseException] = []

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ending.set()
        self._thread.join()

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._is_ending.is_set():
            due_s += INTERVAL_S
            time.sleep(max(0.0, due_s - time.monotonic()))
            self._cluster.send(bytes(100), self._done)

    def _done(self, error: BaseException | None) -> None:
        if error is None:
            self.acknowledged_ns.append(time.monotonic_ns())
        else:
            self.errors.append(error)

    def wait_for(self, count: int) -> None:
        """Wait until so many more are acknowledged."""
        until = len(self.acknowledged_ns) + count
        _wait(lambda: len(self.acknowledged_ns) >= until, "acknowledgements")

    def longest_gap_ms(self, since_ns: int) -> float:
        """The longest time between two acknowledgements since just before `since_ns`."""
        recent = [at_ns for at_ns in self.acknowledged_ns if at_ns >= since_ns - 50_000_000]
        return max((later - earlier) / 1e6 for earlier, later in pairwise(recent))


def _wait(is_true: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not is_true():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"no {what} within {TIMEOUT_S:.0f} s")
        time.sleep(0.01)


def _gap(cluster: Cluster, load: Load) -> dict[str, float]:
    """Kill the leader once."""
    _wait(cluster.is_whole, "three copies in sync")
    load.wait_for(_SETTLED_RECORDS)
    killed_ns = time.monotonic_ns()
    cluster.kill_leader()
    load.wait_for(2 * _SETTLED_RECORDS)  # what was under way may be acknowledged still, before the gap
    gap_ms = load.longest_gap_ms(killed_ns)
    cluster.restore()
    return {"gap_ms": gap_ms, "errors": len(load.errors)}


def measure_failover(names: list[str], directory: Path, kills: int) -> list[Measured]:
    """So many kills of each cluster, one cluster after another: all at once would compete for the cores."""
    with tempfile.TemporaryDirectory(prefix="zbp-", dir=directory, ignore_cleanup_errors=True) as own:
        here = Path(own)
        ways: list[tuple[str, str, Running]] = [("zbroker", "", partial(ZbrokerCluster.running, here / "zbroker"))]
        if "kafka" in names:
            from bench.peers.kafka_cluster import KafkaCluster  # only where its client is installed

            ways += [
                ("kafka", "defaults", partial(KafkaCluster.running, here / "kafka", {})),
                ("kafka", "session timeout 3 s", partial(KafkaCluster.running, here / "kafka-short", SHORT_TIMES)),
            ]
        found = []
        for name, way, running in ways:
            with running() as cluster, Load(cluster) as load:
                title = " ".join(("kill -9 of the leader", name, way)).strip()
                rounds = run_rounds({title: partial(_gap, cluster, load)}, kills)[title]
            found.append(Measured("failover", name, way, rounds))
    return found
