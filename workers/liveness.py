"""Which processes live, as the kernel says it: a pidfd for each, opened before anything is believed of it.

Guarantees: a death is reported once, after the process can write nothing more. A signal reaches exactly the incarnation
that was meant, never a stranger who was given its pid.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from zbroker import ids
from zbroker.transport.loop import Loop


class Liveness:
    """See the module."""

    def __init__(self, loop: Loop, on_death: Callable[[int, int], None]) -> None:
        """`on_death(number, incarnation)` is called from the loop."""
        self._loop = loop
        self._on_death = on_death
        self._watched: dict[int, tuple[int, int]] = {}  # incarnation -> (pidfd, process number)

    def watch(self, number: int, incarnation: int) -> bool:
        """Report the end of this incarnation from now on, once, however often this is called. False: it has ended."""
        if incarnation in self._watched:
            return True
        fd = ids.open_pidfd(incarnation)
        if fd is None:
            return False
        self._watched[incarnation] = (fd, number)
        self._loop.add_reader(fd, lambda: self._died(number, incarnation))
        return True

    def __len__(self) -> int:
        return len(self._watched)

    def watched(self) -> list[tuple[int, int]]:
        """(process number, incarnation) of all that live."""
        return [(number, incarnation) for incarnation, (_, number) in self._watched.items()]

    def kill(self, incarnation: int) -> None:
        """SIGKILL it, if it is watched; its death is reported like any other."""
        if incarnation in self._watched:
            try:
                signal.pidfd_send_signal(self._watched[incarnation][0], signal.SIGKILL)
            except ProcessLookupError:
                pass  # it is dead, and its pidfd will say so

    def _died(self, number: int, incarnation: int) -> None:
        self._forget(incarnation)
        self._on_death(number, incarnation)

    def _forget(self, incarnation: int) -> None:
        fd, _ = self._watched.pop(incarnation)
        self._loop.remove_reader(fd)
        os.close(fd)

    def close(self) -> None:
        """Watch nobody any more."""
        for incarnation in list(self._watched):
            self._forget(incarnation)
