"""Throughput across cores: workers times partitions, what each role costs, and where it bends.

Each worker has a producer and a consumer, each a process of its own; all begin at once, the consumers read what is
being written. A producer has partitions of its own while there are enough of them; else producers share one, and so do
workers idle: partitions are the ceiling.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from zbroker.load import bare
from zbroker.load.bench_crew import BenchError, Measured, run_tasks
from zbroker.load.bench_rates import records_of
from zbroker.load.bench_runs import Found, shares
from zbroker.load.bench_target import own_broker
from zbroker.load.bench_task import Task
from zbroker.load.results import Cell, Plot, Series, Table, figure
from zbroker.load.rounds import run_rounds, spread
from zbroker.load.scale_model import Constants, model_tables, paper_plot

LIST_RECORDS: Final = 2_000
ROLES: Final = ("producer", "worker", "consumer", "other")
COLUMNS: Final = (
    "WORKERS", "PARTITIONS", "RECORDS/S", "MEDIAN", "LOWEST", "MB/S", "READ/S", "PRODUCER us", "WORKER us",
    "CONSUMER us", "OTHER us", "CORES", "SWITCHES/MB",
)  # fmt: skip
Advance = Callable[[int], None]


class ScalePlan(msgspec.Struct, kw_only=True):
    """What shall be measured."""

    workers: list[int]
    partitions: list[int]
    records: int = 1_200_000
    size_bytes: int = 100
    acks: str = "all"
    compression: str = "none"
    pin: bool = False
    rounds: int = 3
    seed: int = 1
    directory: Path | None = None

    @property
    def runs(self) -> int:
        """How many runs there will be, the warm-up's included."""
        return len(self.workers) * len(self.partitions) * (self.rounds + (self.rounds > 1))


def throughput(plan: ScalePlan, advance: Advance = lambda _: None) -> Found:
    """Run every pair of workers and partitions, in turns, and draw them with the limits of the hardware."""

    def contender(workers: int, partitions: int) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            found = figures_of(one_run(plan, workers, partitions), plan.size_bytes)
            advance(1)
            return found

        return run

    pairs = [(workers, partitions) for workers in plan.workers for partitions in plan.partitions]
    found = run_rounds(
        {_name(*pair): contender(*pair) for pair in pairs}, plan.rounds, warm_up_rounds=int(plan.rounds > 1)
    )
    cores = len(os.sched_getaffinity(0))
    copied = bare.together("copied", cores)
    written = bare.together("written", cores, [plan.directory or Path("/dev/shm")])
    constants = Constants.of(found[_name(*pairs[0])], copied / cores, written / cores, plan.size_bytes)
    rows: list[list[Cell]] = []
    for pair in pairs:
        runs = found[_name(*pair)]
        top = max(runs, key=lambda one: one["records_per_s"])
        rates = spread(runs, "records_per_s")
        rows.append(
            [
                *pair, round(rates.best), round(rates.median), round(rates.low),
                round(rates.best * plan.size_bytes / 1e6, 1), round(top["read_per_s"]),
                *(round(statistics.median(one[role] for one in runs), 3) for role in ROLES),
                round(top["cores"], 2), round(top["switches_per_mb"], 2),
            ]
        )  # fmt: skip
    table = Table(title="throughput across workers and partitions", columns=list(COLUMNS), rows=rows)
    best = max(pairs, key=lambda pair: spread(found[_name(*pair)], "records_per_s").best)
    rates = spread(found[_name(*best)], "records_per_s", 1e-6)
    figures = [
        figure(f"most at once, {best[0]} workers, {best[1]} partitions", rates.best, "M records/s", spread=rates),
        figure("memory copied by all cores", copied / 1e9, "GB/s"),
        figure("batches checked and written by all cores, bare", written / 1e9, "GB/s"),
    ]
    plots = [_plot(plan, found, constants, cores), paper_plot(constants)]
    return Found(figures, [table, *model_tables(constants, cores)], plots)


def _name(workers: int, partitions: int) -> str:
    return f"{workers} workers, {partitions} partitions"


def one_run(plan: ScalePlan, workers: int, partitions: int) -> Measured:
    """One run on a broker of its own."""
    with (
        own_broker(workers=workers, pin=plan.pin, directory=plan.directory) as target,
        target.topic("scale", partitions) as (topic, numbers),
    ):
        settings = {"acks": plan.acks, "compression_type": plan.compression}
        each = max(1, plan.records // workers)
        writers = [
            Task(
                role="producer", name=f"producer-{number}", bootstrap_servers=target.bootstrap_servers, topic=topic,
                partitions=mine, records=each, size_bytes=plan.size_bytes, settings=dict(settings),
                call_records=min(LIST_RECORDS, each), seed=plan.seed + number, core=number if plan.pin else None,
            )
            for number, mine in enumerate(shares(numbers, workers))
        ]  # fmt: skip
        readers = [
            Task(
                role="consumer", name=f"consumer-{number}", bootstrap_servers=target.bootstrap_servers, topic=topic,
                partitions=mine, mode="batches", size_bytes=plan.size_bytes, core=number if plan.pin else None,
                records=sum(records_of(writer, partition) for writer in writers for partition in mine),
            )
            for number, mine in enumerate(shares(numbers, min(workers, partitions)))
        ]  # fmt: skip
        run = run_tasks([*writers, *readers], target.boards_dir)
    wanted = sum(task.records for task in readers)
    if run.records("consumer") != wanted:
        raise BenchError(f"{run.records('consumer')} of {wanted} records were read")
    return run


def figures_of(run: Measured, size_bytes: int) -> dict[str, float]:
    """Rates, and CPU microseconds for each record by role."""
    records = run.records("producer")
    spent = dict.fromkeys(ROLES, 0.0)
    switches = 0
    for name, used in run.usages().items():
        role = name.rpartition("-")[0]
        spent[role if role in spent else "other"] += used.cpu_ns / 1000 / records
        switches += used.switches
    began_ns = min(one.began_ns for one in run.of("producer"))
    seconds = max(one.ended_ns for one in run.outcomes) - began_ns
    return {
        "records_per_s": run.rate("producer"),
        "read_per_s": run.records("consumer") / (seconds / 1e9),
        **spent,
        "cores": sum(spent.values()) * records * 1000 / seconds,
        "switches_per_mb": switches / (records * size_bytes / 1e6),
    }


def _plot(plan: ScalePlan, found: dict[str, list[dict[str, float]]], constants: Constants, cores: int) -> Plot:
    series = []
    for partitions in plan.partitions:
        rates = [spread(found[_name(workers, partitions)], "records_per_s") for workers in plan.workers]
        series.append(
            Series(
                name=f"{partitions} partition" + "s" * (partitions > 1),
                x=[float(workers) for workers in plan.workers],
                y=[one.median for one in rates],
                low=[one.low for one in rates],
                high=[one.high for one in rates],
            )
        )
    largest = max(plan.partitions)
    series.append(
        Series(
            name=f"model, {largest} partitions",
            x=[float(workers) for workers in plan.workers],
            y=[constants.rate(workers, largest, cores) for workers in plan.workers],
            is_limit=True,
        )
    )
    series += _limits(constants, cores)
    return Plot(
        name="workers",
        title=f"Records acknowledged a second, {plan.size_bytes} bytes, {cores} cores",
        x_label="workers, each with a producer and a consumer",
        y_label="records/s (median of the rounds)",
        series=series,
        is_log_x=True,
        is_log_y=True,
    )


def _limits(constants: Constants, cores: int) -> Sequence[Series]:
    names = {"bare CRC and pwrite, all cores": constants.write_limit, "memory, all cores": constants.memory_limit}
    return [Series(name=name, x=[1.0], y=[limit(cores)], is_limit=True) for name, limit in names.items()]
