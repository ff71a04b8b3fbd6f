"""Whether to watch a word for a moment before sleeping: the rule, and the watching, for clients and workers alike.

A sleep and a wake-up cost both sides: the ringer writes into a pipe, which takes 70 us where a hypervisor has to wake a
core, and the sleeper comes back 50 to 150 us later. Watching costs nothing but the core it burns. So a waiter watches

  - while most waits of late ended within the time of a spin, with one try in `PROBE_EVERY` to notice when they do;
  - not while somebody else wants the core: a step of the watch that took longer than `PREEMPTED_NS` says that another
    process ran here meanwhile. Then it rests, twice as long each time that happens again, up to `REST_MAX_NS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

NS_PER_US: Final = 1_000
PROBE_EVERY: Final = 64
SCORE_MAX: Final = 8
PREEMPTED_NS: Final = 60_000
REST_MIN_NS: Final = 2_000_000
REST_MAX_NS: Final = 128_000_000


class SpinWatch:
    """See the module. One thread uses it. `spin_us` 0, or a single core: it never watches."""

    __slots__ = ("_clock_ns", "_idle_since_ns", "_rest_ns", "_rest_until_ns", "_score", "_slept_count", "_spin_ns")

    def __init__(self, spin_us: int, core_count: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._spin_ns = spin_us * NS_PER_US if core_count > 1 else 0
        self._clock_ns = clock_ns
        self._score = SCORE_MAX
        self._slept_count = 0
        self._idle_since_ns = 0
        self._rest_ns = REST_MIN_NS
        self._rest_until_ns = 0

    def note_work(self) -> None:
        """What was waited for has come: judge how long it took."""
        if self._idle_since_ns:
            is_short = self._clock_ns() - self._idle_since_ns <= self._spin_ns
            self._score = min(SCORE_MAX, self._score + 2) if is_short else max(0, self._score - 1)
            self._idle_since_ns = 0

    def watch(self, is_ready: Callable[[], bool]) -> bool:
        """Watch for at most the spin time, if that may pay; nothing was ready just before. Returns whether it is."""
        if not self._spin_ns:
            return False
        clock_ns = self._clock_ns
        now_ns = self._idle_since_ns = clock_ns()
        if now_ns < self._rest_until_ns:
            return False
        self._slept_count += 1
        if not self._score and self._slept_count % PROBE_EVERY:
            return False
        end_ns = now_ns + self._spin_ns
        while not is_ready():
            before_ns, now_ns = now_ns, clock_ns()
            if now_ns - before_ns > PREEMPTED_NS:
                self._rest_until_ns = now_ns + self._rest_ns
                self._rest_ns = min(REST_MAX_NS, 2 * self._rest_ns)
                return is_ready()
            if now_ns >= end_ns:
                return False
        self._rest_ns = max(REST_MIN_NS, self._rest_ns - self._rest_ns // 8)
        return True
