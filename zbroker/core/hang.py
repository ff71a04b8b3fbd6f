"""Which processes hang: beats in, verdicts out. No I/O, no clock.

A process writes its beat on its board at each turn of its loop, five times a second at the least. One whose beat does
not change for `timeout_ms` hangs, unless it says that it waits for the disk, or the kernel says that it does (state D),
or it is starting. One that was stopped (state T) hangs whatever it says: it cannot know that it was. The time is
counted from the beat itself, and `next_look_ms` says when the next verdict may be due: between two beats nobody need
look more often.

One that wants to run and is not let (`is_starved`) does not hang either: on a host with too much to do its end would
bring an election and a start more to do, and its successor would have to wait for a core as well.

Guarantees: time in which the detector itself did not look does not count. Its clock goes on by `STEP_MAX_MS` between
two looks at most, so when the whole host stands still, and goes on, nobody is killed for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from zbroker.clock import NS_PER_MS

STEP_MAX_MS: Final = 200
STOPPED: Final = frozenset({"T", "t"})
WAITS_FOR_DISK: Final = "D"
GONE: Final = frozenset({"Z", "X"})
RUNNABLE: Final = "R"
RAN_ENOUGH_MS: Final = 100  # a turn of a loop takes a hundredth of it
STARVED_TIMES_MAX: Final = 10  # so much longer than another one a starved process may be silent


class Beat(Struct, frozen=True):
    """What a process's board shows."""

    incarnation: int
    beat_ns: int
    does_io: bool
    is_starting: bool


class _Seen(Struct):
    beat_ns: int
    since_ns: int  # on the detector's own clock


class HangDetector:
    """See the module."""

    def __init__(self, timeout_ms: int) -> None:
        """`timeout_ms` 0: nobody ever hangs."""
        self._timeout_ns = timeout_ms * NS_PER_MS
        self._seen: dict[int, _Seen] = {}
        self._clock_ns = 0
        self._looked_ns = -1
        self.next_look_ms: float = STEP_MAX_MS
        """How long the next look may wait, for no verdict to be late; never longer than a step of the clock."""
        self.silent: list[int] = []
        """The incarnations whose beat was the same in the last two looks."""

    def look(self, now_ns: int, beats: Iterable[Beat]) -> list[Beat]:
        """The processes whose beat has not changed for too long. `hangs` decides, with what the kernel says of each."""
        looked_at_ns = self._clock_ns
        if self._looked_ns >= 0:
            self._clock_ns += min(max(0, now_ns - self._looked_ns), STEP_MAX_MS * NS_PER_MS)
        self._looked_ns = now_ns
        seen: dict[int, _Seen] = {}
        late = []
        self.silent = []
        left_ns = STEP_MAX_MS * NS_PER_MS
        for beat in beats:
            known = self._seen.get(beat.incarnation)
            if known is None:
                known = _Seen(beat.beat_ns, self._clock_ns)
            elif known.beat_ns != beat.beat_ns:
                # It came after the last look, whatever its number says.
                known = _Seen(beat.beat_ns, max(looked_at_ns, self._clock_ns - max(0, now_ns - beat.beat_ns)))
            else:
                self.silent.append(beat.incarnation)
            seen[beat.incarnation] = known
            if self._timeout_ns:
                until_late_ns = known.since_ns + self._timeout_ns - self._clock_ns
                if until_late_ns <= 0:
                    late.append(beat)
                else:
                    left_ns = min(left_ns, until_late_ns)
        self._seen = seen
        self.next_look_ms = left_ns / NS_PER_MS
        return late

    def silence_ms(self, incarnation: int) -> float:
        """For how long the beat of a process that was looked at has not changed."""
        return (self._clock_ns - self._seen[incarnation].since_ns) / NS_PER_MS

    def is_starved(self, incarnation: int, thread_states: Iterable[str], ran_ms: float) -> bool:
        """Whether a silent process is only kept from running: one of its threads could run, and all of them together
        have run for `ran_ms` since it fell silent, which is not enough for a turn of its loop."""
        wants_to_run = RUNNABLE in thread_states and ran_ms < RAN_ENOUGH_MS
        return wants_to_run and self.silence_ms(incarnation) * NS_PER_MS < STARVED_TIMES_MAX * self._timeout_ns


def hangs(beat: Beat, kernel_state: str) -> bool:
    """Whether a process hangs whose beat is old; `kernel_state` is its state in /proc/PID/stat."""
    if kernel_state in STOPPED:
        return True
    return not (beat.does_io or beat.is_starting or kernel_state == WAITS_FOR_DISK or kernel_state in GONE)


def is_stuck(thread_states: Iterable[str]) -> bool:
    """Whether a killed process hangs in the kernel: each of its threads is dead, or in uninterruptible sleep."""
    states = list(thread_states)
    return WAITS_FOR_DISK in states and all(state == WAITS_FOR_DISK or state in GONE for state in states)
