"""The table of figures: `python -m bench [--rounds N] [--small]`. Writes bench/results/main_path.json.

Each figure stands beside the bare loop that it is compared with, both measured in this one run, in turns.
"""

from __future__ import annotations

from pathlib import Path

import click

from bench.consume import consume_rows
from bench.footprint import footprint_rows
from bench.harness import Row, command_of, print_table, save
from bench.latency import latency_rows
from bench.produce import DISK_RECORDS, disk_rows, produce_rows
from bench.readers import READERS, reader_rows
from bench.world import World
from zbroker.config.paths import TMPFS_ROOT
from zbroker.shm.owned_directory import OwnedDirectory
from zbroker.testing import Broker

RECORDS = 1_200_000
SMALL_RECORDS = 24_000
FOOTPRINT_S = 10
PARTITIONS = 1_000
WAKES = 500
TRIES = 3_000
PARTS = ("produce", "consume", "latency", "readers", "disk", "footprint")


def measure(parts: tuple[str, ...], rounds: int, small: bool, disk: Path, disk_records: int) -> list[Row]:
    """The rows of these parts, in the order of the table."""
    rows: list[Row] = []
    few = min(rounds, 3)
    with OwnedDirectory.make("zbb-", TMPFS_ROOT) as scratch:
        if set(parts) - {"disk", "footprint"}:
            with Broker(workers=1) as broker:
                world = World(broker, scratch, SMALL_RECORDS if small else RECORDS)
                if "produce" in parts:
                    rows += produce_rows(world, rounds)
                if "consume" in parts:
                    rows += consume_rows(world, rounds)
                if "latency" in parts:
                    rows += latency_rows(world, few, 60 if small else TRIES)
                if "readers" in parts:
                    rows += reader_rows(world, few, 4 if small else READERS, 20 if small else WAKES)
        if "disk" in parts:
            rows += disk_rows(disk, SMALL_RECORDS if small else disk_records, few)
        if "footprint" in parts:
            rows += footprint_rows(scratch, few, 20 if small else PARTITIONS, 0.5 if small else FOOTPRINT_S)
    return rows


@click.command()
@click.option("--rounds", default=5, show_default=True, help="How often each contender runs.")
@click.option("--small", is_flag=True, help="Few records: checks that every part runs, says nothing about speed.")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="These parts alone; the results are not saved.")
@click.option("--disk", default="/var/tmp", show_default=True, type=Path, help="A directory on the disk to measure.")
@click.option("--disk-records", default=DISK_RECORDS, show_default=True, help="Records that are written to the disk.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write the results there.")
def main(rounds: int, small: bool, only: tuple[str, ...], disk: Path, disk_records: int, output: Path | None) -> None:
    """Measure the main path beside bare loops, print the table, and write bench/results/main_path.json (or -o)."""
    rows = measure(only or PARTS, rounds, small, disk, disk_records)
    print_table(rows)
    if output is not None or not (small or only):
        about = "100-byte records, one worker"
        print(save("main_path", command_of("bench"), rows, about=about, path=output))


if __name__ == "__main__":
    main()
