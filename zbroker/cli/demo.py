"""`zbroker demo`: real lines through a broker of its own, with live progress, a check and a report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click
import msgspec

from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.cli.output import print_json
from zbroker.load.demo import DemoError, Report, run_demo
from zbroker.load.demo_process import Progress
from zbroker.load.inputs import standard_library_files

_CHECK_FAILED: Final = 4


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--workers", default=2, show_default=True, type=click.IntRange(1, 64), help="Worker processes of the broker."
)
@shared_options
@pass_options
def demo(options: Options, files: tuple[Path, ...], workers: int) -> int:
    """Send FILES (default: Python's own standard library) through a broker in a temporary directory.

    A line is a record, its file's name the key; in between go records that carry the time, for the latencies, and
    samples of the host's processes. Two producers, two consumers; then a check that every line arrived once and in the
    order of its file, and a report of rates, latencies, CPU time and memory. Everything is removed at the end.
    """
    from zbroker.testing import Broker

    chosen = list(files) or standard_library_files()
    with Broker(workers=workers) as broker:
        pids = {name: broker.pid_of(name) for name in broker.process_names()}
        try:
            if not options.shows_progress:
                report = run_demo(broker.bootstrap_servers, chosen, pids)
            else:
                report = _with_progress(broker.bootstrap_servers, chosen, pids)
        except DemoError as error:
            raise click.ClickException(str(error)) from error
    if options.is_json:
        print_json({**msgspec.to_builtins(report), "is_right": report.is_right})
    else:
        click.echo(_text(report, len(chosen)))
    return 0 if report.is_right else _CHECK_FAILED


def _with_progress(bootstrap_servers: str, files: list[Path], pids: Mapping[str, int]) -> Report:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    total = sum(path.read_bytes().count(b"\n") for path in files)
    columns = (
        TextColumn("{task.description:>9}"),
        BarColumn(),
        TextColumn("{task.completed:>11,} records"),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        sent, received = bars.add_task("produced", total=total), bars.add_task("consumed", total=total)

        def watch(progress: Mapping[str, Progress]) -> None:
            for role, bar in (("producer", sent), ("consumer", received)):
                bars.update(bar, completed=sum(p.records for name, p in progress.items() if name.startswith(role)))

        return run_demo(bootstrap_servers, files, pids, watch)


def _text(report: Report, files: int) -> str:
    mib = report.bytes / (1 << 20)
    lines = [
        f"{report.records:,} records of {report.keys:,} keys from {files:,} files, {mib:,.1f} MiB",
        _rate("produced", report.records, mib, report.produce_seconds),
        _rate("consumed", report.records, mib, report.consume_seconds),
        "latency   "
        + "   ".join(f"{name} {value / 1000:,.2f} ms" for name, value in report.latency_us.items())
        + f"   (send to receive, under full load, {report.latency_samples:,} samples)",
        "",
        f"{'PROCESS':<12} {'PID':>8} {'CPU s':>8} {'RSS MiB':>8}",
    ]
    for cost in report.processes:
        resident_mib = cost.resident_bytes / (1 << 20)
        lines.append(f"{cost.name:<12} {cost.pid:>8} {cost.cpu_seconds:>8.2f} {resident_mib:>8.1f}")
    lines.append("")
    if report.is_right:
        lines.append("checked: every record arrived once, and in the order of its key")
    else:
        lines.append(f"WRONG: {len(report.differences)} keys differ")
        lines.extend(f"  {line}" for line in report.differences[:20])
    return "\n".join(lines)


def _rate(what: str, records: int, mib: float, seconds: float) -> str:
    seconds = max(seconds, 1e-9)
    return f"{what}  {records / seconds:>12,.0f} records/s  {mib / seconds:>8,.1f} MiB/s  in {seconds:.2f} s"
