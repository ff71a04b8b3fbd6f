"""`zbroker bench compare`: beside real brokers. What it runs lies in bench/peers/ of a checkout, not in the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import click

import zbroker
from zbroker.cli.bench_options import bench_options
from zbroker.cli.options import Options, pass_options, shared_options

_PEERS: Final = ("kafka", "redis", "nats", "rabbitmq")
GET: Final = (
    "bench compare runs from a checkout, because the peers are no part of the package: clone zbroker's repository, and"
    " in it run `make bench-peers`, or `make install` and `.venv/bin/zbroker bench compare`"
)


def checkout() -> Path:
    """The checkout that this package is imported from. Raises ClickException, which says how to get one."""
    root = Path(zbroker.__file__).resolve().parents[1]
    if not (root / "bench" / "peers" / "__main__.py").is_file():
        raise click.ClickException(GET)
    return root


@click.command()
@click.option("--peers", default=",".join(_PEERS), show_default=True, help="Which ones, with commas.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Rounds that count.")
@click.option("--small", is_flag=True, help="Few records: checks that every part runs, says nothing about speed.")
@click.option("--failover", is_flag=True, help="Kill leaders too: three Kafka nodes, some minutes.")
@click.option("--disk", type=click.Path(file_okay=False, exists=True), help="Data of all on this disk, not on tmpfs.")
@bench_options("output")
@shared_options
@pass_options
def compare(
    options: Options,
    /,
    peers: str,
    rounds: int,
    small: bool,
    failover: bool,
    disk: str | None,
    output: Path | None,
) -> int:
    """Measure zbroker beside Kafka, Redis, NATS and RabbitMQ, which it starts itself.

    A peer that is not installed is reported with the command that installs it; `make bench-peers` installs what comes
    from PyPI and Maven. Runs from a checkout. With all peers on tmpfs, Kafka and two more of them there, the results
    also take the place of bench/results/peers.json.
    """
    root = checkout()
    names = [name for text in peers.split(",") if (name := text.strip())]
    unknown = [name for name in names if name not in _PEERS]
    if unknown or not names:
        what = f"no peer {unknown[0]!r}; there are" if unknown else "name one at least:"
        raise click.BadParameter(f"{what} {', '.join(_PEERS)}", param_hint="'--peers'")
    command = [sys.executable, "-m", "bench.peers", "--peers", peers, "--rounds", str(rounds)]
    command += [word for word, is_on in (("--small", small), ("--failover", failover)) if is_on]
    command += ["--json"] if options.is_json else []
    command += ["--disk", str(Path(disk).resolve())] if disk else []
    command += ["--output", str(output.resolve())] if output else []
    with subprocess.Popen(command, cwd=root) as running:
        try:
            return running.wait()
        finally:
            running.terminate()
