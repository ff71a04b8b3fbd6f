"""Time, as a parameter. Only this file reads a clock.

`now_ns` is CLOCK_MONOTONIC: one clock for all processes of the host, so a stamp of one process can be subtracted from
another's. `wall_ms` goes into record timestamps and retention, and nowhere else: it may jump.
"""

from __future__ import annotations

import time
from typing import Protocol

NS_PER_MS = 1_000_000


class Clock(Protocol):
    """What a clock gives."""

    def now_ns(self) -> int:
        """Nanoseconds on the host's monotonic clock."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC."""


class HostClock:
    """The host's clocks."""

    now_ns = staticmethod(time.monotonic_ns)
    """Nanoseconds on CLOCK_MONOTONIC. Read several times for each request: no call in Python around it."""

    def wall_ms(self) -> int:
        """Milliseconds since the epoch, from CLOCK_REALTIME."""
        return time.time_ns() // NS_PER_MS


class ManualClock:
    """A clock that moves only when told, for tests and simulation."""

    def __init__(self, now_ns: int = 0, wall_ms: int = 1_700_000_000_000) -> None:
        self._now_ns = now_ns
        self._wall_ms = wall_ms

    def now_ns(self) -> int:
        """The time set last."""
        return self._now_ns

    def wall_ms(self) -> int:
        """The wall time set last."""
        return self._wall_ms

    def advance(self, ms: float) -> None:
        """Move both clocks forward."""
        assert ms >= 0
        self._now_ns += int(ms * NS_PER_MS)
        self._wall_ms += int(ms)
