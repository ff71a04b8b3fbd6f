"""How contenders are compared: in turns, after a warm-up, several rounds, and all of what came out is kept.

The contenders of one run take turns (A B C A B C), so that a slow minute of a shared machine meets all of them. What
they did in the warm-up does not count: files, allocators and clocks of a CPU that slept are cold then.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence

from zbroker.load.results import Spread

Contender = Callable[[], dict[str, float]]
Rounds = list[dict[str, float]]
Watch = Callable[[str, int, int, Mapping[str, float]], None]
"""Told after each turn: the contender's name, the round from 1 (0: warm-up), how many there are, its figures."""


def run_rounds(
    contenders: Mapping[str, Contender],
    rounds: int,
    *,
    warm_up_rounds: int = 0,
    watch: Watch = lambda name, number, of, figures: None,
) -> dict[str, Rounds]:
    """Run every contender once a round; give each one's figures, round by round, without the warm-up's."""
    found: dict[str, Rounds] = {name: [] for name in contenders}
    for number in range(1 - warm_up_rounds, rounds + 1):
        for name, run in contenders.items():
            gc.collect()
            figures = run()
            if number > 0:
                found[name].append(figures)
            watch(name, max(0, number), rounds, figures)
    return found


def best(rounds: Rounds, key: str) -> float:
    """The largest figure of a rate."""
    return max(figures[key] for figures in rounds)


def least(rounds: Rounds, key: str) -> float:
    """The smallest figure of a CPU time."""
    return min(figures[key] for figures in rounds)


def median(rounds: Rounds, key: str) -> float:
    """The median figure of a latency."""
    return statistics.median(figures[key] for figures in rounds)


def spread(rounds: Rounds, key: str, scale: float = 1.0) -> Spread:
    """All rounds in five numbers, times `scale`. Best is the largest: for a rate."""
    return spread_of([figures[key] * scale for figures in rounds])


def spread_of(values: Sequence[float]) -> Spread:
    """Values in five numbers; there is at least one."""
    return Spread(max(values), statistics.median(values), min(values), max(values), len(values))
