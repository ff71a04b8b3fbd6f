"""The ends of the processes that the router talks to, and when everything that they had said before was delivered.

Guarantees: an end is reported at once, and once more for each connection of the dead, when zmq holds no message of it
any more; after `GONE_MAX_MS` it is taken to be so. A connection that a living process has lost is reported like that,
too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zbroker.clock import NS_PER_MS, Clock
from zbroker.transport.loop import Loop
from zbroker.workers.liveness import Liveness

GONE_LOOK_MS: Final = 1
GONE_MAX_MS: Final = 1_000


class Departures:
    """See the module."""

    def __init__(
        self,
        loop: Loop,
        clock: Clock,
        *,
        is_routable: Callable[[bytes], bool],
        on_end: Callable[[int], list[bytes]],
        on_silence: Callable[[bytes], None],
    ) -> None:
        """`is_routable(connection)`: whether zmq still knows a peer of this routing id. `on_end(incarnation)` gives the
        connections of a process that has ended, `on_silence(connection)` is called when nothing comes from there."""
        self._loop = loop
        self._clock = clock
        self._is_routable = is_routable
        self._on_end = on_end
        self._on_silence = on_silence
        self._liveness = Liveness(loop, self._ended)
        self.watch = self._liveness.watch
        """See Liveness."""
        self.close = self._liveness.close
        """See Liveness."""

    def __len__(self) -> int:
        """How many processes are watched, each by a descriptor."""
        return len(self._liveness)

    def lost(self, connection: bytes) -> None:
        """This connection has ended, whatever became of its process."""
        self._look(connection, self._clock.now_ns() + GONE_MAX_MS * NS_PER_MS)

    def _ended(self, _: int, incarnation: int) -> None:
        for connection in self._on_end(incarnation):
            self.lost(connection)

    def _look(self, connection: bytes, until_ns: int) -> None:
        """Wait until zmq has read all that the dead had written: it knows nobody at its routing id from then on.

        What it has read waits in its pipe, at most HIGH_WATER_MARK messages. A turn of the loop takes as many from all
        pipes by turns: as many turns as there are processes bring all of them.
        """
        if self._is_routable(connection) and self._clock.now_ns() < until_ns:
            self._loop.call_after(GONE_LOOK_MS, lambda: self._look(connection, until_ns))
        else:
            self._wait(connection, turns=len(self._liveness) + 2)

    def _wait(self, connection: bytes, turns: int) -> None:
        if turns:
            self._loop.call_after(0, lambda: self._wait(connection, turns - 1))
        else:
            self._on_silence(connection)
