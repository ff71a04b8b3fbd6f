"""Apache Kafka 4.0 (KRaft) with confluent-kafka, the fastest Python client of it.

Settings and their reasons. Broker: all defaults (no fsync: `log.flush.*` unset), one node that is broker and
controller, heap and collector as its own `kafka-server-start.sh` sets them. Producer: acks=all; for throughput
linger.ms 5 and batch.size 1 MB, for latency linger.ms 0; its queue is large enough that no call waits. Consumer:
assigned, from the begin, `consume(1000)` with `fetch.queue.backoff.ms` 1 in place of librdkafka's 1000, because a
fetcher whose queue was full otherwise sleeps for a second (1,000 records a call were faster than 10,000; larger fetches
and queues gave nothing more); and with its defaults and `consume(10000)`, which is what its users meet. CRCs of fetched
batches are not checked by default, and so not here.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from bench.peers import processes
from bench.peers.system import TIMEOUT_S, MissingError, OwnTool, Span, System, chunks, due_times, since_us

ROOT = Path(__file__).resolve().parents[2]
CHUNK_RECORDS = 10_000
CLUSTER = "MkU3OEVBNTcwNTJENDM2Qk"  # any UUID in base 64
INSTALL = "apt-get install openjdk-17-jre-headless maven && mvn -q -f bench/peers/kafka-pom.xml package"
_JVM = (
    "-Xms1g", "-Xmx1g", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent", "-Djava.awt.headless=true",
)  # fmt: skip
_THROUGHPUT = {"linger.ms": 5, "batch.size": 1_000_000}
_LATENCY = {"linger.ms": 0}
_QUEUE = {"queue.buffering.max.messages": 10_000_000, "queue.buffering.max.kbytes": 2_000_000}


def libraries() -> Path:
    """Where the jars are: $KAFKA_LIBS, else build/kafka of the checkout."""
    return Path(os.environ.get("KAFKA_LIBS") or ROOT / "build" / "kafka")


def java(*words: str, heap: tuple[str, ...] = ()) -> list[str]:
    """The command that runs a class of the jars."""
    return ["java", *heap, "-cp", f"{libraries()}/*", *words]


class Node:
    """One broker process: its directory, ports and settings."""

    def __init__(
        self,
        directory: Path,
        number: int,
        ports: dict[int, tuple[int, int]],
        copies: int = 1,
        further: Mapping[str, object] | None = None,
    ) -> None:
        self.directory = directory
        self.port = ports[number][0]
        self.log = directory / "log.txt"
        self.process: subprocess.Popen[bytes] | None = None
        voters = ",".join(f"{node}@127.0.0.1:{controller}" for node, (_, controller) in ports.items())
        lines = {
            "process.roles": "broker,controller",
            "node.id": number,
            "controller.quorum.voters": voters,
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{ports[number][1]}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": directory / "data",
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": min(2, copies),
            "group.initial.rebalance.delay.ms": 0,
            "auto.create.topics.enable": "false",
            **(further or {}),
        }
        directory.mkdir(parents=True)
        self.settings = directory / "server.properties"
        self.settings.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))

    def format(self) -> None:
        """Write the directory's metadata, as every KRaft node needs once."""
        command = java("kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c", str(self.settings))
        subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)

    def start(self) -> None:
        """Start it; it takes connections when this returns."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start it."""
        self.process = processes.start(java("kafka.Kafka", str(self.settings), heap=_JVM), self.log)

    def wait(self) -> None:
        """Wait until it takes connections."""
        assert self.process is not None
        processes.wait_for(lambda: processes.is_listening(self.port), self.process, self.log)

    def stop(self) -> None:
        """End it at once."""
        if self.process is not None:
            processes.end(self.process)
            self.process = None


class Kafka(System):
    """One node."""

    name = "kafka"
    produce_ways = ("produce", "produce_batch")
    consume_ways = ("consume", "consume, its defaults")
    settings: ClassVar[dict[str, str]] = {
        "broker": "defaults, one node (broker and controller), " + " ".join(_JVM),
        "durability": "acks=all, page cache, no flush",
        "producer, throughput": "linger.ms=5 batch.size=1000000, a queue of 10 M records; produce_batch of 10,000",
        "producer, latency": "linger.ms=0",
        "java tools": "ProducerPerformance acks=all linger.ms=5 batch.size=1000000 buffer.memory=67108864, -Xmx512m; "
        "ConsumerPerformance with its defaults",
        "consumer": "assign, consume(1000) with fetch.queue.backoff.ms=1; its defaults: consume(10000); no CRCs",
    }

    @classmethod
    def check(cls) -> str:
        if shutil.which("java") is None:
            raise MissingError("java was not found", INSTALL)
        if not any(libraries().glob("kafka_2.13-*.jar")):
            what = f"Kafka's jars were not found in {libraries()} ($KAFKA_LIBS names another place)"
            raise MissingError(what, INSTALL)
        version = next(libraries().glob("kafka_2.13-*.jar")).stem.removeprefix("kafka_2.13-")
        return f"Apache Kafka {version}, confluent-kafka {importlib.metadata.version('confluent-kafka')}"

    def prepare(self) -> None:
        broker, controller = processes.free_ports(2)
        self._node = Node(self.directory, 1, {1: (broker, controller)})
        self._node.format()
        self.address = f"127.0.0.1:{broker}"

    def start(self) -> None:
        self._node.start()
        self._admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        wait_for_metadata(self._admin)

    def stop(self) -> None:
        self._node.stop()

    def pids(self) -> list[int]:
        assert self._node.process is not None
        return processes.tree(self._node.process.pid)

    def make_topic(self) -> str:
        topic = self.new_name()
        make_topic(self._admin, NewTopic(topic, 1, 1))
        return topic

    def remove_topic(self, topic: str) -> None:
        self._admin.delete_topics([topic])[topic].result(TIMEOUT_S)

    def _producer(self, settings: dict[str, Any]) -> Any:
        return Producer({"bootstrap.servers": self.address, "acks": "all", **_QUEUE, **settings})

    def produce(self, way: str, topic: str, values: list[bytes], span: Span) -> None:
        producer = self._producer(_THROUGHPUT)
        producer.produce(topic, b"warm", partition=0)
        assert producer.flush(TIMEOUT_S) == 0
        if way == "produce":
            produce = producer.produce
            with span:
                for value in values:
                    produce(topic, value, partition=0)
                left = producer.flush(TIMEOUT_S)
        else:
            lists = [[{"value": value} for value in part] for part in chunks(values, CHUNK_RECORDS)]
            with span:
                for one in lists:
                    producer.produce_batch(topic, one, partition=0)
                left = producer.flush(TIMEOUT_S)
        assert left == 0, f"{left} records are not acknowledged"
        stored = self._end(topic)
        assert stored == len(values) + 1, f"{stored} records are stored"

    def _end(self, topic: str) -> int:
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": "bench"})
        end: int = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=TIMEOUT_S)[1]
        consumer.close()
        return end

    def consume(self, way: str, topic: str, count: int, span: Span) -> None:
        is_tuned = way == self.consume_ways[0]
        consumer = _assigned(self.address, topic, {"fetch.queue.backoff.ms": 1} if is_tuned else {})
        at_once = 1_000 if is_tuned else CHUNK_RECORDS
        got = 0
        with span:
            while got < count:
                for message in consumer.consume(at_once, TIMEOUT_S):
                    value = message.value()
                    assert value is not None
                    got += 1
        consumer.close()

    def own_tools(self) -> Mapping[str, OwnTool]:
        from bench.peers import kafka_java  # it needs this module

        return {"produce": kafka_java.produce, "consume": kafka_java.consume}

    def acknowledge(self, topic: str, value: bytes, tries: int, warm: int) -> list[float]:
        producer = self._producer(_LATENCY)
        answered: list[Any] = []
        spent_us = []
        for number in range(tries + warm):
            began_ns = time.perf_counter_ns()
            producer.produce(topic, value, partition=0, on_delivery=lambda error, _: answered.append(error))
            while len(answered) <= number:
                producer.poll(1)
            spent_us.append((time.perf_counter_ns() - began_ns) / 1000)
        assert not any(answered), answered
        return spent_us[warm:]

    def send_paced(self, topic: str, count: int, interval_s: float) -> None:
        producer = self._producer(_LATENCY)
        for value in due_times(count, interval_s):
            producer.produce(topic, value, partition=0)
        assert producer.flush(TIMEOUT_S) == 0

    @staticmethod
    def receive(address: str, topic: str, count: int, ready: Callable[[], None]) -> list[float]:
        consumer = _assigned(address, topic, {})
        consumer.poll(1)  # the connections are made and the first fetch waits at the broker
        ready()
        spent_us: list[float] = []
        while len(spent_us) < count:
            message = consumer.poll(TIMEOUT_S)
            assert message.error() is None, message.error()
            spent_us.append(since_us(message.value()))
        consumer.close()
        return spent_us


def wait_for_metadata(admin: Any, nodes: int = 1) -> None:
    """Wait until the cluster names so many brokers."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while len(admin.list_topics(timeout=TIMEOUT_S).brokers) < nodes:
        assert time.monotonic() < deadline_s, "the brokers do not find each other"
        time.sleep(0.01)


def make_topic(admin: Any, topic: Any) -> None:
    """Make a topic and wait until it has a leader."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        try:
            admin.create_topics([topic])[topic.topic].result(TIMEOUT_S)
            break
        except KafkaException as error:
            # The client drops its bootstrap connections, and what waits on them, when it has learned the brokers.
            code = error.args[0]
            if time.monotonic() > deadline_s or not (code.retriable() or code.code() == KafkaError._DESTROY_BROKER):
                raise
    while not _has_leader(admin, topic.topic):
        assert time.monotonic() < deadline_s, "the topic gets no leader"
        time.sleep(0.005)


def _has_leader(admin: Any, topic: str) -> bool:
    partitions = admin.list_topics(topic, timeout=TIMEOUT_S).topics[topic].partitions
    return 0 in partitions and partitions[0].leader >= 0


def _assigned(address: str, topic: str, further: dict[str, Any]) -> Any:
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "bench",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            **further,
        }
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    return consumer
