"""NATS JetStream with nats-py on uvloop.

Settings and their reasons. A stream on files with one copy; the server syncs its files every two minutes, so that an
acknowledgement means the page cache. nats-py has no batch call: `publish_async` with up to 4,000 records under way
(its default; 10,000 gave the same) is its fastest way that waits for acknowledgements. Consumed by a pull consumer that
needs no acknowledgement, 10,000 a fetch; to a sleeping consumer by a push subscription.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import shutil
import subprocess
import time
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

import nats
import uvloop
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from bench.peers import processes
from bench.peers.system import TIMEOUT_S, MissingError, Span, System, due_times_async, since_us

FETCH_RECORDS = 10_000
_CONFIG = """
server_name: bench
listen: 127.0.0.1:{port}
jetstream {{ store_dir: "{directory}/data", max_mem: 1G, max_file: 8G }}
"""


class Nats(System):
    """One server."""

    name = "nats"
    produce_ways = ("publish_async",)
    consume_ways = ("fetch",)
    slowness = 20
    settings: ClassVar[dict[str, str]] = {
        "broker": "defaults, JetStream on files, one copy",
        "durability": "written before the answer, page cache, synced every 2 minutes",
        "producer": "publish_async with 4,000 unacknowledged records at most; latency: publish; uvloop",
        "consumer": "pull consumer, AckPolicy none, fetch(10000); end to end: push subscription; uvloop",
    }

    @classmethod
    def check(cls) -> str:
        server = shutil.which("nats-server")
        if server is None:
            raise MissingError("nats-server was not found", "apt-get install nats-server")
        said = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout
        return f"NATS {said.split()[-1].removeprefix('v')}, nats-py {importlib.metadata.version('nats-py')}"

    def prepare(self) -> None:
        self.directory.mkdir(parents=True)
        self._port = processes.free_ports(1)[0]
        self.address = f"127.0.0.1:{self._port}"
        (self.directory / "nats.conf").write_text(_CONFIG.format(port=self._port, directory=self.directory))

    def start(self) -> None:
        log = self.directory / "log.txt"
        self._process = processes.start(["nats-server", "-c", str(self.directory / "nats.conf")], log)
        processes.wait_for(lambda: processes.is_listening(self._port), self._process, log)

    def stop(self) -> None:
        processes.end(self._process)

    def pids(self) -> list[int]:
        return processes.tree(self._process.pid)

    def make_topic(self) -> str:
        topic = self.new_name()

        async def make(client: Any) -> None:
            await client.jetstream(timeout=TIMEOUT_S).add_stream(name=topic, subjects=[topic])

        _run(self.address, make)
        return topic

    def remove_topic(self, topic: str) -> None:
        async def remove(client: Any) -> None:
            await client.jetstream(timeout=TIMEOUT_S).delete_stream(topic)

        _run(self.address, remove)

    def produce(self, way: str, topic: str, values: list[bytes], span: Span) -> None:
        async def produce(client: Any) -> None:
            stream = client.jetstream()
            await stream.publish(topic, b"warm")
            publish = stream.publish_async
            with span:
                futures = [await publish(topic, value) for value in values]
                await stream.publish_async_completed()
            assert all(future.exception() is None for future in futures)
            stored = (await stream.stream_info(topic)).state.messages
            assert stored == len(values) + 1, f"{stored} records are stored"

        _run(self.address, produce)

    def consume(self, way: str, topic: str, count: int, span: Span) -> None:
        async def consume(client: Any) -> None:
            config = ConsumerConfig(ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.ALL)
            subscription = await client.jetstream().pull_subscribe(topic, config=config)
            got = 0
            with span:
                while got < count:
                    for message in await subscription.fetch(min(FETCH_RECORDS, count - got), timeout=10):
                        value = message.data
                        assert value is not None
                        got += 1

        _run(self.address, consume)

    def acknowledge(self, topic: str, value: bytes, tries: int, warm: int) -> list[float]:
        spent_us = []

        async def publish(client: Any) -> None:
            stream = client.jetstream()
            for _ in range(tries + warm):
                began_ns = time.perf_counter_ns()
                await stream.publish(topic, value)
                spent_us.append((time.perf_counter_ns() - began_ns) / 1000)

        _run(self.address, publish)
        return spent_us[warm:]

    def send_paced(self, topic: str, count: int, interval_s: float) -> None:
        async def send(client: Any) -> None:
            stream = client.jetstream()
            async for value in due_times_async(count, interval_s):
                await stream.publish_async(topic, value)
            await stream.publish_async_completed()

        _run(self.address, send)

    @staticmethod
    def receive(address: str, topic: str, count: int, ready: Callable[[], None]) -> list[float]:
        spent_us: list[float] = []

        async def receive(client: Any) -> None:
            is_done = asyncio.Event()

            async def take(message: Any) -> None:
                spent_us.append(since_us(message.data))
                if len(spent_us) == count:
                    is_done.set()

            config = ConsumerConfig(ack_policy=AckPolicy.NONE)
            await client.jetstream().subscribe(topic, cb=take, config=config, manual_ack=True)
            ready()
            await is_done.wait()

        _run(address, receive)
        return spent_us


def _run(address: str, work: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    async def connected() -> None:
        client = await nats.connect(f"nats://{address}")
        try:
            await work(client)
        finally:
            await client.close()

    uvloop.run(connected())
