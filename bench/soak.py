"""The sum of long runs: `python -m bench.soak [STATE...]`, files that `zbroker soak` keeps. Writes results/soak.json.

The states given are kept in results/soak, one for each profile and first seed, and all that lie there are added up: a
long run is made in pieces, with seeds of their own, over as many days as it takes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import click
import msgspec

from bench.harness import RESULTS, Row, print_table, row, save
from zbroker.load.chaos import percentile
from zbroker.load.soak import PROFILES, State

KEPT = RESULTS / "soak"
WANTED = {"kills": 1_000, "pauses": 500, "simulation": 100_000, "bugs": 11, "power cuts with acks=fsync": 300}
COUNTED = {"simulation": "simulated histories (seeds)"}


def rows_of(states: Iterable[State]) -> list[Row]:
    """The figures of some states."""
    by_profile: dict[str, list[State]] = defaultdict(list)
    for state in states:
        by_profile[state.profile].append(state)
    rows: list[Row] = []
    for profile, found in by_profile.items():
        rows += _of_faults(profile, found) if PROFILES[profile].plan else _of_tests(profile, found)
    return rows


def _target(what: str) -> str:
    return f">= {WANTED[what]}" if what in WANTED else ""


def _of_faults(profile: str, states: list[State]) -> list[Row]:
    faults = sum(sum(one.faults.values()) for one in states)
    waits_ms = sorted(wait for one in states for wait in one.waits_ms)
    return [
        row(f"{profile}: faults in random processes", faults, "", target=_target(profile)),
        row(f"{profile}: records acknowledged", sum(one.acknowledged for one in states), ""),
        row(f"{profile}: lost", sum(one.lost for one in states), "", target="<= 0"),
        row(f"{profile}: duplicated", sum(one.duplicated for one in states), "", target="<= 0"),
        row(f"{profile}: reordered", sum(one.reordered for one in states), "", target="<= 0"),
        row(f"{profile}: rounds with any finding", sum(len(one.failures) for one in states), "", target="<= 0"),
        row(f"{profile}: longest wait for an acknowledgement after a fault, p50", percentile(waits_ms, 50), "ms"),
        row(f"{profile}: the same, p99", percentile(waits_ms, 99), "ms"),
    ]


def _of_tests(profile: str, states: list[State]) -> list[Row]:
    a_round = PROFILES[profile].seeds_a_round or 1
    rounds = sum(one.rounds_done for one in states)
    if profile == "bugs":
        counted = row("bugs: put in on purpose and found", states[-1].passed, "", target=_target(profile))
    else:
        number = rounds * (a_round if profile in COUNTED else 1)
        counted = row(f"{profile}: {COUNTED.get(profile, 'rounds')}", number, "", target=_target(profile))
    counts: Counter[str] = Counter()
    for one in states:
        counts.update(one.counts)
    return [
        counted,
        *[row(f"{profile}: {what}", number, "", target=_target(what)) for what, number in counts.items()],
        row(f"{profile}: rounds that broke a promise", sum(len(one.failures) for one in states), "", target="<= 0"),
    ]


def keep(state: State) -> Path:
    """Put a state among those that are added up, in place of an earlier one of the same run."""
    first_seed = state.next_seed - state.rounds_done * (PROFILES[state.profile].seeds_a_round or 1)
    path = KEPT / f"{state.profile}-{first_seed}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=1) + b"\n")
    return path


@click.command()
@click.argument("states", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--about", default="", help="What should be said of these runs, such as the commit that was run.")
def main(states: tuple[Path, ...], about: str) -> None:
    """Keep the states given, add up all that are kept, print the table, and write bench/results/soak.json."""
    for path in states:
        keep(msgspec.json.decode(path.read_bytes(), type=State))
    rows = rows_of(msgspec.json.decode(path.read_bytes(), type=State) for path in sorted(KEPT.glob("*.json")))
    print_table(rows)
    what = "long runs of zbroker soak, added up" + (f"; {about}" if about else "")
    print(save("soak", "python -m bench.soak", rows, about=what))


if __name__ == "__main__":
    main()
