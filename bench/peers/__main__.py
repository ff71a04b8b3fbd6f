"""zbroker beside real brokers: `python -m bench.peers [--peers LIST] [--small] [--failover] [--disk DIR]`.

Writes bench/results/peers.json: the rows, the matrix, every round, the versions and settings of all systems, and the
systems that are missing with the command that installs them. A part that is measured alone (`--only`) takes the place
of that part's figures in it; all systems of a part are measured in one run.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

import click

from bench.harness import RESULTS, machine, print_table, save
from bench.peers.failover import measure_failover
from bench.peers.measures import Measured, Plan, measure_latency, measure_start, measure_throughput
from bench.peers.registry import SYSTEMS, system
from bench.peers.system import MissingError, System
from bench.peers.table import matrix_of, rows_of

PEERS = tuple(name for name in SYSTEMS if name != "zbroker")
PARTS = ("start", "throughput", "latency")
WHOLE = Plan(1_000_000, 5, 2_000, 1_000, 0.004, 5.0, Path("/dev/shm"))
SMALL = Plan(20_000, 1, 40, 40, 0.004, 0.2, Path("/dev/shm"))
KILLS, SMALL_KILLS = 5, 1
NAME = "peers"

Found = dict[str, dict[str, Any]]
"""Part -> machine and figures, as in the results."""


def find(names: list[str]) -> tuple[list[type[System]], dict[str, dict[str, str]]]:
    """The systems that can be run, and why the others cannot."""
    classes, missing = [], {}
    for name in names:
        try:
            classes.append(system(name))
        except MissingError as error:
            missing[name] = {"what": error.what, "command": error.command}
            print(f"missing: {name}: {error}", file=sys.stderr)
    return classes, missing


def measure(classes: list[type[System]], parts: list[str], plan: Plan, kills: int) -> Found:
    """Measure these parts, each with all systems."""
    found: Found = {}
    for part in parts:
        where = machine()
        if part == "start":
            figures = measure_start(classes, plan)
        elif part == "throughput":
            figures = measure_throughput(classes, plan)
        elif part == "latency":
            figures = measure_latency(classes, plan)
        else:
            figures = measure_failover([kind.name for kind in classes], plan.directory, kills)
        found[part] = {"machine": where, "figures": [one._asdict() for one in figures]}
    return found


def result(found: Found, classes: list[type[System]], missing: dict[str, dict[str, str]]) -> dict[str, Any]:
    """All that the results say, but for the command and the machine."""
    measured = [Measured(**one) for part in (*PARTS, "failover") for one in found.get(part, {}).get("figures", [])]
    systems = {kind.name: {"version": kind.check(), "settings": kind.settings} for kind in classes}
    return {
        "rows": rows_of(measured),
        "matrix": matrix_of(measured, list(systems)),
        "systems": systems,
        "missing": missing,
        "parts": found,
    }


def show(told: dict[str, Any]) -> None:
    """Print the systems, the rows and the matrix."""
    for name, one in told["systems"].items():
        print(f"{name}: {one['version']}")
    for name, why in told["missing"].items():
        print(f"missing: {name}: {why['what']}; install it with: {why['command']}")
    print()
    print_table(told["rows"])
    print()
    print_table(told["matrix"])


def _store(told: dict[str, Any], plan: Plan) -> Path:
    where = "tmpfs" if str(plan.directory).startswith("/dev/shm") else "a disk"
    about = f"every broker on 127.0.0.1 with its data on {where}, acknowledged in the page cache without fsync"
    path = save(NAME, "python -m bench.peers --failover", told["rows"], about=about)
    path.write_text(json.dumps({**json.loads(path.read_text()), **told}, indent=1) + "\n")
    return path


def _stored_parts() -> Found:
    try:
        parts: Found = json.loads((RESULTS / f"{NAME}.json").read_text())["parts"]
    except FileNotFoundError:
        return {}
    return parts


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
@click.option("--json", "is_json", is_flag=True, help="Print the results as JSON.")
def main(
    peers: str, rounds: int, small: bool, failover: bool, only: tuple[str, ...], disk: Path | None, is_json: bool
) -> None:
    """Measure zbroker beside other brokers that this command starts itself, each with its best Python client.

    The data of all are on tmpfs, or all on a disk with --disk. Whole runs with all peers are stored in
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
    found = measure(classes, parts, plan, SMALL_KILLS if small else KILLS)
    is_stored = not small and disk is None and len(names) == len(SYSTEMS)
    told = result({**_stored_parts(), **found} if is_stored else found, classes, missing)
    if is_json:
        print(json.dumps({"machine": machine(), **told}, indent=1))
    else:
        show(told)
    if is_stored:
        print(_store(told, plan), file=sys.stderr)


if __name__ == "__main__":
    main()
