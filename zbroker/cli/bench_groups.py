"""`zbroker bench rebalance`: what a group costs when its members come and go."""

from __future__ import annotations

from pathlib import Path

import click

from zbroker.cli.bench_options import bench_options, show
from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.cli.output import progress
from zbroker.load.bench_runs import Found
from zbroker.load.bench_target import own_broker
from zbroker.load.rebalance_run import CONFIG, GroupBench
from zbroker.shm.owned_directory import OwnedDirectory


@click.command()
@click.option("--kills", default=20, show_default=True, type=click.IntRange(1), help="SIGKILLs of members.")
@click.option("--joins", default=50, show_default=True, type=click.IntRange(4), help="New groups that join.")
@click.option("--members", default=3, show_default=True, type=click.IntRange(2, 64), help="Members of a group.")
@click.option("--partitions", default=6, show_default=True, type=click.IntRange(2), help="Partitions of its topic.")
@click.option(
    "--coordinator-kills", default=0, show_default=True, type=click.IntRange(0), help="SIGKILLs of the coordinator."
)
@bench_options("output")
@shared_options
@pass_options
def rebalance(
    options: Options,
    kills: int,
    joins: int,
    members: int,
    partitions: int,
    coordinator_kills: int,
    output: Path | None,
) -> None:
    """How long a group takes to join and to replace a killed member, and what rolling restarts disturb.

    A broker of its own; members are processes. A takeover lasts from the SIGKILL to the first record that another has
    of the last of the dead one's partitions.
    """
    if options.where():
        raise click.UsageError("rebalance kills processes: it takes no broker but its own")
    with (
        own_broker(workers=1, replicas=0, config=CONFIG) as target,
        OwnedDirectory.make("zb-groups-") as directory,
        progress(options, "Killing members", kills, unit="kills") as advance,
    ):
        assert target.broker is not None
        bench = GroupBench(target.broker, directory, members=members, partitions=partitions, advance=advance)
        rows = [*bench.joining(joins), *bench.takeovers(kills), *bench.restarts(members)]
        if coordinator_kills:
            rows += bench.coordinator_kills(coordinator_kills)
        about = f"{members} members that are processes, {partitions} partitions"
        show(options, Found(rows), about=about, directories={"data": target.broker.directory}, output=output)
