"""The supervisor's decisions: restarts, back-off, giving up, and the order of a stop."""

from __future__ import annotations

import random
import signal

import pytest

from zbroker import ids
from zbroker.clock import NS_PER_MS
from zbroker.core.lifecycle import (
    HAS_PROCESS,
    STAND_BACK_MS,
    Effect,
    Event,
    Exited,
    Finish,
    Lifecycle,
    Limits,
    Report,
    Retry,
    Signal,
    Start,
    Started,
    StartFailed,
    State,
    StopRequested,
    Tick,
    Wanted,
)
from zbroker.errors import IllegalTransition

ROUTER, COORDINATOR, W0, W1 = ids.ROUTER, ids.COORDINATOR, ids.worker_number(0), ids.worker_number(1)
ALL = (ROUTER, COORDINATOR, W0, W1)
LIMITS = Limits(
    restart_backoff_ms=20,
    restart_backoff_max_ms=100,
    crash_loop_limit=4,
    crash_loop_window_ms=10_000,
    stop_timeout_ms=5_000,
)


class Bench:
    """A lifecycle with a clock and with processes that start when they are told to."""

    def __init__(self, numbers: tuple[int, ...] = ALL) -> None:
        self.lifecycle = Lifecycle(LIMITS)
        self.now_ms = 1_000.0
        self.next_pid = 100
        self.log: list[Effect] = []
        self.do(Wanted(numbers))

    def do(self, event: Event) -> list[Effect]:
        """Hand in an event; answer every Start at once. Gives the effects without reports."""
        effects = self.lifecycle.handle(event, int(self.now_ms * NS_PER_MS))
        found: list[Effect] = [effect for effect in effects if not isinstance(effect, Report)]
        self.log += effects
        for effect in effects:
            if isinstance(effect, Start):
                self.next_pid += 1
                found += self.do(Started(effect.number, self.next_pid))
        return found

    def after(self, ms: float) -> list[Effect]:
        self.now_ms += ms
        return self.do(Tick())

    def states(self) -> dict[int, State | None]:
        return {number: self.lifecycle.state_of(number) for number in ALL}


def test_everything_wanted_is_started_at_once() -> None:
    bench = Bench()
    assert [effect for effect in bench.log if isinstance(effect, Start)] == [Start(number) for number in ALL]
    assert set(bench.states().values()) == {State.RUNNING}
    assert len(set(bench.lifecycle.running().values())) == 4
    assert bench.lifecycle.next_deadline_ns is None


@pytest.mark.parametrize("number", [ROUTER, COORDINATOR, W0])
def test_the_first_death_is_followed_by_a_start_at_once_where_nobody_can_take_over(number: int) -> None:
    bench = Bench((ROUTER, COORDINATOR, W0))
    bench.now_ms += 20_000
    assert bench.do(Exited(number, 1)) == [Start(number)]


def test_a_worker_whose_partitions_others_take_over_leaves_them_the_cores_first() -> None:
    bench = Bench()
    assert bench.do(Exited(W0, -signal.SIGKILL)) == []
    assert bench.do(Exited(W1, -signal.SIGKILL)) == [Start(W1)], "nobody is left who could"
    assert bench.after(STAND_BACK_MS - 0.001) == []
    assert bench.after(0.001) == [Start(W0)]


def test_deaths_in_a_row_wait_longer_each_time_up_to_the_maximum() -> None:
    bench = Bench((ROUTER, COORDINATOR, W0))
    waits = []
    for _ in range(8):
        bench.do(Exited(W0, -signal.SIGKILL))
        deadline_ns = bench.lifecycle.next_deadline_ns
        waits.append(0.0 if deadline_ns is None else deadline_ns / NS_PER_MS - bench.now_ms)
        if deadline_ns is not None:
            assert bench.after(waits[-1] - 0.001) == []
            assert bench.after(0.001) == [Start(W0)]
    assert waits == [0, 20, 40, 80, 100, 100, 100, 100]


def test_a_long_life_ends_a_row() -> None:
    bench = Bench()
    for _ in range(20):
        bench.now_ms += LIMITS.crash_loop_window_ms + 1
        assert bench.do(Exited(COORDINATOR, 70)) == [Start(COORDINATOR)]


def crash(bench: Bench, number: int, status: int = 70) -> list[Effect]:
    """Let a process crash until it is given up; the effects of the last death."""
    for _ in range(LIMITS.crash_loop_limit - 1):
        bench.do(Exited(number, status))
        bench.after(LIMITS.restart_backoff_max_ms)
        assert bench.lifecycle.state_of(number) is State.RUNNING
    return bench.do(Exited(number, status))


def test_a_worker_in_a_crash_loop_is_given_up_and_the_others_go_on() -> None:
    bench = Bench()
    assert crash(bench, W0) == []
    assert bench.states() == {
        ROUTER: State.RUNNING,
        COORDINATOR: State.RUNNING,
        W0: State.FAILED,
        W1: State.RUNNING,
    }
    assert bench.after(60_000) == []
    assert bench.do(Retry()) == [Start(W0)]


def test_the_broker_stops_with_an_error_when_its_last_worker_is_given_up() -> None:
    bench = Bench((ROUTER, COORDINATOR, W0))
    assert crash(bench, W0) == [Signal(COORDINATOR, signal.SIGTERM)]
    assert bench.do(Exited(COORDINATOR, 0)) == [Signal(ROUTER, signal.SIGTERM)]
    assert bench.do(Exited(ROUTER, 0)) == [Finish(70)]


def test_the_broker_ends_with_75_when_its_coordinator_finds_the_data_locked_again_and_again() -> None:
    bench = Bench((ROUTER, COORDINATOR, W0))
    assert crash(bench, COORDINATOR, 75) == [Signal(W0, signal.SIGTERM)]
    assert bench.do(Exited(W0, 0)) == [Signal(ROUTER, signal.SIGTERM)]
    assert bench.do(Exited(ROUTER, 0)) == [Finish(75)]


@pytest.mark.parametrize("number", [ROUTER, COORDINATOR])
def test_the_broker_stops_when_a_process_is_given_up_that_it_cannot_do_without(number: int) -> None:
    bench = Bench()
    assert crash(bench, number) == [Signal(W0, signal.SIGTERM), Signal(W1, signal.SIGTERM)]


def test_wrong_settings_are_not_tried_again() -> None:
    bench = Bench()
    assert Signal(W1, signal.SIGTERM) in bench.do(Exited(W0, 2))
    for number in (W1, COORDINATOR):
        bench.do(Exited(number, 0))
    assert bench.do(Exited(ROUTER, 0)) == [Finish(2)]


def test_kills_from_outside_never_make_a_process_given_up() -> None:
    bench = Bench()
    for _ in range(50):
        bench.do(Exited(W0, -signal.SIGKILL))
        bench.after(LIMITS.restart_backoff_max_ms)
    assert bench.lifecycle.state_of(W0) is State.RUNNING
    bench.now_ms += 2_000
    bench.do(Exited(W0, -signal.SIGKILL))
    assert bench.after(STAND_BACK_MS) == [Start(W0)], "after a life of seconds it need not wait for longer"


def test_a_process_that_is_asked_to_end_again_and_again_is_not_given_up() -> None:
    bench = Bench()
    for _ in range(3 * LIMITS.crash_loop_limit):
        bench.after(2_000)
        assert bench.do(Exited(ROUTER, 0)) == [Start(ROUTER)], "each time at once: none of them was a crash"


def test_an_exit_with_code_0_that_nobody_asked_for_is_followed_by_a_start() -> None:
    assert Bench().do(Exited(W0, 0)) == [Start(W0)]


def test_a_stop_goes_in_order_and_each_group_waits_for_the_one_before() -> None:
    bench = Bench()
    assert bench.do(StopRequested()) == [Signal(W0, signal.SIGTERM), Signal(W1, signal.SIGTERM)]
    assert bench.do(Exited(W1, 0)) == []
    assert bench.do(Exited(W0, 0)) == [Signal(COORDINATOR, signal.SIGTERM)]
    assert bench.do(Exited(COORDINATOR, 0)) == [Signal(ROUTER, signal.SIGTERM)]
    assert bench.do(Exited(ROUTER, 0)) == [Finish(0)]


def test_a_group_that_does_not_stop_in_its_share_of_the_time_is_killed() -> None:
    bench = Bench()
    bench.do(StopRequested())
    bench.do(Exited(W1, 0))
    assert bench.after(2_999) == []
    assert bench.after(1) == [Signal(W0, signal.SIGKILL)]
    assert bench.do(Exited(W0, -signal.SIGKILL)) == [Signal(COORDINATOR, signal.SIGTERM)]
    assert bench.after(1_000) == [Signal(COORDINATOR, signal.SIGKILL)]
    bench.do(Exited(COORDINATOR, -signal.SIGKILL))
    assert bench.after(1_000) == [Signal(ROUTER, signal.SIGKILL)]
    assert bench.do(Exited(ROUTER, -signal.SIGKILL)) == [Finish(0)]
    assert bench.now_ms <= 1_000 + LIMITS.stop_timeout_ms


def test_a_process_that_crashes_during_a_stop_is_not_started_again() -> None:
    bench = Bench()
    bench.do(StopRequested())
    assert bench.do(Exited(COORDINATOR, 70)) == []
    bench.do(Exited(W0, 0))
    assert bench.do(Exited(W1, 0)) == [Signal(ROUTER, signal.SIGTERM)]


def test_the_second_stop_is_fast_and_signals_everybody() -> None:
    bench = Bench()
    bench.do(StopRequested())
    assert bench.do(StopRequested()) == [Signal(number, signal.SIGTERM) for number in ALL]
    assert bench.after(500) == [Signal(number, signal.SIGKILL) for number in ALL]
    for number in (ROUTER, W0, W1):
        assert bench.do(Exited(number, -signal.SIGKILL)) == []
    assert bench.do(Exited(COORDINATOR, -signal.SIGKILL)) == [Finish(0)]


def test_a_stop_while_a_process_waits_for_its_restart_forgets_it() -> None:
    bench = Bench((ROUTER, COORDINATOR, W0))
    bench.do(Exited(W0, -signal.SIGKILL))
    bench.do(Exited(W0, -signal.SIGKILL))
    assert bench.lifecycle.state_of(W0) is State.WAITING
    assert bench.do(StopRequested()) == [Signal(COORDINATOR, signal.SIGTERM)]
    assert bench.after(10_000) == [Signal(COORDINATOR, signal.SIGKILL)]


def test_a_stop_of_nothing_finishes_at_once() -> None:
    assert Bench(()).do(StopRequested()) == [Finish(0)]


def test_a_process_that_is_not_wanted_any_more_is_stopped_and_forgotten() -> None:
    bench = Bench()
    assert bench.do(Wanted((ROUTER, COORDINATOR, W0))) == [Signal(W1, signal.SIGTERM)]
    assert bench.after(LIMITS.stop_timeout_ms) == [Signal(W1, signal.SIGKILL)]
    assert bench.do(Exited(W1, -signal.SIGKILL)) == []
    assert bench.lifecycle.state_of(W1) is None


def test_a_process_that_is_wanted_again_while_it_stops_is_started_when_it_is_gone() -> None:
    bench = Bench()
    bench.do(Wanted((ROUTER, COORDINATOR, W0)))
    assert bench.do(Wanted(ALL)) == []
    assert bench.do(Exited(W1, 0)) == [Start(W1)]


def test_a_process_that_the_host_refuses_counts_as_a_crash() -> None:
    lifecycle = Lifecycle(LIMITS)
    assert lifecycle.handle(Wanted((W0,)), 0) == [Start(W0)]
    effects = lifecycle.handle(StartFailed(W0, "Cannot allocate memory"), 0)
    assert [type(effect) for effect in effects] == [Report, Start]


@pytest.mark.parametrize(
    "event", [Exited(ids.worker_number(9), 0), Started(W0, 5), StartFailed(W0, "x"), Started(ids.worker_number(9), 5)]
)
def test_an_event_that_the_state_does_not_allow_changes_nothing(event: Event) -> None:
    bench = Bench()
    before = bench.states()
    with pytest.raises(IllegalTransition):
        bench.do(event)
    assert bench.states() == before


def test_whatever_happens_a_stop_ends_and_nothing_wanted_is_forgotten() -> None:
    """Random deaths, wishes and times: no wanted process is without a state, and every stop finishes in its time."""
    seed = random.randrange(1 << 30)
    for turn in range(150):
        chance = random.Random(seed + turn)
        bench = Bench()
        for _ in range(chance.randrange(60)):
            if bench.lifecycle.is_stopping:
                break
            bench.after(chance.choice((0, 1, 50, 3_000)))
            running = bench.lifecycle.running()
            if running and chance.random() < 0.8:
                bench.do(Exited(chance.choice(list(running)), chance.choice((0, 1, 70, -9, -11))))
            else:
                bench.do(Wanted(tuple(chance.sample(ALL, chance.randrange(1, 5)))))
        if not bench.lifecycle.is_stopping:
            bench.do(StopRequested())
        began_ms = bench.now_ms
        while not any(isinstance(effect, Finish) for effect in bench.log):
            killed = [effect.number for effect in bench.after(100) if isinstance(effect, Signal) and effect.signal == 9]
            for number in killed:
                bench.do(Exited(number, -9))
            assert bench.now_ms - began_ms <= LIMITS.stop_timeout_ms + 200, f"seed {seed + turn}"
        assert bench.lifecycle.running() == {}, f"seed {seed + turn}"
        assert all(state not in HAS_PROCESS for state in bench.states().values()), f"seed {seed + turn}"
