"""What is measured of every system, in rounds that take turns between the systems.

Parts: `start` (fresh brokers, one after another), `throughput` (with the memory before and after), `latency`. In the
last two all brokers are up at once, and those whose turn it is not do nothing; what doing nothing costs is measured.
Before the rounds that count there is one for warming up: virtual machines compile.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.bare import fresh_values
from bench.harness import run_rounds
from bench.peers.processes import cpu_s, memory_mib
from bench.peers.system import TIMEOUT_S, Span, System

SIZE_BYTES = 100
LARGE_BYTES = 1024
LARGE_SHARE = 5  # so many times fewer records of 1 KiB
FEW_ROUNDS = 3  # of what takes long and does not look for the best round
OWN_TOOL = "its own tool"
UNTUNED_SHARE = 4  # a way that is slow for want of tuning reads so many times fewer records
DEFAULTS = "its defaults"  # how the way of a peer ends that is measured untuned too
PERCENTILES = (10, 25, 50, 75, 90, 95, 99, 99.9, 100)
_SEPARATOR = " | "


class Plan(NamedTuple):
    """How much is measured. `records` is for the fastest systems: see System.slowness."""

    records: int
    rounds: int
    tries: int
    paced: int
    interval_s: float
    idle_s: float
    directory: Path


class Measured(NamedTuple):
    """The figures of one measure of one system, round by round."""

    what: str
    system: str
    way: str
    rounds: list[dict[str, float]]


class _Contenders(dict[str, Callable[[], dict[str, float]]]):
    def put(self, what: str, system: System, way: str, run: Callable[[], dict[str, float]]) -> None:
        self[_SEPARATOR.join((what, system.name, way))] = run

    def measured(self, rounds: int) -> list[Measured]:
        found = run_rounds(self, rounds)
        measured = []
        for name, figures in found.items():
            what, system, way = name.split(_SEPARATOR)
            measured.append(Measured(what, system, way, figures))
        return measured


def measure_start(classes: list[type[System]], plan: Plan) -> list[Measured]:
    """From the start of a broker in an empty directory to the first acknowledged record."""
    contenders = _Contenders()
    for kind in classes:
        contenders[_SEPARATOR.join(("start", kind.name, ""))] = partial(_start, kind, plan.directory)
    return contenders.measured(min(plan.rounds, FEW_ROUNDS))


def _start(kind: type[System], directory: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="zbp-", dir=directory, ignore_cleanup_errors=True) as own:
        system = kind(Path(own) / kind.name)
        system.prepare()
        began_s = time.perf_counter()
        try:
            system.start()
            system.acknowledge(system.make_topic(), b"first", 1, 0)
            return {"s": time.perf_counter() - began_s}
        finally:
            system.stop()


@contextmanager
def running(classes: list[type[System]], directory: Path) -> Iterator[list[System]]:
    """All of them, up; they and their data are gone at the end."""
    own = Path(tempfile.mkdtemp(prefix="zbp-", dir=directory))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, own, ignore_errors=True)
        systems = []
        for kind in classes:
            system = kind(own / kind.name)
            system.prepare()
            stack.callback(system.stop)
            system.start()
            systems.append(system)
        yield systems


def measure_throughput(classes: list[type[System]], plan: Plan) -> list[Measured]:
    """Produce and consume, and the memory before and after."""
    with running(classes, plan.directory) as systems:
        for system in systems:
            system.acknowledge(system.make_topic(), b"first", 1, 0)
        found = [
            Measured("memory, idle", system.name, "", [figures])
            for system, figures in zip(systems, _idle(systems, plan.idle_s), strict=True)
        ]
        contenders = _Contenders()
        for system in systems:
            for way in system.produce_ways:
                contenders.put("produce 100 B", system, way, partial(_produce, system, way, plan.records, SIZE_BYTES))
        for system in systems:
            way, count = system.produce_ways[-1], plan.records // LARGE_SHARE
            contenders.put("produce 1 KiB", system, way, partial(_produce, system, way, count, LARGE_BYTES))
        for system in systems:
            topic = system.make_topic()
            count = _count(system, plan.records)
            system.produce(system.produce_ways[-1], topic, fresh_values(count, SIZE_BYTES), Span(system.pids))
            for way in system.consume_ways:
                read = count // UNTUNED_SHARE if way.endswith(DEFAULTS) else count
                contenders.put("consume 100 B", system, way, partial(_consume, system, way, topic, read))
            _put_own_tools(contenders, system, topic, plan.records)
        found += contenders.measured(plan.rounds)
        found += [Measured("memory, after load", system.name, "", [memory_mib(system.pids())]) for system in systems]
    return found


def _put_own_tools(contenders: _Contenders, system: System, filled: str, records: int) -> None:
    tools = system.own_tools()
    if "consume" in tools:
        run = partial(tools["consume"], system.address, filled, records, SIZE_BYTES)
        contenders.put("consume 100 B", system, OWN_TOOL, run)
    if "produce" in tools:
        for what, count, size_bytes in (
            ("produce 100 B", records, SIZE_BYTES),
            ("produce 1 KiB", records // LARGE_SHARE, LARGE_BYTES),
        ):
            contenders.put(what, system, OWN_TOOL, partial(_with_own_tool, system, count, size_bytes))


def _with_own_tool(system: System, count: int, size_bytes: int) -> dict[str, float]:
    topic = system.make_topic()
    figures = system.own_tools()["produce"](system.address, topic, count, size_bytes)
    system.remove_topic(topic)
    return figures


def _count(system: System, records: int) -> int:
    return max(1_000, records // system.slowness)


def _produce(system: System, way: str, records: int, size_bytes: int) -> dict[str, float]:
    topic, span, count = system.make_topic(), Span(system.pids), _count(system, records)
    system.produce(way, topic, fresh_values(count, size_bytes), span)
    system.remove_topic(topic)
    return span.figures(count, size_bytes)


def _consume(system: System, way: str, topic: str, count: int) -> dict[str, float]:
    span = Span(system.pids)
    system.consume(way, topic, count, span)
    return span.figures(count, SIZE_BYTES)


def _idle(systems: list[System], seconds: float) -> list[dict[str, float]]:
    """Memory and share of a core of brokers that have nothing to do."""
    time.sleep(seconds)  # what a start leaves to be done is over
    pids = [system.pids() for system in systems]
    began_s, before_s = time.perf_counter(), [sum(map(cpu_s, own)) for own in pids]
    time.sleep(seconds)
    spent_s = time.perf_counter() - began_s
    return [
        {**memory_mib(own), "idle_cpu_percent": (sum(map(cpu_s, own)) - before) / spent_s * 100}
        for own, before in zip(pids, before_s, strict=True)
    ]


def measure_latency(classes: list[type[System]], plan: Plan) -> list[Measured]:
    """One record and its acknowledgement; and from the time a record is due to a consumer that slept."""
    with running(classes, plan.directory) as systems:
        contenders = _Contenders()
        for system in systems:
            contenders.put("acknowledge", system, "", partial(_acknowledge, system, plan.tries))
        for system in systems:
            contenders.put("end to end", system, "", partial(_end_to_end, system, plan))
        return contenders.measured(min(plan.rounds, FEW_ROUNDS))


def _acknowledge(system: System, tries: int) -> dict[str, float]:
    topic = system.make_topic()
    spent_us = system.acknowledge(topic, bytes(SIZE_BYTES), tries, tries // 10)
    system.remove_topic(topic)
    return percentiles(spent_us)


def _end_to_end(system: System, plan: Plan) -> dict[str, float]:
    topic = system.make_topic()
    command = [sys.executable, "-m", "bench.peers.reader", system.name, system.address, topic, str(plan.paced)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        try:
            assert reader.stdout.readline() == "ready\n", f"the reader of {system.name} has ended"
            system.send_paced(topic, plan.paced, plan.interval_s)
            spent_us = json.loads(reader.communicate(timeout=TIMEOUT_S)[0])
        finally:
            reader.kill()
    system.remove_topic(topic)
    return percentiles(spent_us)


def percentiles(spent_us: list[float]) -> dict[str, float]:
    """Microseconds by percentile; with fewer values than a percentile needs, the longest."""
    spent_us.sort()
    last = len(spent_us) - 1
    return {f"p{percent:g}_us": spent_us[min(last, int(len(spent_us) * percent / 100))] for percent in PERCENTILES}
