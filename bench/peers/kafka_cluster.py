"""Three Kafka nodes with one partition of three copies, for the failover."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from bench.peers import kafka, processes
from bench.peers.failover import COPIES, TOPIC, Cluster, Done

ASK_TIMEOUT_S = 5.0


class KafkaCluster(Cluster):
    """Each node is broker and controller; the producer has linger.ms 0 and else its defaults."""

    def __init__(self, nodes: dict[int, kafka.Node]) -> None:
        self._nodes = nodes
        self._servers = ",".join(f"127.0.0.1:{node.port}" for node in nodes.values())
        self._killed: kafka.Node | None = None

    @classmethod
    @contextmanager
    def running(cls, directory: Path, further: Mapping[str, object]) -> Iterator[Cluster]:
        """Format and start three nodes, and make the topic."""
        ports = processes.free_ports(2 * COPIES)
        pairs = {number: (ports[2 * number - 2], ports[2 * number - 1]) for number in range(1, COPIES + 1)}
        settings = {"min.insync.replicas": 2, **further}
        nodes = {number: kafka.Node(directory / str(number), number, pairs, COPIES, settings) for number in pairs}
        cluster = cls(nodes)
        try:
            for node in nodes.values():
                node.format()
            cluster._start()
            yield cluster
        finally:
            for node in nodes.values():
                node.stop()

    def _start(self) -> None:
        for node in self._nodes.values():
            node.launch()  # none answers before there is a majority
        for node in self._nodes.values():
            node.wait()
        self._admin = AdminClient({"bootstrap.servers": self._servers, "log_level": 0})
        kafka.wait_for_metadata(self._admin, COPIES)
        kafka.make_topic(self._admin, NewTopic(TOPIC, 1, COPIES))
        settings = {"bootstrap.servers": self._servers, "acks": "all", "linger.ms": 0, "log_level": 0}
        self._producer: Any = Producer(settings)

    def send(self, value: bytes, done: Done) -> None:
        def answered(error: Any, _message: Any) -> None:
            done(None if error is None else KafkaException(error))

        self._producer.produce(TOPIC, value, partition=0, on_delivery=answered)
        self._producer.poll(0)

    def kill_leader(self) -> None:
        found = self._partition()
        assert found is not None, "it was whole just now"
        self._killed = self._nodes[found.leader]
        self._killed.stop()

    def is_whole(self) -> bool:
        found = self._partition()
        return found is not None and found.leader >= 0 and len(found.isrs) == COPIES

    def restore(self) -> None:
        assert self._killed is not None
        self._killed.start()
        self._killed = None

    def _partition(self) -> Any:
        """What a broker knows of the partition; None when that one has only just started, or has just died."""
        try:
            return self._admin.list_topics(TOPIC, timeout=ASK_TIMEOUT_S).topics[TOPIC].partitions.get(0)
        except KafkaException:
            return None
