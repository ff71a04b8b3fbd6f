"""What copies give: `python -m bench.failover [--kills N] [--small]`. Writes results/failover.json."""

from __future__ import annotations

import click

from bench.harness import command_of, print_table, save
from zbroker.load.failover import ABOUT, failover_rows
from zbroker.testing import Broker

CONFIG = {"supervisor": {"crash_loop_window_ms": 1}}  # it is killed many times, and started again each time


@click.command()
@click.option("--kills", default=200, show_default=True, help="SIGKILLs of the leader.")
@click.option("--pauses", default=20, show_default=True, help="SIGSTOPs of the leader.")
@click.option("--small", is_flag=True, help="Few of everything: checks that it runs, says nothing about speed.")
def main(kills: int, pauses: int, small: bool) -> None:
    """Measure failover, print the table, and write bench/results/failover.json."""
    with Broker(workers=2, replicas=2, config=CONFIG) as broker:
        rows = failover_rows(broker, 2, 1) if small else failover_rows(broker, kills, pauses)
    print_table(rows)
    if not small:
        print(save("failover", command_of("bench.failover"), rows, about=ABOUT))


if __name__ == "__main__":
    main()
