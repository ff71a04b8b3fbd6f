"""Reads the beats on the boards, and kills who hangs: a process is fenced by its death, and only then followed.

The verdicts are `core/hang.py`'s. A process that was killed and hangs in the kernel is reported as stuck, once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from zbroker import ids
from zbroker.clock import Clock
from zbroker.core.hang import STEP_MAX_MS, Beat, HangDetector, hangs, is_stuck
from zbroker.errors import BrokerError
from zbroker.shm.board import board_path
from zbroker.shm.board_reader import BoardReader
from zbroker.shm.layout import ProcessState
from zbroker.transport.loop import Loop
from zbroker.workers.liveness import Liveness
from zbroker.workers.logs import OncePerMinute

_TICK_MS: Final = 1_000 / os.sysconf("SC_CLK_TCK")

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
        self._ran_ms: dict[int, float] = {}  # silent incarnations: how long they had run when that was noticed
        self._killed: set[int] = set()
        self._stuck: set[int] = set()
        self._once = OncePerMinute()

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
        late = self._detector.look(now_ns, beats)
        before = self._ran_ms
        self._ran_ms = {
            one: before[one] if one in before else _ran_ms(ids.pid_of(one)) for one in self._detector.silent
        }
        for beat in late:
            if beat.incarnation not in self._killed and hangs(beat, _state_of(ids.pid_of(beat.incarnation))):
                self._kill_unless_starved(beat)
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

    def _kill_unless_starved(self, beat: Beat) -> None:
        pid = ids.pid_of(beat.incarnation)
        states, ran_ms = _thread_states(pid), _ran_ms(pid) - self._ran_ms.get(beat.incarnation, 0.0)
        number = next(number for number, one in self._liveness.watched() if one == beat.incarnation)
        where = {"peer": ids.process_name(number), "kernel_state": _state_of(pid), "ran_ms": round(ran_ms)}
        if self._detector.is_starved(beat.incarnation, states, ran_ms):
            if self._once.allows(f"starved {number}", self._clock.now_ns()):
                _log.warning("a process is silent because it is not let run: the host has too much to do", extra=where)
            return
        _log.warning("a process hangs and is killed", extra=where)
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


def _ran_ms(pid: int) -> float:
    """How long all threads of a process have run so far, in steps of 10 ms; 0 when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    user, system = text[text.rindex(")") + 2 :].split()[11:13]
    return (int(user) + int(system)) * _TICK_MS


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
