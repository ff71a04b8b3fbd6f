"""What groups cost: `python -m bench.groups [--kills N] [--small]`. Writes results/groups.json.

Members are processes. A takeover is measured from just before the SIGKILL to the first record that another has of the
last of the dead one's partitions. Restarts and kills of the coordinator run under load, and every record and commit is
checked.
"""

from __future__ import annotations

import click

from bench.group_scale import change_ms
from bench.group_sticky import against_brute_force
from bench.harness import Row, command_of, print_table, row, save
from zbroker.load.rebalance_run import CONFIG, GroupBench
from zbroker.shm.owned_directory import OwnedDirectory
from zbroker.testing import Broker

PARTITIONS = 6
MEMBERS = 3
RESTARTED = 6
SEED = 1
ABOUT = (
    "members are processes; 6 partitions and 3 members for kills, 12 and 6 for restarts, one partition of 100-byte "
    "records for commits; the coordinator is killed 0 to 30 ms after a member has begun to join or leave"
)


def group_rows(
    *, kills: int, rounds: int, members: int, records: int, coordinator_kills: int, groups: int
) -> list[Row]:
    """Measure everything."""
    with (
        Broker(workers=1, config=CONFIG) as broker,
        OwnedDirectory.make("zb-groups-") as directory,
    ):
        bench = GroupBench(broker, directory, members=MEMBERS, partitions=PARTITIONS)
        rows = [
            *bench.joining(rounds),
            *bench.takeovers(kills),
            *bench.restarts(members),
            *bench.commits(records, 5 if records > 100_000 else 1),
            *bench.coordinator_kills(coordinator_kills),
        ]
    median_ms, longest_ms = change_ms(groups, 10, 100, min(groups, 200))
    name = f"{groups} groups of 10 members and 100 partitions: one leaves, computed"
    cases = 20 * groups
    unlike, extra = against_brute_force(cases, SEED)
    return [
        *rows,
        row(f"{name}, p50", median_ms, "ms", target="< 5"),
        row("the same, longest", longest_ms, "ms"),
        row(f"sticky, {cases} small cases: loads differ by, at most", unlike, "", target="<= 1"),
        row("the same: moves above the fewest of all best assignments", extra, "", target="<= 0"),
    ]


@click.command()
@click.option("--kills", default=200, show_default=True, help="SIGKILLs of a member.")
@click.option("--coordinator-kills", default=100, show_default=True, help="SIGKILLs of the coordinator.")
@click.option("--small", is_flag=True, help="Few of everything: checks that it runs, says nothing about speed.")
def main(kills: int, coordinator_kills: int, small: bool) -> None:
    """Measure groups, print the table, and write bench/results/groups.json."""
    if small:
        print_table(group_rows(kills=2, rounds=4, members=2, records=10_000, coordinator_kills=2, groups=5))
        return
    rows = group_rows(
        kills=kills,
        rounds=200,
        members=RESTARTED,
        records=2_000_000,
        coordinator_kills=coordinator_kills,
        groups=1_000,
    )
    print_table(rows)
    print(save("groups", command_of("bench.groups"), rows, about=ABOUT, seed=SEED))


if __name__ == "__main__":
    main()
