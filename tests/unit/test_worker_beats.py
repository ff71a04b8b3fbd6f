"""Who is killed for a beat that stands still: who hangs, and not who is kept from running. With a real process, whose
beat the test writes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from tests.conditions import wait_until
from zbroker import ids
from zbroker.clock import NS_PER_MS, HostClock
from zbroker.core.hang import RAN_ENOUGH_MS, STARVED_TIMES_MAX
from zbroker.shm.board import BoardWriter
from zbroker.shm.layout import ProcessState
from zbroker.transport.loop import Loop
from zbroker.workers import beats
from zbroker.workers.beats import Beats
from zbroker.workers.liveness import Liveness

TIMEOUT_MS = 1_000
LOOK_MS = 100


class FakeLiveness:
    def __init__(self, incarnation: int) -> None:
        self.killed: list[int] = []
        self._incarnation = incarnation

    def watched(self) -> list[tuple[int, int]]:
        return [(ids.worker_number(0), self._incarnation)]

    def kill(self, incarnation: int) -> None:
        self.killed.append(incarnation)


class Case:
    """A process that is watched, on a clock that goes on with each look."""

    def __init__(self, directory: Path, pid: int) -> None:
        incarnation = ids.incarnation_of(pid)
        self.liveness = FakeLiveness(incarnation)
        self.board = BoardWriter.create(directory, ids.worker_number(0), incarnation, cells=1)
        self.board.set_state(ProcessState.RUNNING)
        self.board.beat(1)
        unused, liveness = cast(Loop, None), cast(Liveness, self.liveness)
        self._beats = Beats(unused, HostClock(), directory, liveness, TIMEOUT_MS, lambda *_: None)
        self._now_ns = 0

    def look_for_ms(self, time_ms: int) -> bool:
        """Whether the process was killed within that time."""
        for _ in range(time_ms // LOOK_MS):
            self._beats.look(self._now_ns)
            self._now_ns += LOOK_MS * NS_PER_MS
        return bool(self.liveness.killed)

    def close(self) -> None:
        self._beats.close()
        self.board.close(unlink=True)


@contextmanager
def process(code: str) -> Iterator[int]:
    """One that has come to the end of its start."""
    with subprocess.Popen([sys.executable, "-c", f"print(flush=True)\n{code}"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            yield child.pid
        finally:
            child.kill()


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Case]:
    with process("while True: pass") as pid:
        case = Case(tmp_path, pid)
        yield case
        case.close()


def test_a_process_that_runs_without_a_beat_is_killed(busy: Case) -> None:
    assert not busy.look_for_ms(TIMEOUT_MS)
    wait_until(lambda: busy.look_for_ms(LOOK_MS), what="a kill")


def test_a_process_that_sleeps_without_a_beat_is_killed(tmp_path: Path) -> None:
    with process("import time; time.sleep(600)") as pid:
        case = Case(tmp_path, pid)
        wait_until(lambda: beats._thread_states(pid) == ["S"])
        assert case.look_for_ms(2 * TIMEOUT_MS)
        case.close()


def test_a_process_that_is_not_let_run_is_not_killed_for_it(busy: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beats, "_ran_ms", lambda pid: 5_000.0)
    assert not busy.look_for_ms(TIMEOUT_MS * STARVED_TIMES_MAX)
    assert busy.look_for_ms(2 * TIMEOUT_MS), "not for ever: another copy's process may have a core"


def test_what_counts_is_how_long_it_ran_since_it_fell_silent(busy: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    ran_ms = 0.0
    monkeypatch.setattr(beats, "_ran_ms", lambda pid: ran_ms)
    for beat in range(2, 30):
        busy.board.beat(beat)
        ran_ms += RAN_ENOUGH_MS
        assert not busy.look_for_ms(LOOK_MS), "it beats"
    assert not busy.look_for_ms(2 * TIMEOUT_MS)
    ran_ms += RAN_ENOUGH_MS
    assert busy.look_for_ms(LOOK_MS)
