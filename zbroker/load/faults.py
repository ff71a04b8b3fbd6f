"""What is done to processes in a chaos run: SIGKILL, SIGSTOP and SIGTERM, by proof of identity, drawn from a seed.

Guarantees: only the process that was meant is hit: its pidfd is opened first and its start time checked afterwards.
Everything that was paused is woken by `heal`, in whatever way the run ends.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from msgspec import Struct

from zbroker import ids
from zbroker.shm.board_reader import find_boards

KindOfFault = Literal["kill", "pause", "restart"]
ROLE_WEIGHTS: Final = {"router": 1, "worker": 2, "replica": 2, "coordinator": 1, "producer": 1, "consumer": 1}
SIGNALS: Final = {"kill": signal.SIGKILL, "pause": signal.SIGSTOP, "restart": signal.SIGTERM}
PAUSE_MIN_S: Final = 0.1


class Fault(Struct, frozen=True):
    """One that was done: to whom, when, for how long (0 for what is no pause)."""

    kind: KindOfFault
    name: str
    at_ns: int
    pause_s: float = 0.0


def broker_processes(boards_dir: Path) -> dict[str, int]:
    """name -> incarnation of every broker process that lives."""
    found: dict[str, int] = {}
    for name, incarnation, _ in find_boards(boards_dir):
        if name not in found and ids.is_alive(incarnation):
            found[name] = incarnation
    return found


def role_of(name: str) -> str:
    """`worker` of `worker-0`."""
    return name.rpartition("-")[0] or name


def send_signal(incarnation: int, number: int) -> bool:
    """Signal exactly this process. False: it is gone."""
    pidfd = ids.open_pidfd(incarnation)
    if pidfd is None:
        return False
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


class Faults:
    """Draws and does faults; remembers them. `rng` is the run's seed made into a generator."""

    def __init__(
        self, rng: random.Random, kinds: Mapping[KindOfFault, int], *, pause_max_s: float, roles: frozenset[str]
    ) -> None:
        self._rng = rng
        self._kinds = dict(kinds)
        self._pause_max_s = pause_max_s
        self._roles = roles
        self._paused: list[tuple[int, int]] = []  # (wake at ns, incarnation)
        self.done: list[Fault] = []

    def strike(self, processes: Mapping[str, int]) -> Fault | None:
        """Do one fault to one of `processes` (name -> incarnation). None: nobody was there to be hit."""
        paused = {incarnation for _, incarnation in self._paused}
        names = [n for n in sorted(processes) if role_of(n) in self._roles and processes[n] not in paused]
        if not names:
            return None
        roles = {role_of(name) for name in names}
        role = self._rng.choices(sorted(roles), [ROLE_WEIGHTS[role] for role in sorted(roles)])[0]
        name = self._rng.choice([name for name in names if role_of(name) == role])
        kind = self._rng.choices(list(self._kinds), list(self._kinds.values()))[0]
        pause_s = self._rng.uniform(PAUSE_MIN_S, self._pause_max_s) if kind == "pause" else 0.0
        at_ns = time.monotonic_ns()
        if not send_signal(processes[name], SIGNALS[kind]):
            return None
        if kind == "pause":
            self._paused.append((at_ns + int(pause_s * 1e9), processes[name]))
        fault = Fault(kind, name, at_ns, pause_s)
        self.done.append(fault)
        return fault

    def wake_due(self) -> None:
        """Wake what was paused for long enough."""
        now_ns = time.monotonic_ns()
        for entry in [entry for entry in self._paused if entry[0] <= now_ns]:
            self._paused.remove(entry)
            send_signal(entry[1], signal.SIGCONT)

    def heal(self) -> None:
        """Wake everything."""
        for _, incarnation in self._paused:
            send_signal(incarnation, signal.SIGCONT)
        self._paused.clear()
