"""Whether to watch a word for a moment before sleeping: the rule, and the watching, for clients and workers alike.

A sleep and a wake-up cost both sides: the ringer writes into a pipe, the sleeper comes back later. How much depends on
the host: 10 us where cores wake up quickly, 100 us and more where a hypervisor has to start a halted one. Watching
costs a core, and on a busy host the one that the awaited process needs. So it is tried which of the two is faster, and
a waiter watches

  - while that has paid: of `TRIAL_WAITS` waits that are watched and as many that are not, the watched ones took less
    than `PAYS_BELOW` of the time. What was found out holds for `TERM_WAITS` waits;
  - while most waits of late ended within the time of a spin, with one try in `PROBE_EVERY` to notice when they do;
  - not while somebody else wants the core: a step of the watch that took longer than `PREEMPTED_NS` says that another
    process ran here meanwhile. Then it rests, twice as long each time that happens again, up to `REST_MAX_NS`;
  - never in the way of who wants this core: each step yields it. On a host of few cores that is the reader who was
    woken for the very record whose acknowledgement is watched for;
  - at once, for `EXPECTED_NS`, when it was woken and found nothing: who rang is about to write what it rang for (see
    `doorbell`, "ringing ahead").
"""

from __future__ import annotations

import time
from collections.abc import Callable
from os import sched_yield
from typing import Final

NS_PER_US: Final = 1_000
PROBE_EVERY: Final = 64
SCORE_MAX: Final = 8
PREEMPTED_NS: Final = 60_000
REST_MIN_NS: Final = 2_000_000
REST_MAX_NS: Final = 128_000_000
TRIAL_WAITS: Final = 32
TERM_WAITS: Final = 2_048
PAYS_BELOW: Final = 0.8
EXPECTED_NS: Final = 150_000
COUNTED_MAX_NS: Final = 2_000_000  # one wait for something else must not decide a trial


class SpinWatch:
    """See the module. One thread uses it. A single core: it never watches; `spin_us` 0: only for what was announced."""

    __slots__ = (
        "_clock_ns",
        "_has_cores",
        "_idle_since_ns",
        "_is_counted",
        "_is_watching",
        "_left",
        "_rest_ns",
        "_rest_until_ns",
        "_score",
        "_slept_count",
        "_spent_asleep_ns",
        "_spent_ns",
        "_spin_ns",
        "_step",
    )

    def __init__(self, spin_us: int, core_count: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._has_cores = core_count > 1
        self._spin_ns = spin_us * NS_PER_US if self._has_cores else 0
        self._clock_ns = clock_ns
        self._score = SCORE_MAX
        self._slept_count = 0
        self._idle_since_ns = 0
        self._rest_ns = REST_MIN_NS
        self._rest_until_ns = 0
        # A trial: step 0 sleeps, step 1 watches; step 2 is the term that its outcome holds for.
        self._step = 0
        self._left = TRIAL_WAITS
        self._is_watching = False
        self._is_counted = False
        self._spent_ns = self._spent_asleep_ns = 0

    def note_work(self) -> None:
        """What was waited for has come: judge how long it took."""
        if self._idle_since_ns:
            took_ns = self._clock_ns() - self._idle_since_ns
            self._score = min(SCORE_MAX, self._score + 2) if took_ns <= self._spin_ns else max(0, self._score - 1)
            self._idle_since_ns = 0
            if self._is_counted:
                self._spent_ns += min(took_ns, COUNTED_MAX_NS)
                self._left -= 1
                if not self._left:
                    self._next_step()

    def _next_step(self) -> None:
        """A step of a trial, or a term, is over."""
        if self._step == 0:
            self._spent_asleep_ns = self._spent_ns
        is_worth_it = self._step == 1 and self._spent_ns < PAYS_BELOW * self._spent_asleep_ns
        self._step = (self._step + 1) % 3
        self._is_watching = self._step == 1 or is_worth_it
        self._left = TERM_WAITS if self._step == 2 else TRIAL_WAITS
        self._spent_ns = 0

    def watch(self, is_ready: Callable[[], bool]) -> bool:
        """Watch for at most the spin time, if that may pay; nothing was ready just before. Returns whether it is."""
        if not self._spin_ns:
            return False
        clock_ns = self._clock_ns
        now_ns = self._idle_since_ns = clock_ns()
        self._is_counted = False
        if now_ns < self._rest_until_ns:
            return False
        self._slept_count += 1
        if self._score:
            self._is_counted = True
            if not self._is_watching:
                return False
        elif self._slept_count % PROBE_EVERY:
            return False
        end_ns = now_ns + self._spin_ns
        while not is_ready():
            sched_yield()
            before_ns, now_ns = now_ns, clock_ns()
            if now_ns - before_ns > PREEMPTED_NS:
                self._rest_until_ns = now_ns + self._rest_ns
                self._rest_ns = min(REST_MAX_NS, 2 * self._rest_ns)
                return is_ready()
            if now_ns >= end_ns:
                return False
        self._rest_ns = max(REST_MIN_NS, self._rest_ns - self._rest_ns // 8)
        return True

    def watch_for_announced(self, is_ready: Callable[[], bool]) -> bool:
        """Somebody has rung, perhaps ahead: watch for what is to come, whatever was found out of other waits. It is a
        part of the sleep that the ring has ended, and is judged with it. Also while it rests: to sleep again would cost
        a second wake-up."""
        if not self._has_cores:
            return False
        clock_ns = self._clock_ns
        end_ns = clock_ns() + EXPECTED_NS
        while not is_ready():
            sched_yield()
            if clock_ns() >= end_ns:
                return False
        return True
