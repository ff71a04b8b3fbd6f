"""`zbroker bench scale`: throughput across cores, and how cost grows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource

from zbroker.cli.bench_options import WORKERS_MAX, Numbers, bench_options, show
from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.cli.output import progress
from zbroker.load.bench_runs import Found
from zbroker.load.scale import ScalePlan, throughput
from zbroker.load.scale_costs import CostPlan, log_costs, partition_costs, reader_costs

MEGABYTE: Final = 10**6


@click.command()
@click.option("--workers", default="1,2,4,8", show_default=True, type=Numbers(WORKERS_MAX), help="Workers, by turns.")
@click.option("--partitions", default="1,4,16,64", show_default=True, type=Numbers(), help="Partitions, by turns.")
@click.option("--many", type=Numbers(), metavar="NUMBERS", help="What so many partitions cost: 1,10,100,1000.")
@click.option("--readers", type=Numbers(), metavar="NUMBERS", help="So many readers of one log: 1,2,5,10,25,50.")
@click.option("--logs", type=Numbers(), metavar="MEGABYTES", help="Logs of so many megabytes: 16,64,256,1024.")
@click.option(
    "--records", "-n", default=1_200_000, show_default=True, type=click.IntRange(1), help="Of each run, all together."
)
@bench_options("size", "acks", "compression", "pin", "rounds", "seed", "dir", "output")
@shared_options
@pass_options
def scale(
    options: Options,
    workers: list[int],
    partitions: list[int],
    many: list[int] | None,
    readers: list[int] | None,
    logs: list[int] | None,
    records: int,
    size: int,
    acks: str,
    compression: str,
    pin: bool,
    rounds: int,
    seed: int,
    directory: Path | None,
    output: Path | None,
) -> None:
    """Throughput across cores: workers times partitions, and what each process costs for each record.

    Each worker has a producer process and a consumer process of its own that reads what is being written. The plots
    (--output, then zbroker bench report) show the limits of the bare hardware and a model of where it bends.

    --many, --readers and --logs measure how other costs grow, in place of workers and partitions unless these are
    given, too.
    """
    if options.where():
        raise click.UsageError("scale starts a broker for each number of workers: it takes no other")
    place = directory or Path("/dev/shm")
    if logs and max(logs) * MEGABYTE > shutil.disk_usage(place).free:
        raise click.UsageError(f"--logs {max(logs)}: {place} has not so many megabytes left")
    plan = ScalePlan(
        workers=workers, partitions=partitions, records=records, size_bytes=size, acks=acks, compression=compression,
        pin=pin, rounds=rounds, seed=seed, directory=directory,
    )  # fmt: skip
    costs = CostPlan(records=records, size_bytes=size, rounds=rounds, seed=seed, directory=directory)
    is_whole = not (many or readers or logs) or _is_given("workers") or _is_given("partitions")
    turns = rounds + (rounds > 1)
    total = plan.runs * is_whole + turns * (len(many or ()) + len(readers or ()) + len(logs or ()))
    with progress(options, "Measuring", total, unit="runs") as advance:
        parts = [throughput(plan, advance)] if is_whole else []
        if many:
            parts.append(partition_costs(costs, many, advance))
        if readers:
            parts.append(reader_costs(costs, readers, advance))
        if logs:
            parts.append(log_costs(costs, logs, advance))
    found = Found(
        [row for part in parts for row in part.rows],
        [table for part in parts for table in part.tables],
        [plot for part in parts for plot in part.plots],
    )
    about = f"{size}-byte records, {records:,} a run, acks={acks}" + (", pinned" if pin else "")
    show(options, found, about=about, seed=seed, directories={"data": place}, output=output)


def _is_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE
