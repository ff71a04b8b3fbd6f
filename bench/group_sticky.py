"""The sticky assignor against brute force: every assignment of small random cases is tried."""

from __future__ import annotations

import random
from itertools import product

from zbroker.core.sticky import Key, sticky

MEMBERS_MAX = 4
PARTITIONS_MAX = 6


def against_brute_force(cases: int, seed: int) -> tuple[int, int]:
    """(largest difference of loads where all subscribe alike, most moves above the fewest of all best assignments)."""
    chance = random.Random(seed)
    unlike = extra = 0
    for number in range(cases):
        names = [f"m{index}" for index in range(chance.randint(1, MEMBERS_MAX))]
        counts = {topic_id: chance.randint(1, PARTITIONS_MAX // 2) for topic_id in (1, 2)}
        is_alike = number % 2 == 0
        topics = {
            name: frozenset(counts if is_alike else chance.sample([1, 2], chance.randint(0, 2))) for name in names
        }
        keys = [(topic_id, index) for topic_id, count in counts.items() for index in range(count)]
        owners = {key: chance.choice([*names, None]) for key in keys}
        owned = {name: [key for key, owner in owners.items() if owner == name] for name in names}
        found = sticky(topics, owned, counts)
        squares, moves = _cost(found, owned)
        least_squares, least_moves = _best(topics, owned, keys)
        assert squares == least_squares, f"case {number} of seed {seed} is not balanced"
        loads = [len(of_one) for of_one in found.values()]
        unlike = max(unlike, max(loads) - min(loads) if is_alike else 0)
        extra = max(extra, moves - least_moves)
    return unlike, extra


def _cost(target: dict[str, list[Key]], owned: dict[str, list[Key]]) -> tuple[int, int]:
    """(sum of squared loads, partitions that are another's than before)."""
    moves = sum(key not in owned[name] for name, keys in target.items() for key in keys)
    return sum(len(keys) ** 2 for keys in target.values()), moves


def _best(topics: dict[str, frozenset[int]], owned: dict[str, list[Key]], keys: list[Key]) -> tuple[int, int]:
    readers = {key: [name for name, of_one in topics.items() if key[0] in of_one] for key in keys}
    kept = [key for key in keys if readers[key]]
    best = (1 << 62, 0)
    for choice in product(*(readers[key] for key in kept)):
        target: dict[str, list[Key]] = {name: [] for name in topics}
        for key, name in zip(kept, choice, strict=True):
            target[name].append(key)
        best = min(best, _cost(target, owned))
    return best
