"""How many records a consumer may give out: so many a second, and what it did not use for a tenth of one at once.

A token bucket. Nothing is refused: who finds none left waits `wait_ms`. More may be taken than there is, as a batch is
one piece; what comes later waits for it.
"""

from __future__ import annotations

from typing import Final

from zbroker.clock import NS_PER_MS, Clock, HostClock

BURST_S: Final = 0.1


class RateLimit:
    """See the module. One thread at a time."""

    def __init__(self, per_s: float, clock: Clock | None = None) -> None:
        self._clock = clock or HostClock()
        self._per_ns = per_s / (1_000 * NS_PER_MS)
        self._most = max(1.0, per_s * BURST_S)
        self._left = self._most
        self._seen_ns = self._clock.now_ns()

    def allowance(self) -> int:
        """How many records may be given out now."""
        now_ns = self._clock.now_ns()
        self._left = min(self._most, self._left + (now_ns - self._seen_ns) * self._per_ns)
        self._seen_ns = now_ns
        return max(0, int(self._left))

    def take(self, count: int) -> None:
        """They are given out."""
        self._left -= count

    def wait_ms(self) -> float:
        """How long until the next one may be; 0: now."""
        return max(0.0, (1 - self._left) / self._per_ns / NS_PER_MS)
