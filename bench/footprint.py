"""Rows of what a broker costs that does nothing: its start, its memory, and many idle partitions."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from bench.harness import Row, compile_package, cpu_ns, row, run_rounds, spread
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.producer import Producer
from zbroker.shm.owned_directory import OwnedDirectory
from zbroker.testing import Broker

_SERVE = "import sys; from zbroker.cli.main import main; sys.exit(main(sys.argv[1:]))"


def start(directory: Path) -> dict[str, float]:
    """From the start of `zbroker serve` in an empty directory to the first acknowledged record."""
    with OwnedDirectory.make("zbb-", directory) as own:
        run = f"{own}/run"
        started_s = time.perf_counter()
        command = [sys.executable, "-c", _SERVE, "serve", "--data-dir", f"{own}/data", "--run-dir", run]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as serving:
            assert serving.stdout is not None
            try:
                assert serving.stdout.readline().startswith("zbroker ready")
                with Producer(bootstrap_servers=f"ipc://{run}") as producer:
                    producer.send("first", b"x").result(10)
                    first_s = time.perf_counter() - started_s
            finally:
                serving.terminate()
                serving.wait(30)
    return {"s": first_s}


def footprint_rows(directory: Path, rounds: int, partitions: int, seconds: float) -> list[Row]:
    """All of them."""
    compile_package()
    starts = run_rounds({"start": lambda: start(directory)}, rounds)["start"]
    with Broker(workers="auto") as broker, AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
            producer.send("first", b"x").result(10)
        names = broker.process_names()
        pids = [broker.pid_of(name) for name in names]
        resident = [psutil.Process(pid).memory_info().rss / (1 << 20) for pid in pids]
        began_s = time.perf_counter()
        admin.create_topics([NewTopic("many", partitions)], timeout_ms=120_000)
        created_s = time.perf_counter() - began_s
        time.sleep(1)
        share = _share(pids, seconds)
    largest = max(zip(resident, names, strict=True))
    return [
        row(
            "zbroker serve to the first acknowledged record",
            min(one["s"] for one in starts),
            "s",
            target="< 0.6",
            spread=spread(starts, "s"),
        ),
        row(
            f"resident memory, idle, the largest of {len(names)} processes",
            largest[0],
            "MiB",
            largest[1],
            target="< 30",
        ),
        row(f"create {partitions:,} partitions", created_s, "s"),
        row(f"{partitions:,} idle partitions, all processes", share, "% of a core", target="< 2"),
    ]


def _share(pids: Iterable[int], seconds: float) -> float:
    started_ns, before_ns = time.monotonic_ns(), sum(map(cpu_ns, pids))
    time.sleep(seconds)
    return (sum(map(cpu_ns, pids)) - before_ns) / (time.monotonic_ns() - started_ns) * 100
