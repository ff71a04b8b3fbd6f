"""zbroker itself, with one worker and default settings but for what is said here.

Settings and their reasons. acks=all with one copy, which is the page cache; for each record `send` and the bound
`sender()`, as a batch `send_many` with lists of 5,000; consumed by `poll` of 10,000 as records, and by `batches()` as
views into the mapped log. Its CRCs are checked by the consumer. Its bytecode is compiled before, as pip does it.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import ClassVar

from bench.harness import compile_package
from bench.peers.processes import tree
from bench.peers.system import Span, System, chunks, due_times, since_us
from zbroker import __version__
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.testing import Broker

LIST_RECORDS = 5_000
POLL_RECORDS = 10_000


class Zbroker(System):
    """One broker of one worker."""

    name = "zbroker"
    produce_ways = ("send", "sender", "send_many")
    consume_ways = ("records", "views")
    settings: ClassVar[dict[str, str]] = {
        "broker": "defaults, one worker, one copy",
        "durability": "acks=all, page cache, no fsync",
        "producer": "defaults; lists of 5,000 for send_many; latency: send and result",
        "consumer": "max_poll_records=10000; CRCs are checked",
    }

    @classmethod
    def check(cls) -> str:
        return f"zbroker {__version__}, Python {platform.python_version()}"

    def prepare(self) -> None:
        compile_package()
        self._broker = Broker(workers=1, directory=self.directory)
        self.address = self._broker.bootstrap_servers

    def start(self) -> None:
        self._broker.start()

    def stop(self) -> None:
        self._broker.stop()

    def pids(self) -> list[int]:
        return tree(self._broker.supervisor_pid)

    def make_topic(self) -> str:
        topic = self.new_name()
        with AdminClient(bootstrap_servers=self.address) as admin:
            admin.create_topics([NewTopic(topic, 1)])
        return topic

    def remove_topic(self, topic: str) -> None:
        with AdminClient(bootstrap_servers=self.address) as admin:
            admin.delete_topics([topic])

    def produce(self, way: str, topic: str, values: list[bytes], span: Span) -> None:
        with Producer(bootstrap_servers=self.address) as producer:
            producer.send(topic, b"warm").result(10)
            send, emit, lists = producer.send, producer.sender(topic), list(chunks(values, LIST_RECORDS))
            with span:
                if way == "send":
                    for value in values:
                        send(topic, value)
                elif way == "sender":
                    for value in values:
                        emit(value)
                else:
                    for one in lists:
                        producer.send_many(topic, one)
                left = producer.flush()
        assert left == 0, f"{left} records are not acknowledged"
        stored = self._end(topic)
        assert stored == len(values) + 1, f"{stored} records are stored"

    def _end(self, topic: str) -> int:
        with Consumer(bootstrap_servers=self.address) as consumer:
            return sum(consumer.end_offsets([(topic, 0)]).values())

    def consume(self, way: str, topic: str, count: int, span: Span) -> None:
        with Consumer(
            {"auto_offset_reset": "earliest", "max_poll_records": POLL_RECORDS}, bootstrap_servers=self.address
        ) as consumer:
            consumer.assign([(topic, 0)])
            consumer.position((topic, 0))
            got = 0
            with span:
                if way == "views":
                    for batch in consumer.batches():
                        values = batch.values()
                        assert len(values.data) >= len(values.ends)
                        got += len(batch)
                        if got >= count:
                            break
                while got < count:
                    for records in consumer.poll(timeout_ms=1000).values():
                        for record in records:
                            value = record.value
                            assert value is not None
                            got += 1

    def acknowledge(self, topic: str, value: bytes, tries: int, warm: int) -> list[float]:
        spent_us = []
        with Producer(bootstrap_servers=self.address) as producer:
            for _ in range(tries + warm):
                began_ns = time.perf_counter_ns()
                producer.send(topic, value).result(10)
                spent_us.append((time.perf_counter_ns() - began_ns) / 1000)
        return spent_us[warm:]

    def send_paced(self, topic: str, count: int, interval_s: float) -> None:
        with Producer(bootstrap_servers=self.address, linger_ms=0) as producer:
            for value in due_times(count, interval_s):
                producer.send(topic, value)
            producer.flush()

    @staticmethod
    def receive(address: str, topic: str, count: int, ready: Callable[[], None]) -> list[float]:
        spent_us: list[float] = []
        with Consumer(bootstrap_servers=address, auto_offset_reset="earliest") as consumer:
            consumer.assign([(topic, 0)])
            consumer.position((topic, 0))
            ready()
            while len(spent_us) < count:
                for record in consumer.consume(100, timeout_ms=10_000):
                    assert record.value is not None
                    spent_us.append(since_us(record.value))
        return spent_us
