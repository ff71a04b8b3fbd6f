"""Which process gets a new copy, and which directory.

Even by topic first, then over all topics, then by number: partition counts of two processes never differ by more than
one for a topic that was created at once while they were up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


def choose_owners(count: int, processes: Sequence[int], of_topic: Iterable[int], of_all: Iterable[int]) -> list[int]:
    """Owners for `count` new partitions. `of_topic` and `of_all` name the owner of each partition that exists."""
    assert processes, "somebody must own a copy"
    topic_load, load = Counter(of_topic), Counter(of_all)
    owners = []
    for _ in range(count):
        owner = min(processes, key=lambda number: (topic_load[number], load[number], number))
        topic_load[owner] += 1
        load[owner] += 1
        owners.append(owner)
    return owners


def choose_directories(count: int, directories: Sequence[str], of_all: Iterable[str]) -> list[str]:
    """Data directories for `count` new copies: each the one with the fewest. `of_all` names each copy's directory."""
    load = Counter(of_all)
    chosen = []
    for _ in range(count):
        directory = min(directories, key=lambda name: (load[name], directories.index(name)))
        load[directory] += 1
        chosen.append(directory)
    return chosen


def lowest_free(count: int, taken: Iterable[int]) -> list[int]:
    """The `count` lowest indexes, from 0, that are not taken."""
    used = set(taken)
    found: list[int] = []
    index = 0
    while len(found) < count:
        if index not in used:
            found.append(index)
        index += 1
    return found
