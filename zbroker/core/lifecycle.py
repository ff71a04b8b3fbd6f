"""When the supervisor starts, restarts, gives up and stops each process: decisions only, no process is touched here.

                   Exited, still wanted                      Exited, limit reached
        +--------- WAITING <------------- RUNNING ----------------------------> FAILED
        | due: Start   ^                   |   ^                                  |
        +------------> STARTING -----------+   | Started                          | Retry
                          | StartFailed        |                                  v
                          +--> WAITING         | not wanted, or the stop      WAITING
                                               v
                                            STOPPING --- Exited ---> (forgotten)

Guarantees: a process that is wanted and dead is started again: at once the first time (a worker or replica after
STAND_BACK_MS where others of them run, which take over what it led and need the cores for that), then after
`restart_backoff_ms`, doubled for each death in a row up to `restart_backoff_max_ms`. A row ends when a process lives
longer than `crash_loop_window_ms`. After `crash_loop_limit` deaths in a row it is given up: the broker goes on without
a worker or replica, and stops where none is left, or where it is the router or the coordinator. SIGKILL is somebody's
act and no crash of the process (an operator, the coordinator that fences a hung worker, the kernel out of memory), and
so is an end in order (exit code 0: a process ends so only when it was asked to): neither counts against the limit. A
broker that ends because of a process given up has that process's last exit code where it says more than "internal": 2
for settings, at once; 75 for a lock that another process holds. A stop goes in order, workers and replicas,
coordinator, router, each with its share of `stop_timeout_ms` and SIGKILL at its end. Events that a state does not allow
raise IllegalTransition.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final

import msgspec

from zbroker import ids
from zbroker.clock import NS_PER_MS
from zbroker.errors import IllegalTransition

EXIT_BAD_CONFIG: Final = 2
EXIT_INTERNAL: Final = 70
EXIT_TEMPORARY: Final = 75
FAST_STOP_MS: Final = 500
SHORT_LIFE_MS: Final = 1_000
STAND_BACK_MS: Final = 30  # elections are over in 5 to 10; a start takes a core for 40
# The part of the stop's time that is over when a group is killed: leaders first, so that they can still hand over.
_STOP_SHARES: Final = (0.6, 0.8, 1.0)


class State(Enum):
    """What the supervisor knows of one process."""

    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"


HAS_PROCESS: Final = frozenset({State.RUNNING, State.STOPPING})


class Limits(msgspec.Struct, frozen=True):
    """The settings of [supervisor]."""

    restart_backoff_ms: int = 20
    restart_backoff_max_ms: int = 5_000
    crash_loop_limit: int = 5
    crash_loop_window_ms: int = 10_000
    stop_timeout_ms: int = 5_000


class Wanted(msgspec.Struct, frozen=True):
    """Event: these processes should run, and no others."""

    numbers: tuple[int, ...]


class Started(msgspec.Struct, frozen=True):
    """Event: the process of a `Start` exists."""

    number: int
    pid: int


class StartFailed(msgspec.Struct, frozen=True):
    """Event: the host refused to make the process."""

    number: int
    reason: str


class Exited(msgspec.Struct, frozen=True):
    """Event: the process is gone; `status` is its exit code, or the number of the signal that ended it, negated."""

    number: int
    status: int


class StopRequested(msgspec.Struct, frozen=True):
    """Event: stop everything. The second one, or `is_fast`, takes at most FAST_STOP_MS."""

    is_fast: bool = False


class Retry(msgspec.Struct, frozen=True):
    """Event: try again what was given up, as after a mended configuration."""


class Tick(msgspec.Struct, frozen=True):
    """Event: `next_deadline_ns` has passed."""


class Start(msgspec.Struct, frozen=True):
    """Effect: make the process; answer with Started or StartFailed."""

    number: int


class Signal(msgspec.Struct, frozen=True):
    """Effect: send a signal to the process."""

    number: int
    signal: int


class Report(msgspec.Struct, frozen=True):
    """Effect: a line for the log."""

    text: str
    is_error: bool = False


class Finish(msgspec.Struct, frozen=True):
    """Effect: every process is gone; the supervisor exits with this code."""

    exit_code: int


Event = Wanted | Started | StartFailed | Exited | StopRequested | Retry | Tick
Effect = Start | Signal | Report | Finish


class _Process:
    __slots__ = ("crashes_in_row", "deadline_ns", "deaths_in_row", "number", "pid", "started_ns", "state")

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = State.WAITING
        self.pid = 0
        self.deaths_in_row = 0
        self.crashes_in_row = 0
        self.started_ns = 0
        self.deadline_ns: int | None = None

    @property
    def name(self) -> str:
        return ids.process_name(self.number)


def stop_group(number: int) -> int:
    """0 for workers and replicas, 1 for the coordinator, 2 for the router: the order of a stop."""
    return {ids.COORDINATOR: 1, ids.ROUTER: 2}.get(number, 0)


class Lifecycle:
    """The state machine. `handle` is the only way in."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._processes: dict[int, _Process] = {}
        self._wanted: frozenset[int] = frozenset()
        self._exit_code: int | None = None
        self._stop_deadlines_ns: tuple[int, ...] = ()
        self._signalled_groups = -1
        self._is_finished = False

    @property
    def is_stopping(self) -> bool:
        """Whether the broker is on its way down."""
        return self._exit_code is not None

    def state_of(self, number: int) -> State | None:
        """The state of a process, None when it is neither wanted nor still running."""
        found = self._processes.get(number)
        return None if found is None else found.state

    def running(self) -> dict[int, int]:
        """Pid by process number of every process that exists."""
        return {one.number: one.pid for one in self._processes.values() if one.state in HAS_PROCESS}

    @property
    def next_deadline_ns(self) -> int | None:
        """When `Tick` is due; None when nothing waits for time."""
        return min((one.deadline_ns for one in self._processes.values() if one.deadline_ns is not None), default=None)

    def handle(self, event: Event, now_ns: int) -> list[Effect]:
        """Decide. Nothing is changed when IllegalTransition is raised."""
        match event:
            case Wanted(numbers):
                return self._want(numbers, now_ns)
            case Started(number, pid):
                return self._started(number, pid, now_ns)
            case StartFailed(number, reason):
                process = self._expect(number, event, State.STARTING)
                report = Report(f"{process.name} cannot be started: {reason}", is_error=True)
                return [report, *self._died(process, EXIT_INTERNAL, now_ns)]
            case Exited(number, status):
                process = self._expect(number, event, *HAS_PROCESS)
                return self._exited(process, status, now_ns)
            case StopRequested(is_fast):
                return self._stop(0, now_ns, is_fast=is_fast or self.is_stopping)
            case Retry():
                for process in self._processes.values():
                    if process.state is State.FAILED:
                        process.state, process.deadline_ns = State.WAITING, now_ns
                        process.deaths_in_row = process.crashes_in_row = 0
                return self._due(now_ns)
            case Tick():
                return self._due(now_ns)

    def _expect(self, number: int, event: Event, *states: State) -> _Process:
        process = self._processes.get(number)
        if process is None or process.state not in states:
            state = "unknown" if process is None else process.state.value
            raise IllegalTransition(f"{event!r} for {ids.process_name(number)}, which is {state}")
        return process

    def _want(self, numbers: Sequence[int], now_ns: int) -> list[Effect]:
        if self.is_stopping:
            return []
        effects: list[Effect] = []
        self._wanted = frozenset(numbers)
        for number in numbers:
            if number not in self._processes:
                self._add(number, now_ns)
        for process in [one for number, one in self._processes.items() if number not in self._wanted]:
            if process.state is State.RUNNING:
                process.state = State.STOPPING
                process.deadline_ns = now_ns + self.limits.stop_timeout_ms * NS_PER_MS
                effects.append(Signal(process.number, signal.SIGTERM))
            elif process.state in (State.WAITING, State.FAILED):
                del self._processes[process.number]
        return [*effects, *self._due(now_ns)]

    def _add(self, number: int, now_ns: int) -> None:
        process = self._processes[number] = _Process(number)
        process.deadline_ns = now_ns

    def _started(self, number: int, pid: int, now_ns: int) -> list[Effect]:
        process = self._expect(number, Started(number, pid), State.STARTING)
        process.state, process.pid, process.started_ns, process.deadline_ns = State.RUNNING, pid, now_ns, None
        return [Report(f"{process.name} is process {pid}")]

    def _exited(self, process: _Process, status: int, now_ns: int) -> list[Effect]:
        if process.state is State.STOPPING or self.is_stopping:
            del self._processes[process.number]
            if self.is_stopping:
                return self._go_on_stopping()
            if process.number in self._wanted:
                self._add(process.number, now_ns)
            return self._due(now_ns)
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with code {status}"
        lived_ms = (now_ns - process.started_ns) / NS_PER_MS
        report = Report(f"{process.name} ({process.pid}) {how} after {lived_ms:.0f} ms", is_error=True)
        return [report, *self._died(process, status, now_ns)]

    def _died(self, process: _Process, status: int, now_ns: int) -> list[Effect]:
        limits = self.limits
        lived_ms = (now_ns - process.started_ns) / NS_PER_MS if process.state is State.RUNNING else 0.0
        was_ended = status in (0, -signal.SIGKILL)
        if lived_ms > limits.crash_loop_window_ms:
            process.deaths_in_row = process.crashes_in_row = 0
        elif was_ended and lived_ms > SHORT_LIFE_MS:
            process.deaths_in_row = 0
        process.deaths_in_row += 1
        process.crashes_in_row += not was_ended
        process.pid = 0
        if status == EXIT_BAD_CONFIG:
            return self._give_up(process, now_ns, "its settings are wrong", EXIT_BAD_CONFIG)
        if process.crashes_in_row >= limits.crash_loop_limit:
            exit_code = EXIT_TEMPORARY if status == EXIT_TEMPORARY else EXIT_INTERNAL
            return self._give_up(process, now_ns, f"{process.crashes_in_row} crashes in a row", exit_code)
        process.state = State.WAITING
        wait_ms = self.backoff_ms(process.deaths_in_row)
        if status != 0 and self._has_stand_in(process):
            wait_ms = max(wait_ms, STAND_BACK_MS)
        process.deadline_ns = now_ns + wait_ms * NS_PER_MS
        return self._due(now_ns)

    def _has_stand_in(self, process: _Process) -> bool:
        """Whether another process can lead in its place."""
        group = stop_group(process.number)
        return group == 0 and any(one.state is State.RUNNING for one in self._in_group(group))

    def _in_group(self, group: int) -> list[_Process]:
        return [one for one in self._processes.values() if stop_group(one.number) == group]

    def backoff_ms(self, deaths_in_row: int) -> int:
        """How long a process waits for its next start."""
        if deaths_in_row <= 1:
            return 0
        doubled = self.limits.restart_backoff_ms << min(deaths_in_row - 2, 30)
        return min(doubled, self.limits.restart_backoff_max_ms)

    def _give_up(self, process: _Process, now_ns: int, reason: str, exit_code: int) -> list[Effect]:
        process.state, process.deadline_ns = State.FAILED, None
        group = self._in_group(stop_group(process.number))
        text = f"{process.name} is given up: {reason}"
        if any(one.state is not State.FAILED for one in group) and exit_code != EXIT_BAD_CONFIG:
            return [Report(f"{text}; the others go on without it (SIGHUP tries again)", is_error=True)]
        return [Report(f"{text}; the broker stops", is_error=True), *self._stop(exit_code, now_ns, is_fast=False)]

    def _due(self, now_ns: int) -> list[Effect]:
        """Whatever a deadline that has passed asks for."""
        effects: list[Effect] = []
        for process in self._processes.values():
            if process.deadline_ns is None or process.deadline_ns > now_ns:
                continue
            process.deadline_ns = None
            if process.state is State.WAITING:
                process.state = State.STARTING
                effects.append(Start(process.number))
            elif process.state is State.STOPPING:
                text = f"{process.name} ({process.pid}) did not stop in time and is killed"
                effects += (Report(text, is_error=True), Signal(process.number, signal.SIGKILL))
        return effects

    def _stop(self, exit_code: int, now_ns: int, *, is_fast: bool) -> list[Effect]:
        if self._exit_code is None:
            self._exit_code = exit_code
        total_ms = FAST_STOP_MS if is_fast else self.limits.stop_timeout_ms
        shares = (1.0, 1.0, 1.0) if is_fast else _STOP_SHARES
        self._stop_deadlines_ns = tuple(now_ns + int(total_ms * share) * NS_PER_MS for share in shares)
        for number in [number for number, one in self._processes.items() if one.state not in HAS_PROCESS]:
            assert self._processes[number].state is not State.STARTING, "a Start is answered before the next event"
            del self._processes[number]
        effects: list[Effect] = [Report("stopping fast" if is_fast else "stopping")]
        if is_fast:
            self._signalled_groups = len(_STOP_SHARES)
            return [*effects, *self._terminate(self._processes.values()), *self._finish_if_empty()]
        return [*effects, *self._go_on_stopping()]

    def _go_on_stopping(self) -> list[Effect]:
        """Ask the next group to stop when the one before it is gone."""
        effects: list[Effect] = []
        while self._processes:
            group = min(stop_group(number) for number in self._processes)
            if group <= self._signalled_groups:
                return effects
            self._signalled_groups = group
            effects += self._terminate(self._in_group(group))
        return self._finish_if_empty()

    def _terminate(self, processes: Iterable[_Process]) -> list[Effect]:
        effects: list[Effect] = []
        for process in processes:
            process.state = State.STOPPING
            process.deadline_ns = self._stop_deadlines_ns[stop_group(process.number)]
            effects.append(Signal(process.number, signal.SIGTERM))
        return effects

    def _finish_if_empty(self) -> list[Effect]:
        if self._processes or self._is_finished:
            return []
        self._is_finished = True
        assert self._exit_code is not None
        return [Finish(self._exit_code)]
