"""Whether a worker watches its lanes for a moment before it sleeps.

Beside what `zbroker.shm.spin` says, only while more cores are there than lanes that have talked lately: then nobody who
could ask is kept from running.
"""

from __future__ import annotations

import time
from typing import Final, Protocol

from zbroker.shm.spin import SpinWatch

RECENT_NS: Final = 20_000_000


class Watched(Protocol):
    """What is watched."""

    def has_input(self) -> bool:
        """Whether there is a request."""

    def busy_count(self, since_ns: int) -> int:
        """How many clients have asked for something since then."""


class Spin:
    """Decides and watches. `note_work` is called when requests were taken."""

    def __init__(self, spin_us: int, core_count: int, lanes: Watched) -> None:
        self._core_count = core_count
        self._lanes = lanes
        self._spin = SpinWatch(spin_us, core_count)
        self.note_work = self._spin.note_work

    def until_input(self, *, is_announced: bool = False) -> bool:
        """Watch for at most the spin time, if that may pay, or a moment for what was announced by a ring. Returns
        whether a request came."""
        if is_announced:
            return self._spin.watch_for_announced(self._lanes.has_input)
        if not 0 < self._lanes.busy_count(time.monotonic_ns() - RECENT_NS) < self._core_count:
            return False
        return self._spin.watch(self._lanes.has_input)
