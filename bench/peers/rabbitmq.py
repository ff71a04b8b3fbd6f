"""RabbitMQ Streams with rstream on uvloop.

Settings and their reasons. The plugin `rabbitmq_stream` alone, a stream with one copy; streams are never synced, so
that a confirmation means the page cache. For each record `send`, whose background task sends what has gathered every
5 ms (its default is 3 s); as a batch `send_batch` of 1,000 messages (a frame is 1 MB at most). It ends at the last
confirmation. A consumer has 100 chunks under way (default 10). It runs with an epmd of its own, which ends with it.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ClassVar

import rstream
import uvloop

from bench.peers import processes
from bench.peers.system import TIMEOUT_S, MissingError, Span, System, chunks, due_times_async, since_us

FRAME_BYTES = 900_000
CHUNK_RECORDS = 1_000
_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # the one in PATH changes to a user of its own
_PLUGIN = "rabbitmq_stream"


class RabbitMQ(System):
    """One node."""

    name = "rabbitmq"
    produce_ways = ("send", "send_batch")
    consume_ways = ("subscribe",)
    slowness = 10
    settings: ClassVar[dict[str, str]] = {
        "broker": "defaults, plugin rabbitmq_stream, one copy",
        "durability": "confirmed when written, page cache, never synced",
        "producer": "send with a publishing delay of 5 ms; send_batch of 1,000 records; latency: send_wait; uvloop",
        "consumer": "subscribe from the first offset, initial credit 100; uvloop",
    }

    @classmethod
    def check(cls) -> str:
        if not _SERVER.exists():
            raise MissingError("rabbitmq-server was not found", "apt-get install rabbitmq-server")
        version = next(_SERVER.parents[1].glob("lib/rabbitmq_server-*")).name.rpartition("-")[2]
        return f"RabbitMQ {version}, rstream {importlib.metadata.version('rstream')}"

    def prepare(self) -> None:
        self.directory.mkdir(parents=True)
        self._port, self._amqp_port, self._distribution_port, self._names_port = processes.free_ports(4)
        self.address = f"127.0.0.1:{self._port}"
        (self.directory / "enabled_plugins").write_text(f"[{_PLUGIN}].\n")
        (self.directory / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self._amqp_port}\n"
            f"stream.listeners.tcp.1 = 127.0.0.1:{self._port}\n"
            f"stream.advertised_host = 127.0.0.1\nstream.advertised_port = {self._port}\n"
        )

    def start(self) -> None:
        log, here = self.directory / "log.txt", str(self.directory)
        environment = {
            "ERL_EPMD_PORT": str(self._names_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "HOME": here,
            "RABBITMQ_CONFIG_FILE": f"{here}/rabbitmq",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{here}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{here}/data",
            "RABBITMQ_LOG_BASE": f"{here}/logs",
            "RABBITMQ_PID_FILE": f"{here}/pid",
            "RABBITMQ_NODENAME": f"bench{os.getpid()}@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        self._names = processes.start(["epmd"], log, environment)
        processes.wait_for(lambda: processes.is_listening(self._names_port), self._names, log)
        self._process = processes.start([str(_SERVER)], log, environment)
        processes.wait_for(lambda: processes.is_listening(self._port), self._process, log)

    def stop(self) -> None:
        processes.end(self._process)
        processes.end(self._names)

    def pids(self) -> list[int]:
        return processes.tree(self._process.pid) + processes.tree(self._names.pid)

    def make_topic(self) -> str:
        topic = self.new_name()

        async def make(producer: Any) -> None:
            await producer.create_stream(topic)

        _run(self.address, make)
        return topic

    def remove_topic(self, topic: str) -> None:
        async def remove(producer: Any) -> None:
            await producer.delete_stream(topic)

        _run(self.address, remove)

    def produce(self, way: str, topic: str, values: list[bytes], span: Span) -> None:
        async def produce(producer: Any) -> None:
            await producer.send_wait(topic, b"warm")
            confirmed = _Confirmations(len(values))
            with span:
                if way == "send":
                    send = producer.send
                    for value in values:
                        await send(topic, value, on_publish_confirm=confirmed)
                else:
                    for part in chunks(values, min(CHUNK_RECORDS, FRAME_BYTES // (len(values[0]) + 20))):
                        await producer.send_batch(topic, part, on_publish_confirm=confirmed)
                await asyncio.wait_for(confirmed.all.wait(), TIMEOUT_S)

        _run(self.address, produce)

    def consume(self, way: str, topic: str, count: int, span: Span) -> None:
        got = 0
        is_done = asyncio.Event()

        def take(value: bytes, _context: Any) -> None:
            nonlocal got
            assert value is not None
            got += 1
            if got == count:
                is_done.set()

        async def consume() -> None:
            consumer = _consumer(self.address)
            await consumer.start()
            with span:
                await _subscribe(consumer, topic, take)
                await asyncio.wait_for(is_done.wait(), TIMEOUT_S)
            await consumer.close()

        uvloop.run(consume())

    def acknowledge(self, topic: str, value: bytes, tries: int, warm: int) -> list[float]:
        spent_us = []

        async def send(producer: Any) -> None:
            for _ in range(tries + warm):
                began_ns = time.perf_counter_ns()
                await producer.send_wait(topic, value)
                spent_us.append((time.perf_counter_ns() - began_ns) / 1000)

        _run(self.address, send)
        return spent_us[warm:]

    def send_paced(self, topic: str, count: int, interval_s: float) -> None:
        async def send(producer: Any) -> None:
            confirmed = _Confirmations(count)
            async for value in due_times_async(count, interval_s):
                await producer.send_batch(topic, [value], on_publish_confirm=confirmed)
            await asyncio.wait_for(confirmed.all.wait(), TIMEOUT_S)

        _run(self.address, send)

    @staticmethod
    def receive(address: str, topic: str, count: int, ready: Callable[[], None]) -> list[float]:
        spent_us: list[float] = []

        async def receive() -> None:
            is_done = asyncio.Event()

            def take(value: bytes, _context: Any) -> None:
                spent_us.append(since_us(value))
                if len(spent_us) == count:
                    is_done.set()

            consumer = _consumer(address)
            await consumer.start()
            await _subscribe(consumer, topic, take)
            ready()
            await is_done.wait()
            await consumer.close()

        uvloop.run(receive())
        return spent_us


class _Confirmations:
    """Counts what the broker has confirmed."""

    def __init__(self, count: int) -> None:
        self._left = count
        self.all = asyncio.Event()

    def __call__(self, status: Any) -> None:
        assert status.is_confirmed, status
        self._left -= 1
        if not self._left:
            self.all.set()


def _consumer(address: str) -> Any:
    host, port = address.split(":")
    return rstream.Consumer(host, int(port), username="guest", password="guest")


async def _subscribe(consumer: Any, topic: str, take: Callable[[bytes, Any], None]) -> None:
    first = rstream.ConsumerOffsetSpecification(rstream.OffsetType.FIRST, None)
    await consumer.subscribe(topic, take, offset_specification=first, initial_credit=100)


def _run(address: str, work: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    async def connected() -> None:
        host, port = address.split(":")
        producer = rstream.Producer(
            host, int(port), username="guest", password="guest", default_batch_publishing_delay=0.005
        )
        await producer.start()
        try:
            await work(producer)
        finally:
            await producer.close()

    logging.getLogger("rstream").setLevel(logging.ERROR)
    uvloop.run(connected())
