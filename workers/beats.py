"""Reads the beats on the boards, and kills who hangs: a process is fenced by its death, and only then followed.

The verdicts are `core/hang.py`'s. A process that was killed and hangs in the kernel is reported as stuck, once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from zbroker import ids
from zbroker.clock import Clock
from zbroker.core.hang import STEP_MAX_MS, Beat, HangDetector, hangs, is_stuck
from zbroker.errors import BrokerError
from zbroker.shm.board import board_path
from zbroker.shm.board_reader import BoardReader
from zbroker.shm.layout import ProcessState
from zbroker.transport.loop import Loop
from zbroker.workers.liveness import Liveness

_log = logging.getLogger(__name__)


class Beats:
    """See the module."""

    def __init__(
        self,
        loop: Loop,
        clock: Clock,
        boards_dir: Path,
        liveness: Liveness,
        timeout_ms: int,
        on_stuck: Callable[[int, int], None],
    ) -> None:
        """`on_stuck(number, incarnation)` is called from `look`."""
        self._loop = loop
        self._clock = clock
        self._boards_dir = boards_dir
        self._liveness = liveness
        self._detector = HangDetector(timeout_ms)
        self._on_stuck = on_stuck
        self._boards: dict[int, BoardReader] = {}
        self._killed: set[int] = set()
        self._stuck: set[int] = set()

    def start(self) -> None:
        """Look from now on: five times a second, and when a process could be found to hang."""
        self.look(self._clock.now_ns())
        wait_ms = self._detector.next_look_ms
        if wait_ms < STEP_MAX_MS:
            self._loop.call_after(wait_ms, self.start)
        else:
            self._loop.call_at_multiple(STEP_MAX_MS, self.start)

    def look(self, now_ns: int) -> None:
        """Look at every watched process."""
        watched = self._liveness.watched()
        incarnations = {incarnation for _, incarnation in watched}
        for gone in self._boards.keys() - incarnations:
            self._boards.pop(gone).close()
        self._killed &= incarnations
        self._stuck &= incarnations
        beats = [beat for number, incarnation in watched if (beat := self._beat(number, incarnation)) is not None]
        for beat in self._detector.look(now_ns, beats):
            if beat.incarnation not in self._killed and hangs(beat, _state_of(ids.pid_of(beat.incarnation))):
                self._kill(beat)
        for number, incarnation in watched:
            if incarnation in self._killed - self._stuck and is_stuck(_thread_states(ids.pid_of(incarnation))):
                self._stuck.add(incarnation)
                self._on_stuck(number, incarnation)

    def _beat(self, number: int, incarnation: int) -> Beat | None:
        board = self._boards.get(incarnation)
        if board is None:
            try:
                board = BoardReader.open(board_path(self._boards_dir, number, incarnation))
            except (BrokerError, FileNotFoundError):
                return None  # it has no board yet, or none any more
            self._boards[incarnation] = board
        does_io = board.io_since_ns != 0
        return Beat(incarnation, board.beat_ns, does_io, board.state is ProcessState.STARTING)

    def _kill(self, beat: Beat) -> None:
        state = _state_of(ids.pid_of(beat.incarnation))
        number = next(number for number, one in self._liveness.watched() if one == beat.incarnation)
        _log.warning("a process hangs and is killed", extra={"peer": ids.process_name(number), "kernel_state": state})
        self._killed.add(beat.incarnation)
        self._liveness.kill(beat.incarnation)

    def close(self) -> None:
        """Unmap the boards."""
        for board in self._boards.values():
            board.close()
        self._boards.clear()


def _state_of(pid: int) -> str:
    """The state letter in /proc/PID/stat; X when there is no such process."""
    return _read_state(Path(f"/proc/{pid}/stat"))


def _read_state(path: Path) -> str:
    try:
        text = path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "X"
    return text[text.rindex(")") + 2 :].split()[0]


def _thread_states(pid: int) -> list[str]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [_read_state(Path(f"/proc/{pid}/task/{thread}/stat")) for thread in threads]
