"""`zbroker bench latency`, `e2e` and `failover`: how long something takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from zbroker.cli.bench_options import bench_options, measured_target, show
from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.cli.output import progress
from zbroker.load import bench_runs
from zbroker.load.bench_runs import Found, Spec
from zbroker.load.bench_target import own_broker
from zbroker.load.failover import ABOUT, failover_rows


def _delay_options(command: Callable[..., None]) -> Callable[..., None]:
    decorators = (
        bench_options("topic"),
        click.option("--records", "-n", default=5_000, show_default=True, type=click.IntRange(1), help="How many."),
        bench_options("size", "partitions", "workers", "acks", "compression"),
        click.option(
            "--rate", default=1_000.0, show_default=True, type=click.FloatRange(0.1), help="Records a second."
        ),
        click.option(
            "--transport",
            default="auto",
            show_default=True,
            type=click.Choice(["auto", "shm", "zmq"]),
            help="Lane or socket.",
        ),
        bench_options("pin", "rounds", "seed", "dir", "output"),
        shared_options,
        pass_options,
    )
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


@click.command()
@_delay_options
def latency(options: Options, /, **given: object) -> None:
    """How long a record waits for its acknowledgement.

    A record is due at a fixed moment, --rate times a second, and waits from then on, whether the producer came to send
    it or not. One producer waits for each acknowledgement; another goes on and is called back.
    """
    _delays(options, is_read=False, **given)  # type: ignore[arg-type]  # click gives what the options declare


@click.command()
@_delay_options
def e2e(options: Options, /, **given: object) -> None:
    """How long a record takes to a consumer that slept.

    Producer and consumer are two processes; a record carries the moment at which it was due. In between, its worker's
    board says when it was appended.
    """
    _delays(options, is_read=True, **given)  # type: ignore[arg-type]  # click gives what the options declare


def _delays(
    options: Options,
    *,
    is_read: bool,
    topic: str,
    records: int,
    size: int,
    partitions: int,
    workers: int,
    acks: str,
    compression: str,
    rate: float,
    transport: str,
    pin: bool,
    rounds: int,
    seed: int,
    directory: Path | None,
    output: Path | None,
) -> None:
    spec = Spec(
        topic=topic, records=records, size_bytes=size, partitions=partitions, acks=acks, compression=compression,
        transport=transport, rate=rate, pin=pin, rounds=rounds, seed=seed,
    )  # fmt: skip
    processes = 2  # of each round: a producer and a consumer, or two producers in turn
    with (
        measured_target(options, workers, pin=pin, directory=directory) as (target, where),
        progress(options, "Sending", records * processes * (rounds + (rounds > 1))) as advance,
    ):
        found = (bench_runs.end_to_end if is_read else bench_runs.latency)(spec, target, advance)
    about = f"{size}-byte records, {rate:g} a second, {partitions} partitions, {workers} workers"
    show(options, found, about=about, seed=seed, directories={"data": where}, output=output)


@click.command()
@click.option("--kills", default=20, show_default=True, type=click.IntRange(1), help="SIGKILLs of the leader.")
@click.option("--pauses", default=2, show_default=True, type=click.IntRange(0), help="SIGSTOPs of the leader.")
@bench_options("output")
@shared_options
@pass_options
def failover(options: Options, kills: int, pauses: int, output: Path | None) -> None:
    """How long nothing is acknowledged when a leader is killed.

    A broker of its own with two workers and two replicas; every record is read back at the end.
    """
    if options.where():
        raise click.UsageError("failover kills processes: it takes no broker but its own")
    config = {"supervisor": {"crash_loop_window_ms": 1}}  # it is killed many times, and started again each time
    with (
        own_broker(workers=2, replicas=2, config=config) as target,
        progress(options, "Killing and pausing", kills + pauses, unit="faults") as advance,
    ):
        assert target.broker is not None
        rows = failover_rows(target.broker, kills, pauses, advance)
        show(options, Found(rows), about=ABOUT, directories={"data": target.broker.directory}, output=output)
