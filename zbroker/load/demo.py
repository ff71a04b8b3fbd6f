"""The demo: real lines through a real broker, checked, timed and reported.

Two producer processes send every line of Python's standard library (the file is the key) and samples of the host's
processes; two consumer processes read them. Each side keeps a checksum chain for each key, so the report can say that
every line arrived once and in order, and latencies are exact because the host has one monotonic clock.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import IO, Any

import msgspec
import psutil

from zbroker.client.admin import AdminClient, NewTopic
from zbroker.load.child import start
from zbroker.load.demo_process import Findings, Progress, Task
from zbroker.load.histogram import Histogram
from zbroker.load.order_check import OrderCheck

TOPIC = "demo"
PARTITIONS = 4
PRODUCERS = 2
CONSUMERS = 2
SAMPLE_ROUNDS = 3

Watcher = Callable[[Mapping[str, Progress]], None]


class DemoError(RuntimeError):
    """A process of the demo ended early; what it wrote to stderr says why."""


class ProcessCost(msgspec.Struct):
    """CPU time and memory of one process."""

    name: str
    pid: int
    cpu_seconds: float
    resident_bytes: int


class Report(msgspec.Struct):
    """What the demo found."""

    records: int
    bytes: int
    keys: int
    produce_seconds: float
    consume_seconds: float
    latency_us: dict[str, float]
    latency_samples: int
    differences: list[str]
    processes: list[ProcessCost]

    @property
    def is_right(self) -> bool:
        """Whether every record arrived once and in the order of its key."""
        return not self.differences


def run_demo(
    bootstrap_servers: str, files: Sequence[Path], broker_pids: Mapping[str, int], watch: Watcher = lambda _: None
) -> Report:
    """Run the demo against a broker that is up. Raises DemoError when a process fails; ends its processes always."""
    with AdminClient(bootstrap_servers=bootstrap_servers) as admin:
        admin.create_topics([NewTopic(TOPIC, num_partitions=PARTITIONS)])
    names = [str(path) for path in files]
    root = os.path.commonpath([path.absolute().parent for path in files])
    tasks = {}
    for index in range(CONSUMERS):
        mine = list(range(index, PARTITIONS, CONSUMERS))
        tasks[f"consumer-{index}"] = Task("consumer", bootstrap_servers, TOPIC, partitions=mine)
    for index in range(PRODUCERS):
        rounds = SAMPLE_ROUNDS if index == 0 else 0
        tasks[f"producer-{index}"] = Task("producer", bootstrap_servers, TOPIC, root, names[index::PRODUCERS], rounds)
    with _processes(tasks) as running:
        findings = _follow(running, watch)
        costs = _costs({**broker_pids, **{name: process.pid for name, process in running.items()}}, findings)
    return _report(findings, costs)


@contextmanager
def _processes(tasks: Mapping[str, Task]) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, task in tasks.items():
            running[name] = start("zbroker.load.demo_process", task, stdout=subprocess.PIPE)
        yield running
    finally:
        for process in running.values():
            if process.poll() is None:
                process.terminate()
        for process in running.values():
            try:
                process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def _follow(running: Mapping[str, subprocess.Popen[bytes]], watch: Watcher) -> dict[str, Findings]:
    """Read what the processes write until each has given its findings; tell the consumers when to finish."""
    findings: dict[str, Findings] = {}
    progress: dict[str, Progress] = {name: Progress(0, 0) for name in running}
    told_to_finish = False
    with DefaultSelector() as selector:
        for name, process in running.items():
            selector.register(_pipe(process.stdout), EVENT_READ, name)
        while len(findings) < len(running):
            for key, _ in selector.select(timeout=0.1):
                name = key.data
                line = _pipe(running[name].stdout).readline()
                if not line:
                    raise DemoError(f"{name} ended early, with exit code {running[name].wait()}")
                progress[name] = msgspec.json.decode(line, type=Progress)
                if progress[name].done:
                    findings[name] = msgspec.json.decode(line, type=Findings)
                    selector.unregister(key.fileobj)
            watch(progress)
            if not told_to_finish and all(name in findings for name in running if name.startswith("producer")):
                told_to_finish = True
                for name, process in running.items():
                    if name.startswith("consumer"):
                        stdin = _pipe(process.stdin)
                        stdin.write(b"finish\n")
                        stdin.flush()
    return findings


def _pipe(stream: IO[Any] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _costs(pids: Mapping[str, int], findings: Mapping[str, Findings]) -> list[ProcessCost]:
    found = []
    for name, pid in pids.items():
        if name in findings:
            cpu_seconds, resident_bytes = findings[name].cpu_seconds, findings[name].resident_bytes
        else:
            process = psutil.Process(pid)
            times = process.cpu_times()
            cpu_seconds, resident_bytes = times.user + times.system, process.memory_info().rss
        found.append(ProcessCost(name, pid, cpu_seconds, resident_bytes))
    return found


def _report(findings: Mapping[str, Findings], costs: list[ProcessCost]) -> Report:
    sent, received, latencies = _SidesOf(findings, "producer"), _SidesOf(findings, "consumer"), Histogram()
    for found in received.findings:
        latencies.merge(Histogram(found.latencies))
    percentiles = {f"p{percent:g}": latencies.percentile_ns(percent) / 1_000 for percent in (50.0, 99.0, 99.9)}
    return Report(
        records=received.check.records,
        bytes=sum(found.bytes for found in received.findings),
        keys=len(sent.check.as_chains()),
        produce_seconds=max(found.seconds for found in sent.findings),
        consume_seconds=max(found.seconds for found in received.findings),
        latency_us=percentiles,
        latency_samples=latencies.count,
        differences=sent.check.differences(received.check),
        processes=costs,
    )


class _SidesOf:
    """The findings of all producers, or of all consumers, joined."""

    def __init__(self, findings: Mapping[str, Findings], role: str) -> None:
        self.findings = [found for name, found in findings.items() if name.startswith(role)]
        self.check = OrderCheck()
        for found in self.findings:
            self.check.merge(OrderCheck(found.chains))
