"""`zbroker bench disk`: the disk's own profile, beside which the broker's figures stand."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from zbroker.cli.bench_options import bench_options, show
from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.cli.output import progress
from zbroker.load.bench_runs import Found
from zbroker.load.disk import LARGE_BYTES, disk_figures, profile


@click.command()
@click.argument("directory", default="/var/tmp", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--file-mib", default=256, show_default=True, type=click.IntRange(1), help="Size of the file that is written."
)
@click.option("--seconds", default=1.0, show_default=True, type=click.FloatRange(0.01), help="For each way of writing.")
@bench_options("rounds", "seed", "output")
@shared_options
@pass_options
def disk(
    options: Options, directory: Path, file_mib: int, seconds: float, rounds: int, seed: int, output: Path | None
) -> None:
    """What the disk below DIRECTORY can do, without a broker.

    Writes one after another and anywhere, in pieces of 4 KiB and 1 MiB, around the page cache (O_DIRECT) where the file
    system can do that; an append through it with a sync at the end; a sync; and a read from anywhere, which is what
    a seek was. The file is removed afterwards.
    """
    # Asked before: a file system may fill itself to the last block before it says that a file is too large for it.
    if shutil.disk_usage(directory).free < file_mib * LARGE_BYTES:
        raise click.ClickException(f"{directory} has no {file_mib} MiB left: take less by --file-mib")
    found = []
    with progress(options, "Measuring the disk", rounds, unit="rounds") as advance:
        for number in range(rounds):
            try:
                found.append(profile(directory, file_mib * LARGE_BYTES, seed + number, seconds))
            except OSError as error:
                raise click.ClickException(f"{directory}: {error.strerror}") from error
            advance(1)
    way = "O_DIRECT" if found[0]["is direct"] else "O_DSYNC, as this file system knows no O_DIRECT"
    about = f"a file of {file_mib} MiB, written with {way}"
    show(options, Found(disk_figures(found)), about=about, seed=seed, directories={"disk": directory}, output=output)
