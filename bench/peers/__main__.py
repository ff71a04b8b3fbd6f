"""zbroker beside real brokers: `python -m bench.peers [--peers LIST] [--small] [--failover] [--disk DIR] [-o FILE]`.

A run with all peers, of which Kafka and two more are there, writes bench/results/peers.json: the rows, all systems side
by side, every round, the versions and settings, and the systems that are missing with the command that installs them.
A part that is measured alone (`--only`) takes the place of that part in it; all systems of a part are measured in one
run.
"""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

import click
import msgspec

from bench.harness import RESULTS, command_of, print_table
from bench.peers.document import ROUNDS, Line, document, join, lines_of
from bench.peers.failover import measure_failover
from bench.peers.measures import Plan, measure_latency, measure_start, measure_throughput
from bench.peers.registry import SYSTEMS, system
from bench.peers.system import MissingError, System
from zbroker.load.results import Results, Table, load_results, save_results

PEERS = tuple(name for name in SYSTEMS if name != "zbroker")
PARTS = ("start", "throughput", "latency")
WHOLE = Plan(1_000_000, 5, 2_000, 1_000, 0.004, 5.0, Path("/dev/shm"))
SMALL = Plan(20_000, 1, 40, 40, 0.004, 0.2, Path("/dev/shm"))
KILLS, SMALL_KILLS = 3, 1
MISSING_MAX = 1  # of what is stored
STORED = RESULTS / "peers.json"
ABOUT = (
    "100-byte records, one partition; every broker on 127.0.0.1; acknowledged in the page cache of every copy, no"
    " fsync; data of all on {where}"
)


def find(names: list[str]) -> tuple[list[type[System]], dict[str, tuple[str, str]]]:
    """The systems that can be run, and why the others cannot."""
    classes, missing = [], {}
    for name in names:
        try:
            classes.append(system(name))
        except MissingError as error:
            missing[name] = (error.what, error.command)
    return classes, missing


def measure(classes: list[type[System]], parts: list[str], plan: Plan, kills: int) -> list[Line]:
    """Measure these parts, each with all systems."""
    lines = []
    for part in parts:
        if part == "start":
            figures = measure_start(classes, plan)
        elif part == "throughput":
            figures = measure_throughput(classes, plan)
        elif part == "latency":
            figures = measure_latency(classes, plan)
        else:
            figures = measure_failover([kind.name for kind in classes], plan.directory, kills)
        lines += lines_of(part, figures)
    return lines


def show(found: Results) -> None:
    """Print what is missing, the rows, and the tables but for the single rounds."""
    print_table(found.rows)
    for table in found.tables:
        if table.title != ROUNDS and table.rows:
            print()
            _print(table)


def _print(table: Table) -> None:
    print(table.title)
    text = [table.columns, *([str(cell) for cell in line] for line in table.rows)]
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    for line in text:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _names(given: str) -> list[str]:
    names = [name.strip() for name in given.split(",") if name.strip()]
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise click.BadParameter(f"no peer {unknown[0]!r}; there are {', '.join(PEERS)}", param_hint="--peers")
    return ["zbroker", *(name for name in PEERS if name in names)]


@click.command()
@click.option("--peers", default=",".join(PEERS), show_default=True, help="Which ones, with commas.")
@click.option("--rounds", default=WHOLE.rounds, show_default=True, type=click.IntRange(1), help="Rounds that count.")
@click.option("--small", is_flag=True, help="Few records: checks that every part runs, says nothing about speed.")
@click.option("--failover", is_flag=True, help="Kill leaders too: three Kafka nodes, some minutes.")
@click.option("--only", multiple=True, type=click.Choice((*PARTS, "failover")), help="These parts alone.")
@click.option("--disk", type=click.Path(file_okay=False, exists=True, path_type=Path), help="Data of all of them here.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write the results there.")
@click.option("--json", "is_json", is_flag=True, help="Print the results as JSON.")
def main(
    peers: str, rounds: int, small: bool, failover: bool, only: tuple[str, ...], disk: Path | None,
    output: Path | None, is_json: bool,
) -> None:  # fmt: skip
    """Measure zbroker beside other brokers that this command starts itself, each with its best Python client.

    The data of all are on tmpfs, or all on a disk with --disk. Runs with all peers on tmpfs are stored in
    bench/results/peers.json.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    logging.disable(logging.WARNING)  # clients tell of connections to brokers that were killed
    names = _names(peers)
    plan = SMALL if small else WHOLE._replace(rounds=rounds)
    if disk is not None:
        plan = plan._replace(directory=disk)
    parts = list(only) or [*PARTS, *(["failover"] if failover else [])]
    classes, missing = find(names)
    for name, (what, command) in missing.items():
        print(f"missing: {name}: {what}; install it with: {command}", file=sys.stderr)
    lines = measure(classes, parts, plan, SMALL_KILLS if small else KILLS)
    is_stored = not small and disk is None and len(names) == len(SYSTEMS)
    is_stored = is_stored and "kafka" not in missing and len(missing) <= MISSING_MAX
    command = command_of("bench.peers")
    if is_stored:
        lines, command = join(load_results(STORED) if STORED.exists() else None, lines, command)
        output = output or STORED
    about = ABOUT.format(where="tmpfs" if disk is None else "a disk")
    found = document(lines, classes, missing, command, about, plan.directory)
    if output is not None:
        save_results(found, output)
        print(output, file=sys.stderr)
    if is_json:
        print(msgspec.json.encode(found).decode())
    else:
        show(found)


if __name__ == "__main__":
    main()
