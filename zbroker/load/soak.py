"""Long runs in rounds, each a chaos run or a test of the repository with its own seed; the sum is kept in a file.

Guarantees: what a round found is in the file before the next begins, so that a run that was ended goes on where it was;
a failed round is kept with its seed, and a round of which a test was skipped has failed. The profiles of tests need a
checkout of the repository around the package.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from zbroker.errors import BrokerError
from zbroker.load.chaos import Watch, percentile, run_chaos
from zbroker.load.plan import ChaosError, Plan
from zbroker.shm.owned_directory import OwnedDirectory

_ROOT: Final = Path(__file__).resolve().parents[2]
FAILURES_MAX: Final = 20
COUNTS_VARIABLE: Final = "ZBROKER_SOAK_COUNTS"
"""The file to which a test of a profile may add what it counted: lines of a number, a blank, and what it is."""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A long run: what it is, how many rounds by default, and what a round is: a plan, or tests and their settings."""

    text: str
    rounds: int
    plan: dict[str, Any] = {}
    tests: str = ""
    seeds_variable: str = ""
    seeds_a_round: int = 0


PROFILES: Final[dict[str, Profile]] = {
    "kills": Profile(
        text="SIGKILL of random processes: 50 a round, 1,000 in all (T16)",
        rounds=20,
        plan={"duration_s": 120.0, "fault_interval_s": 0.9, "pauses": 0, "faults_max": 50},
    ),
    "pauses": Profile(
        text="SIGSTOP of random processes for 0.1 to 10 s: 25 a round, 500 in all (T17)",
        rounds=20,
        plan={
            "duration_s": 180.0,
            "fault_interval_s": 4.0,
            "kills": 0,
            "pauses": 1,
            "pause_max_s": 10.0,
            "faults_max": 25,
        },
    ),
    "moves": Profile(
        text="copies moved and processes emptied, with kills and restarts in between: 200 moves and more (T25)",
        rounds=10,
        plan={
            "duration_s": 60.0,
            "fault_interval_s": 2.0,
            "kills": 1,
            "pauses": 0,
            "restarts": 1,
            "move_interval_s": 0.05,
            "partitions": 10,
            "min_insync_replicas": 3,
        },
    ),
    "mixed": Profile(
        text="kills, pauses, restarts and moves mixed, a quarter of the time quiet, one hour (T28)",
        rounds=20,
        plan={
            "duration_s": 180.0,
            "fault_interval_s": 1.5,
            "kills": 2,
            "pauses": 1,
            "restarts": 1,
            "move_interval_s": 1.0,
        },
    ),
    "points": Profile(
        text="kills just before and after each step of the protocol: 500 and more (T20)",
        rounds=20,
        tests="tests/system/test_fault_points.py",
        seeds_variable="ZBROKER_POINTS_S",
        seeds_a_round=60,
    ),
    "network": Profile(
        text="messages lost, doubled, delayed, swapped, damaged and cut off on tcp (T21)",
        rounds=100,
        tests="tests/system/test_bad_network.py",
    ),
    "clock": Profile(
        text="wall clocks that jump back and forth (T22)", rounds=100, tests="tests/system/test_clock_jumps.py"
    ),
    "simulation": Profile(
        text="the replication machines under a simulated network and disks: 100,000 seeds (T13)",
        rounds=400,
        tests="tests/sim/test_replication_faults.py",
        seeds_variable="ZBROKER_SIM_SEEDS",
        seeds_a_round=250,
    ),
    "search": Profile(
        text="every history of three copies with few records and deaths, up to 500,000 states of each kind (T15)",
        rounds=1,
        tests="tests/sim/test_replication_exhaustive.py",
        seeds_variable="ZBROKER_SEARCH_STATES",
        seeds_a_round=500_000,
    ),
    "storage": Profile(
        text="crashes of the storage at every call, and lost unsynced writes (T06, T07)",
        rounds=50,
        tests="tests/fault -k (t06 or t07)",
        seeds_variable="ZBROKER_CRASH_STATES",
        seeds_a_round=20_000,
    ),
    "power": Profile(
        text="power cuts of a loop-mounted ext4: 2,000 (T08; needs root)",
        rounds=40,
        tests="tests/fault -k t08",
        seeds_variable="ZBROKER_POWER_CUTS",
        seeds_a_round=50,
    ),
    "bugs": Profile(
        text="bugs put in on purpose, each found by the test that is there for it (T02)", rounds=1, tests="tests -k t02"
    ),
}


class State(msgspec.Struct):
    """What has been done, as the file keeps it."""

    profile: str
    rounds: int
    next_seed: int
    rounds_done: int = 0
    faults: dict[str, int] = {}
    sent: int = 0
    acknowledged: int = 0
    read: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    moves: dict[str, int] = {}
    seconds: float = 0.0
    waits_ms: list[float] = []
    passed: int = 0
    counts: dict[str, int] = {}
    failures: list[str] = []


class SoakError(RuntimeError):
    """The run cannot be made."""


class _Own(NamedTuple):
    bootstrap_servers: str
    boards_dir: Path


Outcome = Literal["passed", "failed"]


class Soak:
    """A long run and what it has come to."""

    def __init__(self, state: State, duration_s: float | None = None) -> None:
        """`duration_s`: of the faults of a round, in place of the profile's."""
        self.state = state
        self._changes = {} if duration_s is None else {"duration_s": duration_s}
        self._profile = PROFILES[state.profile]

    @classmethod
    def load(cls, path: Path, profile: str, seed: int, rounds: int | None, duration_s: float | None = None) -> Soak:
        """Go on with the file's run, or begin one. Raises SoakError when the file is another profile's."""
        if not path.exists():
            return cls(State(profile, rounds or PROFILES[profile].rounds, seed), duration_s)
        try:
            state = msgspec.json.decode(path.read_bytes(), type=State)
        except msgspec.DecodeError as error:
            raise SoakError(f"{path} is no state of a soak: {error}; name another with --state") from error
        if state.profile != profile:
            raise SoakError(f"{path} is of the profile {state.profile!r}; name another with --state")
        if rounds is not None:
            state.rounds = rounds
        return cls(state, duration_s)

    def check_place(self, path: Path) -> None:
        """Raise SoakError where `save` could not keep the state, before there is something to keep."""
        aside = _aside(path)
        try:
            aside.write_bytes(b"")
            aside.unlink()
        except OSError as error:
            raise SoakError(
                f"the state cannot be kept in {path}: {error.strerror}; name another with --state"
            ) from error

    def save(self, path: Path) -> None:
        """Keep what is done."""
        aside = _aside(path)
        aside.write_bytes(msgspec.json.format(msgspec.json.encode(self.state), indent=2))
        os.replace(aside, path)

    @property
    def rounds(self) -> int:
        """How many there shall be."""
        return self.state.rounds

    @property
    def rounds_done(self) -> int:
        """How many there were."""
        return self.state.rounds_done

    @property
    def next_seed(self) -> int:
        """The seed of the next round."""
        return self.state.next_seed

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.state.rounds_done >= self.state.rounds

    @property
    def is_sound(self) -> bool:
        """Whether no round broke a promise."""
        return not self.state.failures

    def round(self, watch: Watch) -> None:
        """Make one round. A round that cannot be made counts as failed."""
        state = self.state
        failure = self._chaos(watch) if self._profile.plan else self._tests()
        if failure is not None and len(state.failures) < FAILURES_MAX:
            state.failures.append(f"seed {state.next_seed}: {failure}")
        state.next_seed += self._profile.seeds_a_round or 1
        state.rounds_done += 1

    def _chaos(self, watch: Watch) -> str | None:
        from zbroker.testing import Broker, BrokerFailedError

        plan = Plan(seed=self.state.next_seed, **self._profile.plan | self._changes)
        own = OwnedDirectory.make(f"zbroker-soak-{plan.seed}-")
        directory = own.path
        try:
            with Broker(workers=2, replicas=2) as broker:
                report = run_chaos(plan, _Own(broker.bootstrap_servers, broker.paths.boards_dir), directory, watch)
        except (ChaosError, BrokerError, BrokerFailedError) as error:
            own.keep()
            return f"{type(error).__name__}: {error} ({directory})"
        except (KeyboardInterrupt, SystemExit):
            own.remove()  # the round is made again
            raise
        state = self.state
        for name, count in report.faults.items():
            state.faults[name] = state.faults.get(name, 0) + count
        state.sent += report.sent
        state.acknowledged += report.acknowledged
        state.read += report.read
        state.lost += report.lost
        state.duplicated += report.duplicated
        state.reordered += report.reordered
        state.seconds += report.seconds
        state.waits_ms = sorted([*state.waits_ms, *report.waits_ms])
        for name, count in report.moves.items():
            state.moves[name] = state.moves.get(name, 0) + count
        if not report.is_sound:
            own.keep()
            return f"{report.examples[:3]} ({directory})"
        own.remove()
        return None

    def _tests(self) -> str | None:
        profile = self._profile
        folder, _, expression = profile.tests.partition(" -k ")
        if not (_ROOT / folder).exists():
            raise SoakError(f"this profile runs {folder}, which is in a checkout of the repository only")
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "-n0", "-p", "no:cacheprovider", folder]
        if expression:
            command += ["-k", expression]
        with tempfile.NamedTemporaryFile("r", prefix="zbroker-soak-") as counts:
            environment = os.environ | {
                "ZBROKER_SEED": str(self.state.next_seed),
                COUNTS_VARIABLE: counts.name,
                **({profile.seeds_variable: str(profile.seeds_a_round)} if profile.seeds_variable else {}),
            }
            done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True)
            for line in counts:
                number, _, what = line.strip().partition(" ")
                self.state.counts[what] = self.state.counts.get(what, 0) + int(number)
        tally = done.stdout.splitlines()[-1] if done.stdout else ""
        self.state.passed += sum(int(found) for found in re.findall(r"(\d+) passed", tally))
        if done.returncode == 0 and "skipped" not in tally:
            return None
        return done.stdout[-1_000:]

    def text(self) -> str:
        """What it has come to, for people."""
        state = self.state
        lines = [f"{state.profile}: {state.rounds_done} of {state.rounds} rounds"]
        if self._profile.plan:
            faults = ", ".join(f"{count} x {name}" for name, count in sorted(state.faults.items()))
            lines += [
                f"{sum(state.faults.values())} faults in {state.seconds:.0f} s: {faults or 'none'}",
                f"{state.acknowledged:,} acknowledged of {state.sent:,}, {state.read:,} read",
                f"{state.lost} lost, {state.duplicated} twice, {state.reordered} out of order",
                "longest wait for an acknowledgement after a fault: "
                f"p50 {percentile(state.waits_ms, 50):.0f} ms, p99 {percentile(state.waits_ms, 99):.0f} ms, "
                f"longest {max(state.waits_ms, default=0):.0f} ms",
            ]
            if state.moves:
                lines.append("moves: " + ", ".join(f"{count} x {name}" for name, count in sorted(state.moves.items())))
        if state.passed:
            lines.append(f"{state.passed} tests passed")
        lines += [f"{count:,} {what}" for what, count in sorted(state.counts.items())]
        lines += [f"FAILED {failure}" for failure in state.failures]
        return "\n".join(lines)


def _aside(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")
