"""What `zbroker bench produce|consume|latency|e2e` measure: rounds of tasks, and the figures of them.

Every figure is of several rounds on fresh topics, after a warm-up; what each process used is the last round's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from zbroker.load.bench_crew import Advance, BenchError, Measured, run_tasks
from zbroker.load.bench_target import Target
from zbroker.load.bench_task import Content, Mode, Task
from zbroker.load.histogram import Histogram
from zbroker.load.results import Figure, Plot, Series, Table, figure
from zbroker.load.rounds import spread_of

MIB = 1 << 20
READ_TIMEOUT_S = 2.0
PERCENTS = (50.0, 95.0, 99.0, 99.9)


class Spec(msgspec.Struct, kw_only=True):
    """What shall be measured."""

    topic: str = "bench"
    records: int = 1_000_000
    size_bytes: int = 100
    batch_bytes: int = 65_536
    partitions: int = 1
    producers: int = 1
    consumers: int = 1
    mode: Mode = "send_many"
    acks: str = "all"
    compression: str = "none"
    content: Content = "random"
    transport: str = "auto"
    rate: float = 0.0
    pin: bool = False
    rounds: int = 3
    warm_up_rounds: int = 1
    seed: int = 1

    @property
    def producer_settings(self) -> dict[str, int | float | str | bool]:
        """As a Producer takes them."""
        return {
            "acks": self.acks,
            "compression_type": self.compression,
            "batch_size": self.batch_bytes,
            "transport": self.transport,
        }


class Found(msgspec.Struct):
    """What a benchmark came to."""

    rows: list[Figure]
    tables: list[Table] = []
    plots: list[Plot] = []


def produce(spec: Spec, target: Target, advance: Advance = lambda _: None) -> Found:
    """Records and bytes a second that are acknowledged; with a rate, the latency of an open loop instead."""
    if spec.rate:
        return latency(spec, target, advance)
    runs = _rounds(spec, lambda number: produce_once(spec, target, number, advance))
    rates = [run.rate("producer") for run in runs]
    rows = rate_rows(f"produce, {spec.mode}, acks={spec.acks}", rates, spec.size_bytes)
    if spec.mode == "send_many":
        rows += _latency_rows("acknowledge a list", [run.histogram("producer") for run in runs])
    return Found(rows, [cost_table(runs[-1], "producer")])


def consume(spec: Spec, target: Target, advance: Advance = lambda _: None) -> Found:
    """Records and bytes a second that are read from the start of the topic."""
    with filled_topic(spec, target, advance) as (topic, partitions):
        runs = _rounds(spec, lambda number: consume_once(spec, target, topic, partitions, advance))
    rates = [run.rate("consumer") for run in runs]
    return Found(rate_rows(f"consume as {spec.mode}", rates, spec.size_bytes), [cost_table(runs[-1], "consumer")])


@contextmanager
def filled_topic(spec: Spec, target: Target, advance: Advance = lambda _: None) -> Iterator[tuple[str, list[int]]]:
    """(name, partitions) of a topic that holds at least the records."""
    with target.topic(spec.topic, spec.partitions) as (topic, partitions):
        fill = _task("producer", spec, target, topic, partitions, "send_many")
        fill.call_records = max(1, min(10_000, spec.records // len(partitions)))
        run_tasks([fill], target.boards_dir, advance)
        yield topic, partitions


def consume_once(
    spec: Spec, target: Target, topic: str, partitions: Sequence[int], advance: Advance = lambda _: None
) -> Measured:
    """One round of consumers that share a filled topic's partitions."""
    readers = [
        _task("consumer", spec, target, topic, mine, spec.mode, number)
        for number, mine in enumerate(shares(partitions, spec.consumers))
    ]
    for reader in readers:
        reader.records, reader.stop_after_s = spec.records // len(readers), READ_TIMEOUT_S
    return run_tasks(readers, target.boards_dir, advance)


def latency(spec: Spec, target: Target, advance: Advance = lambda _: None) -> Found:
    """From when a record was due to its acknowledgement, at a steady rate: by a producer that waits for each, and by
    one that is called back."""
    ways: dict[str, Mode] = {"acknowledge, waited for": "wait", "acknowledge, called back": "send"}
    runs: dict[str, list[Measured]] = {name: [] for name in ways}

    def both(number: int) -> Measured:
        for name, mode in ways.items():
            run = _stamp_once(spec, target, number, advance, mode)
            if number >= 0:
                runs[name].append(run)
        return run

    _rounds(spec, both)
    found = Found([])
    for name in ways:
        one = _delays(name, spec, runs[name], {name: "latency", "producer was late": "lateness"}, "producer")
        one.tables[0].title += f": {name}"
        found.rows += one.rows
        found.tables += one.tables
        found.plots += one.plots
    return found


def end_to_end(spec: Spec, target: Target, advance: Advance = lambda _: None) -> Found:
    """From when a record was due to the hands of a consumer in another process, at a steady rate."""
    runs = _rounds(spec, lambda number: _stamp_once(spec, target, number, advance, "send", is_read=True))
    found = _delays("end to end", spec, runs, {"end to end": "latency", "due to appended": "appended"}, "consumer")
    acknowledged = _delays("acknowledge", spec, runs, {"acknowledge, called back": "latency"}, "producer")
    late = [run.histogram("producer", "lateness") for run in runs]
    found.rows += acknowledged.rows + _latency_rows("producer was late", late)
    return found


def _rounds(spec: Spec, run: Callable[[int], Measured]) -> list[Measured]:
    for number in range(spec.warm_up_rounds if spec.rounds > 1 else 0):
        run(-1 - number)
    return [run(number) for number in range(spec.rounds)]


def produce_once(spec: Spec, target: Target, number: int = 0, advance: Advance = lambda _: None) -> Measured:
    """One round of producers on a topic of its own."""
    with target.topic(spec.topic, spec.partitions) as (topic, partitions):
        tasks = [
            _task("producer", spec, target, topic, mine, spec.mode, index)
            for index, mine in enumerate(shares(partitions, spec.producers))
        ]
        for index, task in enumerate(tasks):
            task.records = max(1, spec.records // spec.producers)
            task.seed = spec.seed + number * 1_000 + index
        return run_tasks(tasks, target.boards_dir, advance)


def _stamp_once(
    spec: Spec, target: Target, number: int, advance: Advance, mode: Mode, *, is_read: bool = False
) -> Measured:
    with target.topic(spec.topic, spec.partitions) as (topic, partitions):
        writer = _task("stamp_producer", spec, target, topic, partitions, mode)
        writer.seed, writer.warm_up_records = spec.seed + number, 200
        tasks = [writer]
        if is_read:
            tasks.append(_task("stamp_consumer", spec, target, topic, partitions, "records"))
        run = run_tasks(tasks, target.boards_dir, advance)
    if is_read and run.records("consumer") != spec.records:
        raise BenchError(f"{run.records('consumer')} of {spec.records} records came to the consumer")
    return run


def _task(
    role: str, spec: Spec, target: Target, topic: str, partitions: Sequence[int], mode: Mode, number: int = 0
) -> Task:
    kind = role.rpartition("_")[2]
    return msgspec.convert(
        {
            "role": role,
            "name": f"{kind}-{number}",
            "bootstrap_servers": target.bootstrap_servers,
            "topic": topic,
            "partitions": list(partitions),
            "records": spec.records,
            "size_bytes": spec.size_bytes,
            "mode": mode,
            "settings": spec.producer_settings if kind == "producer" else {"transport": spec.transport},
            "rate": spec.rate,
            "seed": spec.seed,
            "content": spec.content,
            "core": number + (kind == "consumer") if spec.pin else None,
            "boards_dir": target.boards,
        },
        Task,
    )


def shares(partitions: Sequence[int], count: int) -> list[list[int]]:
    """The partitions of each of `count` processes: their own where there are enough, else shared."""
    if count <= len(partitions):
        return [list(partitions[number::count]) for number in range(count)]
    return [[partitions[number % len(partitions)]] for number in range(count)]


def rate_rows(what: str, rates: Sequence[float], size_bytes: int) -> list[Figure]:
    """Records and value megabytes (10^6) a second: the best round and the spread of all."""
    records = spread_of(rates)
    megabytes = spread_of([rate * size_bytes / 1e6 for rate in rates])
    return [
        figure(what, records.best, "records/s", spread=records),
        figure(what, megabytes.best, "MB/s", spread=megabytes),
    ]


def _latency_rows(what: str, histograms: Sequence[Histogram]) -> list[Figure]:
    rows = []
    for percent in PERCENTS:
        if not all(one.count for one in histograms):
            continue
        found = spread_of([one.percentile_ns(percent) / 1000 for one in histograms])
        rows.append(figure(f"{what}, p{percent:g}", found.median, "us", spread=found))
    return rows


def _delays(what: str, spec: Spec, runs: Sequence[Measured], kinds: dict[str, str], role: str) -> Found:
    rows, series = [], []
    for name, which in kinds.items():
        histograms = [run.histogram(role, which) for run in runs]
        rows += _latency_rows(name, histograms)
        merged = Histogram()
        for one in histograms:
            merged.merge(one)
        if merged.count:
            curve = [(percent, value / 1000) for percent, value in merged.curve() if 0 < percent < 100]
            series.append(Series(name=name, x=[_nines(p) for p, _ in curve], y=[value for _, value in curve]))
    plot = Plot(
        name=what.replace(",", "").replace(" ", "_"),
        title=f"{what}: {spec.rate:,.0f} records a second of {spec.size_bytes} bytes, open loop",
        x_label="1 of so many records waits longer",
        y_label="us",
        series=series,
        is_log_x=True,
        is_log_y=True,
    )
    return Found(rows, [cost_table(runs[-1], role)], [plot])


def _nines(percent: float) -> float:
    """99 % is one of 100."""
    return round(100 / (100 - percent), 3)


def cost_table(run: Measured, kind: str) -> Table:
    """What each process used for each record of the kind, and for each megabyte (10^6) of values."""
    records, seconds = max(1, run.records(kind)), run.seconds(kind)
    megabytes = max(1e-9, sum(one.bytes for one in run.of(kind)) / 1e6)
    rows: list[list[str | int | float | None]] = []
    for name, used in run.usages().items():
        rows.append(
            [
                name,
                round(used.cpu_ns / 1000 / records, 4),
                round(used.cpu_ns / 1e9 / seconds, 3),
                round(used.switches / megabytes, 3),
                round(used.calls / megabytes, 3),
                round(used.resident_bytes / MIB, 1),
            ]
        )
    columns = ["PROCESS", "CPU us/record", "CORES", "SWITCHES/MB", "CALLS/MB", "MEMORY MiB"]
    return Table(title="what each process used", columns=columns, rows=rows)
