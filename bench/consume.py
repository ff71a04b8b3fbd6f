"""Rows of the consume side: as records, as batches warm and at the tail, beside scans of the same mapped files.

A scan checks the same CRCs and nothing else. At the tail both chase a file that another process fills: both know from
the worker's board how far they may read, both map the file anew when it has grown, and what both spend on waiting for
bytes does not count, because the writer sets the pace.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import bare
from bench.harness import Contender, Row, best, row, run_rounds, spread
from bench.world import World
from zbroker.client.consumer import Consumer
from zbroker.ids import TopicPartition
from zbroker.load.bare import mapped_scan
from zbroker.shm import layout
from zbroker.shm.board_reader import BoardReader

POLLS = 2_000


class _Waits:
    """CPU seconds of a consumer's thread that went into waiting because nothing was there."""

    def __init__(self, consumer: Consumer[Any, Any]) -> None:
        self.spent_s = 0.0
        self._wait = consumer._fetcher.wait
        consumer._fetcher.wait = self._timed  # type: ignore[method-assign]  # the one place that knows of sleeping

    def _timed(self, timeout_ms: float) -> bool:
        started_s = time.thread_time()
        has_news = self._wait(timeout_ms)
        self.spent_s += time.thread_time() - started_s
        return has_news


def read(world: World, topic: str, how: str) -> dict[str, float]:
    """Read `count` records from the start of a topic."""
    settings: dict[str, Any] = {"auto_offset_reset": "earliest", "max_poll_records": 10_000}
    with Consumer(settings, bootstrap_servers=world.servers) as consumer:
        consumer.assign([(topic, 0)])
        consumer.position((topic, 0))
        waits = _Waits(consumer)
        got = 0
        started_s, started_cpu_s = time.perf_counter(), time.thread_time()
        if how == "batches":
            for batch in consumer.batches():
                values = batch.values()
                assert len(values.data) >= len(values.ends)
                got += len(batch)
                if got >= world.count:
                    break
        elif how == "iterate":
            for record in consumer:
                if record.offset == world.count - 1:
                    break
        else:
            while got < world.count:
                got += sum(map(len, consumer.poll(timeout_ms=1000).values()))
        spent_s, spent_cpu_s = time.perf_counter() - started_s, time.thread_time() - started_cpu_s
    return {"records_per_s": world.count / spent_s, "without_waits_per_s": world.count / (spent_cpu_s - waits.spent_s)}


@contextmanager
def _written(world: World, topic: str) -> Iterator[None]:
    """Another process begins to fill the topic."""
    command = [sys.executable, "-m", "bench.writer", world.servers, topic, str(world.count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.stdin.write("go\n")
        writer.stdin.flush()
        yield


def tail(world: World) -> dict[str, float]:
    """Read batches while another process writes them."""
    topic = world.topic()
    with _written(world, topic):
        return read(world, topic, "batches")


def bare_tail(world: World) -> dict[str, float]:
    """The bare scan of a file that another process fills."""
    topic, topic_id, directory = world.new_topic()
    board = BoardReader.find(world.broker.paths.boards_dir, "worker-0")
    assert board is not None
    try:
        cell = board.partition_cell(topic_id, 0)
        assert cell is not None
        path = next(iter(directory.glob("*.log")))
        with _written(world, topic):
            return bare.tail_scan(path, board.words, cell.at + layout.P_POSITION, world.count)
    finally:
        board.close()


def polls(world: World, topic: str) -> dict[str, float]:
    """What a poll costs that finds nothing."""
    with Consumer(bootstrap_servers=world.servers) as consumer:
        tp = TopicPartition(topic, 0)
        consumer.assign([tp])
        consumer.seek_to_end(tp)
        started_s = time.perf_counter()
        for _ in range(POLLS):
            consumer.poll()
        return {"us": (time.perf_counter() - started_s) / POLLS * 1e6}


def consume_rows(world: World, rounds: int) -> list[Row]:
    """All of them."""
    filled, directory = world.filled()
    contenders: dict[str, Contender] = {
        "bare mapped scan": lambda: mapped_scan(_logs(directory)),
        "consume as batches": lambda: read(world, filled, "batches"),
        "bare scan at the tail": lambda: bare_tail(world),
        "batches at the tail": lambda: tail(world),
        "poll": lambda: read(world, filled, "poll"),
        "iterate": lambda: read(world, filled, "iterate"),
        "empty poll": lambda: polls(world, filled),
    }
    found = run_rounds(contenders, rounds)
    top = {name: best(found[name], "records_per_s") for name in contenders if name != "empty poll"}
    chased, bare_chased = (
        best(found[n], "without_waits_per_s") for n in ("batches at the tail", "bare scan at the tail")
    )
    scan, warm = top["bare mapped scan"], top["consume as batches"]
    rates = {name: spread(found[name], "records_per_s", 1e-6) for name in top}
    empty = spread(found["empty poll"], "us")
    chases = spread(found["batches at the tail"], "without_waits_per_s", 1e-6)
    return [
        row("consume as records, poll", top["poll"] / 1e6, "M/s", target=">= 2.5 M/s", spread=rates["poll"]),
        row("consume as records, iterate", top["iterate"] / 1e6, "M/s", spread=rates["iterate"]),
        row(
            "consume as batches, warm", warm / 1e6, "M/s", f"bare mapped scan, {scan / 1e6:.1f} M/s", warm / scan,
            ">= 0.90", rates["consume as batches"],
        ),
        row(
            "consume as batches, at the tail, CPU without waits", chased / 1e6, "M/s",
            f"bare scan of the growing file, {bare_chased / 1e6:.1f} M/s", chased / bare_chased, ">= 0.70",
            chases,
        ),
        row(
            "consume as batches, at the tail, CPU without waits", chased / 1e6, "M/s",
            f"bare mapped scan of a finished file, {scan / 1e6:.1f} M/s", chased / scan, ">= 0.70",
            chases,
        ),
        row("a poll that finds nothing", empty.median, "us", spread=empty),
    ]  # fmt: skip


def _logs(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.log"))
