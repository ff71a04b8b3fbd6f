"""Signals as data: a handler that writes one byte, and a descriptor to poll.

Guarantees: no code of ours runs inside a signal handler, so nothing has to be reentrant; a signal that arrives between
two polls makes the next poll return at once; each number is reported once per arrival, in order of arrival. Only the
main thread may make a `Signals`, and only one may be open.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from types import FrameType

from zbroker.workers.process import reset_signals

_READ_BYTES = 512


def _ignore(number: int, frame: FrameType | None) -> None:
    """Present so that the interpreter takes the signal and writes its number to the wake-up descriptor."""


class Signals:
    """The listed signals, turned into bytes of a pipe until `close`."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = tuple(numbers)
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old_wakeup_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in self._numbers:
            signal.signal(number, _ignore)

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return self._read_fd

    def take(self) -> list[int]:
        """The signals that have come since the last call."""
        try:
            return [number for number in os.read(self._read_fd, _READ_BYTES) if number in self._numbers]
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Give the signals their default meaning again, and close the pipe."""
        signal.set_wakeup_fd(self._old_wakeup_fd)
        reset_signals(self._numbers)
        os.close(self._read_fd)
        os.close(self._write_fd)
