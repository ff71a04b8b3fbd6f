"""How often the coordinator looks at what time brings: ten times a second, and five times while nothing happens.

Guarantees: from `busy` on, until `is_calm` says that all is quiet at the end of a tick, ticks come at every multiple of
`TICK_MS`. Calm ones come at multiples of `CALM_TICK_MS`, together with whatever else the process does at such times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zbroker.transport.loop import Loop, Timer

TICK_MS: Final = 100
CALM_TICK_MS: Final = 200


class Ticks:
    """See the module. They start with the first turn of the loop."""

    def __init__(self, loop: Loop, tick: Callable[[], None], is_calm: Callable[[], bool]) -> None:
        """`is_calm()` is asked after each tick: nothing that was begun waits for the next one."""
        self._loop = loop
        self._tick = tick
        self._is_calm = is_calm
        self._calm: Timer | None = None
        loop.call_at_multiple(TICK_MS, self._go_on)

    def _go_on(self) -> None:
        self._calm = None
        self._tick()
        if self._is_calm():
            self._calm = self._loop.call_at_multiple(CALM_TICK_MS, self._go_on)
        else:
            self._loop.call_at_multiple(TICK_MS, self._go_on)

    def busy(self) -> None:
        """Something has happened: what it begins is looked at as soon as ever."""
        if self._calm is not None:
            self._calm.cancel()
            self._calm = None
            self._loop.call_at_multiple(TICK_MS, self._go_on)
