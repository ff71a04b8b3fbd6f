"""Which process gets a new copy, and which disk.

Preferred copies are even by topic first, then over all topics, then by number: a topic that is created while all
processes are up has at most one partition more on one process than on another. Further copies go to replicas first,
then to other workers, each to the one with the fewest copies. A copy stays where it was placed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence

from zbroker.errors import PolicyViolationError


def choose_owners(
    count: int,
    processes: Sequence[int],
    of_topic: Iterable[int],
    loads: Mapping[int, int],
    copies_max: int,
) -> list[int]:
    """Owners for `count` new copies. `of_topic` names the owner of each partition that the topic has, `loads` how many
    copies a process has already. Raises PolicyViolationError when every process has `copies_max`."""
    topic_load, load = Counter(of_topic), Counter(loads)
    owners: list[int] = []
    open_ones = [number for number in processes if load[number] < copies_max]
    for _ in range(count):
        if not open_ones:
            text = f"every one of {len(processes)} worker processes has its {copies_max} partitions"
            raise PolicyViolationError(text, hint="[limits] partitions_per_process_max; [workers] count")
        owner = min(open_ones, key=lambda number: (topic_load[number], load[number], number))
        topic_load[owner] += 1
        load[owner] += 1
        owners.append(owner)
        if load[owner] >= copies_max:
            open_ones.remove(owner)
    return owners


def choose_followers(
    count: int, preferred: int, replicas: Sequence[int], workers: Sequence[int], loads: Counter[int], copies_max: int
) -> list[int]:
    """Owners for `count` further copies of one partition, all different and none `preferred`; noted in `loads`.

    Raises PolicyViolationError when too few processes have room.
    """
    owners: list[int] = []
    for group in (replicas, workers):
        free = [number for number in group if number != preferred and loads[number] < copies_max]
        owners += sorted(free, key=lambda number: (loads[number], number))[: count - len(owners)]
    if len(owners) < count:
        text = f"{count} further copies of a partition, and {len(owners)} other processes have room"
        raise PolicyViolationError(text, hint="[limits] partitions_per_process_max; zbroker cluster describe")
    loads.update(owners)
    return owners


def choose_disks(count: int, disks: Sequence[str], loads: Mapping[str, int]) -> list[str]:
    """Disks for `count` new copies: each the one with the fewest, the first of those that have as few."""
    load = {disk: loads.get(disk, 0) for disk in disks}
    chosen = []
    for _ in range(count):
        disk = min(disks, key=load.__getitem__)
        load[disk] += 1
        chosen.append(disk)
    return chosen


def lowest_free(count: int, taken: Container[int]) -> list[int]:
    """The `count` lowest indexes, from 0, that are not taken."""
    found: list[int] = []
    index = 0
    while len(found) < count:
        if index not in taken:
            found.append(index)
        index += 1
    return found
