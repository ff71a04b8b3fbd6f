"""`zbroker bench`: measure this broker on this machine.

Each benchmark has a module of its own below, imported when it is used. What they run lies in `zbroker.load`.
"""

from __future__ import annotations

from typing import Final

import click

from zbroker.cli.lazy_group import LazyGroup

BENCHMARKS: Final = {
    "produce": ("zbroker.cli.bench_rates:produce", "Records and megabytes a second that are acknowledged."),
    "consume": ("zbroker.cli.bench_rates:consume", "Records and megabytes a second that are read."),
    "latency": ("zbroker.cli.bench_delays:latency", "How long a record waits for its acknowledgement."),
    "e2e": ("zbroker.cli.bench_delays:e2e", "How long a record takes to a consumer that slept."),
    "scale": ("zbroker.cli.bench_scale:scale", "Throughput across cores; what partitions, readers and bytes cost."),
    "claims": ("zbroker.cli.bench_claims:claims", "What is said of Kafka's design, claim by claim, measured."),
    "disk": ("zbroker.cli.bench_disk:disk", "What the disk itself can do: writes, syncs and reads from anywhere."),
    "report": ("zbroker.cli.bench_report:report", "One page with tables and plots from results files."),
    "failover": ("zbroker.cli.bench_delays:failover", "How long nothing is acknowledged when a leader is killed."),
    "rebalance": ("zbroker.cli.bench_groups:rebalance", "How long a group takes to join, and what restarts disturb."),
    "compare": ("zbroker.cli.bench_compare:compare", "zbroker beside Kafka, Redis, NATS and RabbitMQ."),
}


@click.group(cls=LazyGroup, commands_by_name=BENCHMARKS)
def bench() -> None:
    """Measure this broker on this machine.

    Each command starts a broker of its own in a temporary directory, unless -b names one that is up.
    """
