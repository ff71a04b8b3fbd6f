"""T07: the power goes at any moment of a copy's life, and any part of what was not synced with it.

ZBROKER_CRASH_STATES says how many states are looked at (the soak: 1,000,000); ZBROKER_SEED draws another life.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.crash_script import Life, check_copy, check_metadata, open_copy
from tests.simulated_disk import Disk, SimulatedFiles

STATES = int(os.environ.get("ZBROKER_CRASH_STATES", "12000"))
SEED = int(os.environ.get("ZBROKER_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
STATES_A_LIFE = 1_500
DISK = Path("/disk")


class PowerCuts:
    """Cuts the power before every operation of a life, and judges each disk that this may leave."""

    def __init__(self, seed: int, states_a_moment: int, files_class: type[SimulatedFiles] = SimulatedFiles) -> None:
        self.states = 0
        self.moments = 0
        self._seed = seed
        self._states_a_moment = states_a_moment
        self._files_class = files_class
        self._disk = Disk(str(DISK))
        self._files = files_class(self._disk, 1)
        self._life = Life(DISK / "p", self._files, seed)

    def run(self) -> None:
        """Live, and die again and again."""
        self._files.before_change = self._cut
        self._life.run()
        self._cut()

    def _cut(self) -> None:
        self.moments += 1
        for number in range(self._states_a_moment):
            self.states += 1
            generator = random.Random(f"{self._seed} {self.moments} {number}")
            try:
                self._judge(generator)
            except Exception as error:
                where = f"ZBROKER_SEED={self._seed}, before operation {self.moments}, state {number}"
                raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error

    def _judge(self, generator: random.Random) -> None:
        """Open what is left; now and then lose the power in the middle of that as well; open once more."""
        disk = self._disk.after_power_cut(generator)
        promises = self._life.promises
        for boot in (2, 3):
            files = self._files_class(disk, boot)
            log = open_copy(DISK / "p", files)
            found = check_copy(log, files, promises, has_power=False)
            check_metadata(DISK / "metadata", files, promises, has_power=False)
            log.close(clean=False)
            if generator.random() < 0.8:
                break
            disk = disk.after_power_cut(generator)
        if generator.random() < 0.7:
            return
        again = self._files_class(disk, boot)
        log = open_copy(DISK / "p", again)
        assert check_copy(log, again, promises, has_power=False) == found, "the second opening finds something else"
        log.close(clean=False)


def test_t07_no_power_cut_loses_what_was_synced_nor_needs_a_person(request: pytest.FixtureRequest) -> None:
    request.node.add_report_section("call", "seed", f"ZBROKER_SEED={SEED}")
    states, lives = 0, 0
    while states < STATES:
        moments = PowerCuts(SEED + lives, 0)
        moments.run()
        cuts = PowerCuts(SEED + lives, -(-STATES_A_LIFE // moments.moments))
        cuts.run()
        states += cuts.states
        lives += 1


class SyncsNothing(SimulatedFiles):
    """T02: says that the bytes are on the disk, and they are not."""

    def fdatasync(self, fd: int) -> None:
        self.before_change()


class SyncsNoNames(SimulatedFiles):
    """T02: says that the names are on the disk, and they are not."""

    def fsync_directory(self, path: Path) -> None:
        self.before_change()


@pytest.mark.parametrize("bad", [SyncsNothing, SyncsNoNames])
def test_t02_a_missing_fsync_of_a_file_or_of_a_directory_is_found(bad: type[SimulatedFiles]) -> None:
    with pytest.raises(AssertionError, match=r"ZBROKER_SEED=1, .*: (AssertionError|CopyDamagedError)"):
        PowerCuts(1, 5, bad).run()
