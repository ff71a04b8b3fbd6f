"""How cost grows: with partitions (descriptors, memory, recovery), with readers of one log, with the log's length.

Each plot has a limit of the bare hardware or of the host drawn in: what nothing that is built on it can pass.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from zbroker import ids
from zbroker.client.admin import AdminClient
from zbroker.client.producer import Producer
from zbroker.load import bare
from zbroker.load.bench_crew import run_tasks
from zbroker.load.bench_runs import MIB, Found, Spec, consume_once, filled_topic
from zbroker.load.bench_target import Target, own_broker
from zbroker.load.bench_task import Task
from zbroker.load.faults import broker_processes
from zbroker.load.results import Cell, Plot, Series, Table, figure
from zbroker.load.rounds import Rounds, run_rounds, spread
from zbroker.load.seeks import seek_us
from zbroker.load.usage import Usage

FLUSH_TIMEOUT_MS = 120_000
TOPIC_LIST_RECORDS = 500
NEVER_HANGS = {"coordinator": {"hang_timeout_ms": 0}}  # a recovery may take longer than a hang is allowed to
Advance = Callable[[int], None]


class CostPlan(msgspec.Struct, kw_only=True):
    """What is the same for all of them."""

    records: int = 1_200_000
    size_bytes: int = 100
    rounds: int = 3
    seed: int = 1
    directory: Path | None = None


def _rounds(
    plan: CostPlan, sizes: Sequence[int], run: Callable[[int], dict[str, float]], advance: Advance
) -> dict[int, Rounds]:
    def contender(size: int) -> Callable[[], dict[str, float]]:
        def one() -> dict[str, float]:
            found = run(size)
            advance(1)
            return found

        return one

    found = run_rounds({str(size): contender(size) for size in sizes}, plan.rounds, warm_up_rounds=int(plan.rounds > 1))
    return {int(name): rounds for name, rounds in found.items()}


def _table(title: str, first: str, columns: dict[str, str], found: dict[int, Rounds]) -> Table:
    rows: list[list[Cell]] = [
        [size, *(round(spread(rounds, key).median, 4) for key in columns.values())] for size, rounds in found.items()
    ]
    return Table(title=title, columns=[first, *columns], rows=rows)


def _series(name: str, key: str, found: dict[int, Rounds], scale: float = 1.0) -> Series:
    spreads = [spread(rounds, key, scale) for rounds in found.values()]
    return Series(
        name=name,
        x=[float(size) for size in found],
        y=[one.median for one in spreads],
        low=[one.low for one in spreads],
        high=[one.high for one in spreads],
    )


def _worker(target: Target) -> Usage:
    assert target.boards_dir is not None
    return Usage.of(ids.pid_of(broker_processes(target.boards_dir)["worker-0"]))


def partition_costs(plan: CostPlan, counts: Sequence[int], advance: Advance = lambda _: None) -> Found:
    """S-055..S-057: descriptors and memory of the worker, memory of a producer, rate, and the time of a recovery."""
    found = _rounds(plan, counts, lambda count: _with_partitions(plan, count), advance)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    table = _table(
        "what partitions cost", "PARTITIONS",
        {
            "WORKER'S DESCRIPTORS": "descriptors", "WORKER MiB": "worker_mib", "PRODUCER MiB": "producer_mib",
            "COORDINATOR MiB": "coordinator_mib", "M RECORDS/S": "m_records_per_s", "CREATE s": "create_s",
            "RECOVER s": "recover_s", "BARE OPEN AND SCAN s": "bare_s",
        },
        found,
    )  # fmt: skip
    x = [float(count) for count in counts]
    plots = [
        Plot(
            name="partitions_descriptors", title="Open files of a worker", x_label="partitions", y_label="files",
            series=[
                _series("worker", "descriptors", found),
                Series(name="the host's limit (RLIMIT_NOFILE)", x=x, y=[float(limit)] * len(x), is_limit=True),
            ],
            is_log_x=True, is_log_y=True,
        ),
        Plot(
            name="partitions_memory", title="Resident memory", x_label="partitions", y_label="MiB",
            series=[
                _series("worker", "worker_mib", found),
                _series("producer that sends to all of them", "producer_mib", found),
                _series("coordinator", "coordinator_mib", found),
                _series("a bare interpreter", "bare_mib", found).limit(),
            ],
            is_log_x=True,
        ),
        Plot(
            name="partitions_recovery", title="From kill -9 of everything to a record in every partition",
            x_label="partitions", y_label="s",
            series=[
                _series("kill of all processes, start, a record acknowledged in each", "recover_s", found),
                _series("bare: open each log, check each batch", "bare_s", found).limit(),
            ],
            is_log_x=True, is_log_y=True,
        ),
    ]  # fmt: skip
    last = spread(found[max(found)], "recover_s")
    return Found([figure(f"recovery, {max(found):,} partitions", last.median, "s", spread=last)], [table], plots)


def _with_partitions(plan: CostPlan, count: int) -> dict[str, float]:
    with own_broker(directory=plan.directory, config=NEVER_HANGS) as target:
        began_s = time.perf_counter()
        with target.topic("many", count) as (topic, partitions):
            create_s = time.perf_counter() - began_s
            writer = Task(
                role="producer", name="producer-0", bootstrap_servers=target.bootstrap_servers, topic=topic,
                partitions=partitions, records=max(count * 10, plan.records // 4), size_bytes=plan.size_bytes,
                call_records=TOPIC_LIST_RECORDS, seed=plan.seed,
            )  # fmt: skip
            run = run_tasks([writer], target.boards_dir)
            worker = _worker(target)
            paths = _logs_of(target, topic)
            bare_s = _bare_recovery_s(paths)
            recover_s = _recovery_s(target, topic, count)
    return {
        "descriptors": worker.descriptors,
        "worker_mib": worker.resident_bytes / MIB,
        "producer_mib": run.outcomes[0].usage.resident_bytes / MIB,
        "coordinator_mib": run.broker["coordinator"].resident_bytes / MIB,
        "bare_mib": _bare_interpreter_mib(),
        "m_records_per_s": run.rate("producer") / 1e6,
        "create_s": create_s,
        "recover_s": recover_s,
        "bare_s": bare_s,
    }


def _bare_interpreter_mib() -> float:
    return bare.interpreter_bytes() / MIB


def _logs_of(target: Target, topic: str) -> list[Path]:
    with AdminClient(bootstrap_servers=target.bootstrap_servers) as admin:
        described = admin.describe_topics([topic])[topic].partitions
    return [path for one in described for path in sorted(Path(one.directory).glob("*.log"))]


def _bare_recovery_s(paths: Sequence[Path]) -> float:
    began_s = time.perf_counter()
    bare.mapped_scan(paths)
    return time.perf_counter() - began_s


def _recovery_s(target: Target, topic: str, count: int) -> float:
    assert target.broker is not None
    target.broker.kill_all()
    began_s = time.perf_counter()
    target.broker.start()
    with Producer(bootstrap_servers=target.bootstrap_servers) as producer:
        for partition in range(count):
            producer.send(topic, b"x", partition=partition)
        left = producer.flush(timeout_ms=FLUSH_TIMEOUT_MS)
    assert left == 0, f"{left} records were not acknowledged"
    return time.perf_counter() - began_s


def reader_costs(plan: CostPlan, counts: Sequence[int], advance: Advance = lambda _: None) -> Found:
    """So many processes that read one log at once, and what that costs the worker."""
    cores = len(os.sched_getaffinity(0))
    with own_broker(directory=plan.directory) as target:
        base = Spec(records=plan.records, size_bytes=plan.size_bytes, mode="batches", seed=plan.seed)
        with filled_topic(base, target) as (topic, partitions):

            def run(count: int) -> dict[str, float]:
                spec = msgspec.structs.replace(base, consumers=count, records=plan.records * count)
                measured = consume_once(spec, target, topic, partitions)
                return {
                    "records_per_s": measured.rate("consumer"),
                    "worker_ms": measured.broker["worker-0"].cpu_ns / 1e6,
                    "reader_mib": sum(one.usage.resident_bytes for one in measured.outcomes) / MIB / count,
                }

            found = _rounds(plan, counts, run, advance)
            paths = _logs_of(target, topic)
            limit = bare.together("scanned", cores, paths) / _log_bytes_each(paths)
    table = _table(
        "readers of one log", "READERS",
        {"RECORDS/S, ALL": "records_per_s", "WORKER ms": "worker_ms", "MiB A READER": "reader_mib"}, found,
    )  # fmt: skip
    plot = Plot(
        name="readers", title="Records read a second by all readers of one log", x_label="readers",
        y_label="records/s",
        series=[
            _series("readers together", "records_per_s", found),
            Series(name="bare mapped scan, all cores", x=[1.0], y=[limit], is_limit=True),
        ],
        is_log_x=True, is_log_y=True,
    )  # fmt: skip
    most = spread(found[max(found)], "records_per_s", 1e-6)
    rows = [figure(f"{max(found)} readers together", most.best, "M records/s", spread=most)]
    return Found(rows, [table], [plot])


def _log_bytes_each(paths: Sequence[Path]) -> float:
    scanned = bare.mapped_scan(paths)
    return scanned["mb_per_s"] * 1e6 / scanned["records_per_s"]


def log_costs(plan: CostPlan, megabytes: Sequence[int], advance: Advance = lambda _: None) -> Found:
    """Logs of several lengths: how fast one is filled and read, what a seek costs, how long a recovery takes."""
    found = _rounds(plan, megabytes, lambda size: _with_log(plan, size), advance)
    table = _table(
        "what a log's length costs", "MEGABYTES",
        {
            "FILL MB/s": "fill_mb_per_s", "BARE FILL MB/s": "bare_fill_mb_per_s", "READ MB/s": "read_mb_per_s",
            "BARE READ MB/s": "bare_read_mb_per_s", "SEEK us": "seek_us", "RECOVER s": "recover_s",
        },
        found,
    )  # fmt: skip
    plots = [
        Plot(
            name="logs", title="Filling and reading logs of several lengths", x_label="megabytes of values",
            y_label="MB/s",
            series=[
                _series("filled, acknowledged", "fill_mb_per_s", found),
                _series("bare CRC and pwrite", "bare_fill_mb_per_s", found).limit(),
                _series("read by mapping", "read_mb_per_s", found),
                _series("bare mapped scan", "bare_read_mb_per_s", found).limit(),
            ],
            is_log_x=True, is_log_y=True,
        ),
        Plot(
            name="logs_recovery", title="From kill -9 of everything to a record acknowledged",
            x_label="megabytes of values", y_label="s",
            series=[_series("recovery", "recover_s", found), _series("bare mapped scan", "bare_read_s", found).limit()],
            is_log_x=True, is_log_y=True,
        ),
    ]  # fmt: skip
    last = spread(found[max(found)], "seek_us")
    return Found([figure(f"seek in a log of {max(found):,} MB", last.median, "us", spread=last)], [table], plots)


def _with_log(plan: CostPlan, megabytes: int) -> dict[str, float]:
    records = megabytes * 1_000_000 // plan.size_bytes
    where = plan.directory or Path("/dev/shm")
    with own_broker(directory=plan.directory, config=NEVER_HANGS) as target, target.topic("log", 1) as (topic, _):
        fill_s = _fill_s(plan, target, topic, records)
        paths = _logs_of(target, topic)
        scan = bare.mapped_scan(paths)
        spec = Spec(records=records, size_bytes=plan.size_bytes, mode="batches", seed=plan.seed)
        read = consume_once(spec, target, topic, [0])
        sought_us = seek_us(target, topic, records, plan.seed)
        recover_s = _recovery_s(target, topic, 1)
        bare_fill = bare.written_once(where, megabytes * 1_000_000, plan.size_bytes)
    return {
        "fill_mb_per_s": megabytes / fill_s,
        "bare_fill_mb_per_s": bare_fill / 1e6,
        "read_mb_per_s": read.rate("consumer") * plan.size_bytes / 1e6,
        "bare_read_mb_per_s": scan["mb_per_s"],
        "bare_read_s": megabytes / scan["mb_per_s"],
        "seek_us": sought_us,
        "recover_s": recover_s,
    }


def _fill_s(plan: CostPlan, target: Target, topic: str, records: int) -> float:
    """Seconds for so many records, by runs that each fit into memory."""
    spent_s, left, part = 0.0, records, 0
    while left:
        writer = Task(
            role="producer", name="producer-0", bootstrap_servers=target.bootstrap_servers, topic=topic,
            partitions=[0], records=min(left, max(plan.records, 1)), size_bytes=plan.size_bytes,
            seed=plan.seed + part, warm_up_records=0,
        )  # fmt: skip
        spent_s += run_tasks([writer], None).seconds("producer")
        left -= writer.records
        part += 1
    return spent_s
