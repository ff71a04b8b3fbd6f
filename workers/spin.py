"""Whether to watch for a moment before sleeping: the rule, and the watching.

A wait that ends within the spin saves two system calls and a switch of processes; one that does not has burnt a core
for nothing. So it spins only while most waits of late were short, with one try in `PROBE_EVERY` to notice when they
become so, and only while more cores are there than lanes that have talked lately: then nobody who could answer is
kept from running.
"""

from __future__ import annotations

import time
from typing import Final, Protocol

NS_PER_US: Final = 1_000
RECENT_NS: Final = 20_000_000
PROBE_EVERY: Final = 64
SCORE_MAX: Final = 8


class Watched(Protocol):
    """What is watched."""

    def has_input(self) -> bool:
        """Whether there is a request."""

    def busy_count(self, since_ns: int) -> int:
        """How many clients have asked for something since then."""


class Spin:
    """Decides and watches. `note_work` is called when requests were taken."""

    def __init__(self, spin_us: int, core_count: int, lanes: Watched) -> None:
        self._spin_ns = spin_us * NS_PER_US
        self._core_count = core_count
        self._lanes = lanes
        self._score = SCORE_MAX
        self._slept_count = 0
        self._idle_since_ns = 0

    def note_work(self) -> None:
        """Requests came: judge how long they were waited for."""
        if self._idle_since_ns:
            is_short = time.monotonic_ns() - self._idle_since_ns <= self._spin_ns
            self._score = min(SCORE_MAX, self._score + 2) if is_short else max(0, self._score - 1)
            self._idle_since_ns = 0

    def until_input(self) -> bool:
        """Watch for at most the spin time, if that may pay. Returns whether a request came."""
        if not self._spin_ns or self._core_count < 2:
            return False
        now_ns = time.monotonic_ns()
        self._idle_since_ns = now_ns
        self._slept_count += 1
        if not self._score and self._slept_count % PROBE_EVERY:
            return False
        busy_count = self._lanes.busy_count(now_ns - RECENT_NS)
        if not 0 < busy_count < self._core_count:
            return False
        end_ns = now_ns + self._spin_ns
        has_input = self._lanes.has_input
        while not has_input():
            if time.monotonic_ns() >= end_ns:
                return False
        return True
