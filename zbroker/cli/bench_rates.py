"""`zbroker bench produce` and `consume`: as fast as it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from zbroker.cli.bench_options import bench_options, measured_target, show
from zbroker.cli.examples import examples
from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.cli.output import progress
from zbroker.load import bench_runs
from zbroker.load.bench_runs import Spec


@click.command(epilog=examples("bench produce"))
@bench_options("topic", "records", "size", "batch", "partitions", "workers", "producers", "acks", "compression", "pin")
@click.option("--mode", default="send", show_default=True, type=click.Choice(["send", "sender", "send_many"]))
@click.option("--rate", default=0.0, type=click.FloatRange(0), help="Records a second, for latencies.  [default: all]")
@bench_options("rounds", "seed", "dir", "output")
@shared_options
@pass_options
def produce(
    options: Options,
    topic: str,
    records: int,
    size: int,
    batch: int,
    partitions: int,
    workers: int,
    producers: int,
    acks: str,
    compression: str,
    pin: bool,
    mode: Literal["send", "sender", "send_many"],
    rate: float,
    rounds: int,
    seed: int,
    directory: Path | None,
    output: Path | None,
) -> None:
    """Records and megabytes a second that are acknowledged.

    Each producer is a process of its own. Values are random bytes, made before the clock starts. With --rate a record
    is due at a fixed moment, and what is measured is how long each waits from then to its acknowledgement.
    """
    spec = Spec(
        topic=topic, records=records, size_bytes=size, batch_bytes=batch, partitions=partitions, producers=producers,
        mode=mode, acks=acks, compression=compression, rate=rate, pin=pin, rounds=rounds, seed=seed,
    )  # fmt: skip
    with (
        measured_target(options, workers, pin=pin, directory=directory) as (target, where),
        progress(options, "Producing", records * (rounds + (rounds > 1))) as advance,
    ):
        found = bench_runs.produce(spec, target, advance)
    about = f"{size}-byte records, {partitions} partitions, {workers} workers, {producers} producers"
    show(options, found, about=about, seed=seed, directories={"data": where}, output=output)


@click.command()
@bench_options("topic", "records", "size", "partitions", "workers", "consumers", "pin")
@click.option("--mode", default="records", show_default=True, type=click.Choice(["records", "batches"]))
@click.option("--transport", default="auto", show_default=True, type=click.Choice(["auto", "shm", "zmq"]))
@bench_options("rounds", "seed", "dir", "output")
@shared_options
@pass_options
def consume(
    options: Options,
    topic: str,
    records: int,
    size: int,
    partitions: int,
    workers: int,
    consumers: int,
    pin: bool,
    mode: Literal["records", "batches"],
    transport: str,
    rounds: int,
    seed: int,
    directory: Path | None,
    output: Path | None,
) -> None:
    """Records and megabytes a second that are read.

    The topic is filled first; each consumer is a process of its own and reads its share of the partitions.
    """
    spec = Spec(
        topic=topic, records=records, size_bytes=size, partitions=partitions, consumers=consumers, mode=mode,
        transport=transport, pin=pin, rounds=rounds, seed=seed,
    )  # fmt: skip
    with (
        measured_target(options, workers, pin=pin, directory=directory) as (target, where),
        progress(options, "Filling and consuming", records * (1 + rounds + (rounds > 1))) as advance,
    ):
        found = bench_runs.consume(spec, target, advance)
    about = f"{size}-byte records, {partitions} partitions, {workers} workers, {consumers} consumers"
    show(options, found, about=about, seed=seed, directories={"data": where}, output=output)
