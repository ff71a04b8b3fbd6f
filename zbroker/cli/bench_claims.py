"""`zbroker bench claims`: what is said of Kafka's design, measured."""

from __future__ import annotations

from pathlib import Path

import click

from zbroker.cli.bench_options import bench_options, place_for_data, show
from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.cli.output import progress
from zbroker.load.claims.all_claims import CLAIMS, found_of, measure_claims
from zbroker.load.claims.claim import Scope


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(CLAIMS)), help="This claim alone; repeatable.")
@click.option(
    "--disk", default="/var/tmp", show_default=True, type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    callback=place_for_data, help="A directory on the disk that is measured.",
)  # fmt: skip
@click.option("--small", is_flag=True, help="Few records: checks that every part runs, says nothing about speed.")
@bench_options("rounds", "seed", "output")
@shared_options
@pass_options
def claims(
    options: Options,
    only: tuple[str, ...],
    disk: Path,
    small: bool,
    rounds: int,
    seed: int,
    output: Path | None,
) -> None:
    """What is said of Kafka's design, claim by claim: what was measured, and whether it holds here.

    Each claim has a rule that is written down before it is measured. Brokers of its own are started; one of them has
    its processes killed under load. About three minutes.
    """
    if options.where():
        raise click.UsageError("claims starts brokers of its own, and kills their processes: it takes no other")
    names = list(only) or list(CLAIMS)
    scope = Scope.small(disk, seed) if small else Scope.whole(disk, seed, rounds)
    with progress(options, "Measuring claims", len(names), unit="claims") as advance:

        def begin(name: str) -> None:
            options.note(f"measuring {name}", level=1)
            advance(int(name != names[0]))

        found = found_of(measure_claims(scope, names, begin))
    about = "each claim on brokers of its own"
    show(options, found, about=about, seed=seed, directories={"memory": Path("/dev/shm"), "disk": disk}, output=output)
