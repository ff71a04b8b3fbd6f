"""`zbroker bench`: measure this broker on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
import msgspec

from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.cli.output import print_json
from zbroker.load import workloads
from zbroker.load.workloads import Result

_TOPIC = "bench"


@click.group()
def bench() -> None:
    """Measure this broker on this machine.

    Each command starts a broker of its own in a temporary directory, unless -b names one that is up.
    """


@contextmanager
def _broker(options: Options, workers: int) -> Iterator[str]:
    given = options.where()
    if given:
        yield given
        return
    from zbroker.testing import Broker

    with Broker(workers=workers) as broker:
        yield broker.bootstrap_servers


def _options(command: Callable[..., None]) -> Callable[..., None]:
    decorators = (
        click.option("--topic", default=_TOPIC, show_default=True, help="Topic; made with --partitions if absent."),
        click.option("--records", "-n", default=1_000_000, show_default=True, type=click.IntRange(1), help="How many."),
        click.option(
            "--size", default=100, show_default=True, type=click.IntRange(1, 1 << 20), help="Bytes of a value."
        ),
        click.option(
            "--partitions", default=1, show_default=True, type=click.IntRange(1), help="Partitions of the topic."
        ),
        click.option(
            "--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Workers of its broker."
        ),
        shared_options,
        pass_options,
    )
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


@bench.command()
@_options
@click.option("--mode", default="send", show_default=True, type=click.Choice(["send", "sender", "send_many"]))
@click.option("--acks", default="all", show_default=True, type=click.Choice(["0", "1", "all", "fsync"]))
@click.option("--compress", default="none", show_default=True, type=click.Choice(["none", "lz4", "gzip", "zstd"]))
def produce(options: Options, /, mode: str, acks: str, compress: str, **given: object) -> None:
    """Records and megabytes a second that are acknowledged."""
    spec = _Spec(**given, options=options)  # type: ignore[arg-type]
    settings: dict[str, object] = {"acks": acks, "compression_type": compress}
    with _broker(options, spec.workers) as servers, _bar("Producing", spec) as advance:
        _make_topic(servers, spec)
        _show(spec, [_produce(servers, spec, mode, settings, advance)])


@bench.command()
@_options
@click.option("--mode", default="records", show_default=True, type=click.Choice(["records", "batches"]))
def consume(options: Options, /, mode: str, **given: object) -> None:
    """Records and megabytes a second that one consumer reads."""
    spec = _Spec(**given, options=options)  # type: ignore[arg-type]
    with _broker(options, spec.workers) as servers:
        _make_topic(servers, spec)
        with _bar("Filling", spec) as advance:
            _produce(servers, spec, "send_many", {}, advance)
        with _bar("Consuming", spec) as advance:
            how: workloads.ConsumeMode = "batches" if mode == "batches" else "records"
            result = workloads.consume(servers, spec.topic, records=spec.records, mode=how, advance=advance)
        _show(spec, [result])


@bench.command()
@_options
@click.option("--transport", default="auto", show_default=True, type=click.Choice(["auto", "shm", "zmq"]))
def latency(options: Options, /, transport: str, **given: object) -> None:
    """Acknowledgement of one record, and one record to a sleeping consumer."""
    spec = _Spec(**given, options=options)  # type: ignore[arg-type]
    rounds = min(spec.records, 5_000)
    settings: dict[str, object] = {"transport": transport}
    with _broker(options, spec.workers) as servers:
        _make_topic(servers, spec)
        acknowledged = workloads.acknowledge_latency(
            servers, spec.topic, rounds=rounds, size_bytes=spec.size, settings=settings
        )
        delivered = workloads.end_to_end_latency(servers, spec.topic, rounds=min(rounds, 2_000), settings=settings)
        _show(spec, [acknowledged, delivered])


class _Spec(msgspec.Struct):
    topic: str
    records: int
    size: int
    partitions: int
    workers: int
    options: Options


def _produce(
    servers: str, spec: _Spec, mode: str, settings: dict[str, object], advance: Callable[[int], None]
) -> Result:
    how: workloads.ProduceMode = "send_many" if mode == "send_many" else "sender" if mode == "sender" else "send"
    return workloads.produce(
        servers, spec.topic, records=spec.records, size_bytes=spec.size, mode=how, settings=settings, advance=advance
    )


def _make_topic(servers: str, spec: _Spec) -> None:
    from zbroker.client.admin import AdminClient, NewTopic
    from zbroker.errors import TopicAlreadyExistsError

    with AdminClient(bootstrap_servers=servers) as admin:
        try:
            admin.create_topics([NewTopic(spec.topic, num_partitions=spec.partitions)])
        except TopicAlreadyExistsError:
            click.echo(f"topic {spec.topic} exists: using it as it is", err=True)


@contextmanager
def _bar(what: str, spec: _Spec) -> Iterator[Callable[[int], None]]:
    if not spec.options.shows_progress:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=spec.records)
        yield lambda count: progress.advance(task, count)


def _show(spec: _Spec, results: list[Result]) -> None:
    if spec.options.is_json:
        print_json([result.as_row() for result in results])
        return
    for result in results:
        line = f"{result.workload}: {result.records:,} records, {result.records_per_s:,.1f} records/sec"
        line += f" ({result.mb_per_s:,.2f} MB/sec)"
        if result.latency.count:
            shown = (
                (f"{percent:g}th", result.latency.percentile_ns(percent) / 1e6) for percent in (50.0, 95.0, 99.0, 99.9)
            )
            line += "".join(f", {value:.3f} ms {name}" for name, value in shown)
        click.echo(line + ".")
