"""`zbroker status`: every process of a broker, from the boards that it keeps in shared memory.

It asks nobody: it reads the same with the router stopped, the coordinator dead, or the whole broker down, and then says
so. Rates and CPU are measured over a moment (`--interval`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final, NamedTuple

import click
import psutil

from zbroker import ids
from zbroker.cli.failures import NO_BROKER, OK
from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.cli.output import Cell, duration_text, print_json, print_table, size_text
from zbroker.cli.quantities import parse_interval_s
from zbroker.clock import NS_PER_MS
from zbroker.config.paths import paths_for
from zbroker.config.schema import BrokerSection, ServerConfig
from zbroker.errors import BrokerError, BrokerNotAvailableError
from zbroker.shm.board_reader import BoardReader, HeaderReader, find_boards
from zbroker.shm.coordinator_board import CoordinatorBoardReader
from zbroker.shm.layout import CellState, Counter
from zbroker.transport.endpoints import parse

_STALLED_NS: Final = 3_000 * NS_PER_MS
_COORDINATOR: Final = ids.process_name(ids.COORDINATOR)
_COLUMNS: Final = (
    "PROCESS", "PID", "STATE", "CPU%", "RSS", "LEADERS", "IN/s", "IN-MB/s", "WAKES/s", "RECORDS-IN", "UPTIME",
)  # fmt: skip


class Sample(NamedTuple):
    """A process at one moment."""

    name: str
    pid: int
    state: str
    is_alive: bool
    at_ns: int
    cpu_s: float
    resident_bytes: int
    started_s: float
    counters: dict[Counter, int]
    leaders: int
    records: int
    size_bytes: int


@click.command()
@click.option("--interval", default="300ms", show_default=True, metavar="TIME", help="Over which rates are measured.")
@shared_options
@pass_options
def status(options: Options, interval: str) -> int:
    """Show every process of a broker: state, CPU, memory, partitions led, rates.

    Works with the broker down: then it shows what the processes wrote last, and exits with 3.
    """
    interval_s = parse_interval_s(interval, "--interval")
    endpoint = parse(options.where())
    if endpoint.run_dir is None:
        return _status_from_afar(options)
    boards_dir = paths_for(ServerConfig(broker=BrokerSection(run_dir=str(endpoint.run_dir)))).boards_dir
    first = {(sample.name, sample.pid): sample for sample in _samples(boards_dir)}
    if not first:
        raise BrokerNotAvailableError(
            f"no broker at {endpoint.run_dir}{_refused(endpoint.run_dir)}", hint="zbroker serve starts one; -b names it"
        )
    time.sleep(interval_s)
    second = _samples(boards_dir)
    _show(options, endpoint.run_dir, boards_dir, first, second)
    return OK if any(sample.is_alive for sample in second) else NO_BROKER


def _refused(run_dir: Path) -> str:
    """Why it cannot be said whether there is a broker, if so: another user's."""
    try:
        run_dir.stat()
    except PermissionError as error:
        return f": {error.strerror}"
    except OSError:
        pass
    return ""


def _samples(boards_dir: Path) -> list[Sample]:
    """The newest incarnation of every process that has a board."""
    newest: dict[str, Path] = {}
    for name, _, path in find_boards(boards_dir):
        newest.setdefault(name, path)
    found = []
    for name in sorted(newest, key=ids.process_number):
        try:
            reader: HeaderReader
            if name == _COORDINATOR:
                reader = CoordinatorBoardReader.open(newest[name])
            else:
                reader = BoardReader.open(newest[name])
        except (FileNotFoundError, BrokerError):
            continue
        try:
            found.append(_sample(name, reader))
        finally:
            reader.close()
    return found


def _sample(name: str, reader: HeaderReader) -> Sample:
    at_ns = time.monotonic_ns()
    is_alive = reader.is_alive
    cpu_s, resident_bytes, started_s = 0.0, 0, 0.0
    state = reader.state.name.lower()
    if is_alive:
        try:
            process = psutil.Process(reader.pid)
            times = process.cpu_times()
            cpu_s, resident_bytes, started_s = (
                times.user + times.system,
                process.memory_info().rss,
                process.create_time(),
            )
        except psutil.Error:
            is_alive = False
    if not is_alive:
        state = "dead"
    elif reader.io_since_ns and at_ns - reader.io_since_ns > _STALLED_NS:
        state = f"in I/O for {duration_text((at_ns - reader.io_since_ns) / 1e9)}"
    elif not reader.is_asleep and at_ns - reader.beat_ns > _STALLED_NS:
        state = f"stalled for {duration_text((at_ns - reader.beat_ns) / 1e9)}"
    led = []
    if isinstance(reader, BoardReader):
        led = [view for view in reader.partitions() if view.state is CellState.LEADING]
    records = sum(view.high_watermark - view.log_start for view in led)
    size_bytes = sum(view.size_bytes for view in led)
    return Sample(
        name, reader.pid, state, is_alive, at_ns, cpu_s, resident_bytes, started_s, reader.counters(), len(led),
        records, size_bytes,
    )  # fmt: skip


def _show(
    options: Options, run_dir: Path, boards_dir: Path, first: dict[tuple[str, int], Sample], second: list[Sample]
) -> None:
    rows: list[list[Cell]] = []
    documents: list[dict[str, object]] = []
    for now in second:
        before = first.get((now.name, now.pid), now)
        spent_s = max((now.at_ns - before.at_ns) / 1e9, 1e-9)

        def rate(counter: Counter, now: Sample = now, before: Sample = before, spent_s: float = spent_s) -> float:
            return (now.counters[counter] - before.counters[counter]) / spent_s

        cpu_percent = 100 * (now.cpu_s - before.cpu_s) / spent_s
        uptime_s = time.time() - now.started_s if now.is_alive else 0.0
        rows.append(
            [
                now.name, now.pid, now.state,
                round(cpu_percent, 1) if now.is_alive else None, now.resident_bytes or None, now.leaders,
                round(rate(Counter.RECORDS_IN)), round(rate(Counter.BYTES_IN) / 1e6, 1), round(rate(Counter.WAKES)),
                now.counters[Counter.RECORDS_IN], duration_text(uptime_s) if now.is_alive else None,
            ]
        )  # fmt: skip
        documents.append(
            {
                "name": now.name, "pid": now.pid, "state": now.state, "is_alive": now.is_alive,
                "cpu_percent": cpu_percent, "resident_bytes": now.resident_bytes, "uptime_s": uptime_s,
                "leaders": now.leaders, "records": now.records, "size_bytes": now.size_bytes,
                "records_in_per_s": rate(Counter.RECORDS_IN), "bytes_in_per_s": rate(Counter.BYTES_IN),
                "counters": {counter.name.lower(): count for counter, count in now.counters.items()},
            }
        )  # fmt: skip
    alive = [sample for sample in second if sample.is_alive]
    if options.is_json:
        found = {"run_dir": str(run_dir), "boards_dir": str(boards_dir), "is_up": bool(alive), "processes": documents}
        print_json(found)
        return
    title = (
        f"zbroker at {run_dir}  {len(alive)} of {len(second)} processes up"
        f"  {sum(sample.leaders for sample in alive):,} partitions"
        f"  {sum(sample.records for sample in alive):,} records"
        f"  {size_text(sum(sample.size_bytes for sample in alive))}"
    )
    print_table(options, _COLUMNS, rows, title=title)
    troubles = _troubles(second)
    if troubles:
        click.echo(f"{troubles}: zbroker doctor names them", err=True)


def _troubles(samples: list[Sample]) -> str:
    """What is wrong with partitions, as the coordinator counts them; empty: nothing, or nobody counts."""
    counters = next((one.counters for one in samples if one.is_alive and one.name == _COORDINATOR), {})
    texts = {Counter.PARTITIONS_OFFLINE: "without a leader", Counter.PARTITIONS_BEHIND: "with copies out of sync"}
    found = [f"{count} {text}" for counter, text in texts.items() if (count := counters.get(counter, 0))]
    return f"partitions: {', '.join(found)}" if found else ""


def _status_from_afar(options: Options) -> int:
    """Over tcp there are no boards to read: the coordinator is asked what it knows."""
    with options.admin() as admin:
        cluster = admin.describe_cluster()
    rows: list[list[Cell]] = [
        [process.name, ids.pid_of(process.incarnation), process.state] for process in cluster.processes
    ]
    print_table(options, ("PROCESS", "PID", "STATE"), rows)
    return OK
