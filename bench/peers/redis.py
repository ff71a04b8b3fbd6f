"""Redis Streams with redis-py and its C parser hiredis.

Settings and their reasons. The append-only file is on and never synced (`appendfsync no`), no snapshots: a record is
written to the page cache before it is acknowledged, as with every other system here. Redis has no batch call, its
pipeline is its batch: an XADD for each record goes into a pipeline that is sent when it holds 1,000 (10,000 were
slower). XREAD takes 10,000 entries a call. The nodes of its stream hold up to 64 KiB (default 4 KiB), which costs less
memory and time.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any, ClassVar

import redis

from bench.peers import processes
from bench.peers.system import MissingError, Span, System, chunks, due_times, since_us

PIPELINE_RECORDS = 1_000
READ_RECORDS = 10_000
_SERVER = {
    "bind": "127.0.0.1",
    "appendonly": "yes",
    "appendfsync": "no",
    "save": "",
    "stream-node-max-entries": "4096",
    "stream-node-max-bytes": "65536",
}


class Redis(System):
    """One server."""

    name = "redis"
    produce_ways = ("pipeline",)
    consume_ways = ("xread",)
    slowness = 10
    settings: ClassVar[dict[str, str]] = {
        "broker": " ".join(f"{key}={value or '(none)'}" for key, value in _SERVER.items()),
        "durability": "append-only file written before the answer, page cache, no fsync",
        "producer": "XADD in pipelines of 1,000 without transactions; latency: XADD alone; one field for each entry",
        "consumer": "XREAD COUNT 10000; end to end: XREAD BLOCK",
    }

    @classmethod
    def check(cls) -> str:
        server = shutil.which("redis-server")
        if server is None:
            raise MissingError("redis-server was not found", "apt-get install redis-server")
        said = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout
        version = next(word[2:] for word in said.split() if word.startswith("v="))
        return f"Redis {version}, redis-py {importlib.metadata.version('redis')}"

    def prepare(self) -> None:
        self.directory.mkdir(parents=True)
        self._port = processes.free_ports(1)[0]
        self.address = f"127.0.0.1:{self._port}"

    def start(self) -> None:
        command = ["redis-server", "--port", str(self._port), "--dir", str(self.directory)]
        for key, value in _SERVER.items():
            command += [f"--{key}", value]
        log = self.directory / "log.txt"
        self._process = processes.start(command, log)
        processes.wait_for(lambda: processes.is_listening(self._port), self._process, log)
        self._admin = _client(self.address)
        self._admin.ping()

    def stop(self) -> None:
        processes.end(self._process)

    def pids(self) -> list[int]:
        return processes.tree(self._process.pid)

    def make_topic(self) -> str:
        return self.new_name()

    def remove_topic(self, topic: str) -> None:
        self._admin.delete(topic)

    def produce(self, way: str, topic: str, values: list[bytes], span: Span) -> None:
        with _client(self.address) as client:
            client.ping()
            with span:
                for part in chunks(values, PIPELINE_RECORDS):
                    pipeline = client.pipeline(transaction=False)
                    add = pipeline.execute_command
                    for value in part:
                        add("XADD", topic, "*", "v", value)
                    pipeline.execute()
            stored = client.xlen(topic)
        assert stored == len(values), f"{stored} records are stored"

    def consume(self, way: str, topic: str, count: int, span: Span) -> None:
        with _client(self.address) as client:
            client.ping()
            last: Any = "0"
            got = 0
            with span:
                while got < count:
                    entries = client.xread({topic: last}, count=READ_RECORDS)[0][1]
                    for _, fields in entries:
                        value = fields[b"v"]
                        assert value is not None
                    last = entries[-1][0]
                    got += len(entries)

    def acknowledge(self, topic: str, value: bytes, tries: int, warm: int) -> list[float]:
        spent_us = []
        with _client(self.address) as client:
            for _ in range(tries + warm):
                began_ns = time.perf_counter_ns()
                client.execute_command("XADD", topic, "*", "v", value)
                spent_us.append((time.perf_counter_ns() - began_ns) / 1000)
        return spent_us[warm:]

    def send_paced(self, topic: str, count: int, interval_s: float) -> None:
        with _client(self.address) as client:
            for value in due_times(count, interval_s):
                client.execute_command("XADD", topic, "*", "v", value)

    @staticmethod
    def receive(address: str, topic: str, count: int, ready: Callable[[], None]) -> list[float]:
        spent_us: list[float] = []
        with _client(address) as client:
            client.ping()
            last: Any = "0"
            ready()
            while len(spent_us) < count:
                for _, entries in client.xread({topic: last}, block=1_000) or []:
                    for last, fields in entries:  # noqa: B007 - the last one is where the next read goes on
                        spent_us.append(since_us(fields[b"v"]))
        return spent_us


def _client(address: str) -> Any:
    host, port = address.split(":")
    return redis.Redis(host=host, port=int(port))
