"""Places in the protocol at which a test kills the process that comes by: before or after a named function.

`install` wraps the functions, in the processes of a broker that a test has started (`tests.killed_broker`); the product
knows nothing of it. Which place is armed, and how often it is passed before it kills, stands in a file that all
processes of the test map. Whoever kills itself disarms the place first.
"""

from __future__ import annotations

import importlib
import mmap
import os
import random
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zbroker.load.plan import Plan, Target

FUNCTIONS = {
    "append": ("zbroker.storage.log", "Log.append"),
    "roll": ("zbroker.storage.log", "Log.roll"),
    "copy": ("zbroker.storage.copied_log", "CopiedLog.append_copied"),
    "cut": ("zbroker.storage.copied_log", "CopiedLog.truncate_to"),
    "publish": ("zbroker.workers.leader", "Leader._publish"),
    "acknowledge": ("zbroker.workers.leader", "Leader._acknowledge"),
    "restate": ("zbroker.workers.leader", "Leader._restate"),
    "send to followers": ("zbroker.workers.feed", "Feed._send"),
    "subscribe": ("zbroker.workers.follower", "Follower._subscribe"),
    "confirm": ("zbroker.workers.follower", "Follower._confirm"),
    "show a copy": ("zbroker.workers.follower", "Follower._publish"),
    "propose in-sync": ("zbroker.workers.other_copies", "OtherCopies.propose"),
    "open": ("zbroker.workers.grants", "Grants._open"),
    "lead": ("zbroker.workers.grants", "Grants._lead"),
    "demote": ("zbroker.workers.grants", "Grants._demote"),
    "promote": ("zbroker.workers.grants", "Grants._promote"),
    "take the tail over": ("zbroker.workers.grants", "complete_tail"),
    "give up a copy": ("zbroker.workers.grants", "Grants._end"),
    "write metadata": ("zbroker.workers.metadata_log", "MetadataLog.append"),
    "sync metadata": ("zbroker.workers.coordinator", "Coordinator._sync"),
    "send a grant": ("zbroker.workers.coordinator", "Coordinator._send_grant"),
    "send a revocation": ("zbroker.workers.coordinator", "Coordinator._send_revoke"),
    "publish a leader": ("zbroker.workers.coordinator", "Coordinator._publish_leader"),
    "fence": ("zbroker.workers.coordinator", "Coordinator._fence_process"),
    "keep producers": ("zbroker.workers.producer_state", "ProducerState.save"),
}
GROUP_FUNCTIONS = {
    "make a slot file": ("zbroker.workers.slot_files", "SlotFiles.make"),
    "open a slot": ("zbroker.workers.slot_files", "SlotFiles.open"),
    "close a slot": ("zbroker.workers.slot_files", "SlotFiles.close"),
    "write offsets": ("zbroker.workers.offset_log", "OffsetLog.append"),
    "fold a slot": ("zbroker.workers.slot_files", "SlotFiles.set_folded"),
    "show a member's epoch": ("zbroker.workers.slot_files", "SlotFiles.set_member"),
    "remove a slot file": ("zbroker.workers.slot_files", "SlotFiles.remove"),
    "answer a member": ("zbroker.workers.groups", "pack_reply"),
}
ALL_FUNCTIONS = {**FUNCTIONS, **GROUP_FUNCTIONS}
ALL_POINTS = tuple(f"{when} {name}" for name in ALL_FUNCTIONS for when in ("before", "after"))
GROUP_POINTS = tuple(f"{when} {name}" for name in GROUP_FUNCTIONS for when in ("before", "after"))
POINTS = tuple(f"{when} {name}" for name in FUNCTIONS for when in ("before", "after"))
HOT = ("append", "copy", "publish", "acknowledge", "send to followers", "confirm", "show a copy")
FILE_VARIABLE = "ZBROKER_TEST_FAULT_POINTS"
PASSES_MAX = 60
PATIENCE_S = 1.5
PAUSE_S = 0.25
_CELL = struct.Struct("<qq")


class Points:
    """The shared file: the armed point's number from 1 on, or 0; and how many passes are left to it."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(fd, _CELL.size)
        self._map = mmap.mmap(fd, _CELL.size)
        os.close(fd)
        self._cells = memoryview(self._map).cast("q")

    @property
    def armed(self) -> int:
        """0: none."""
        return self._cells[0]

    def arm(self, number: int, passes: int = 1) -> None:
        """Kill whoever is at this point after so many passes; number 0 disarms."""
        self._cells[1] = passes
        self._cells[0] = number

    def passed(self, number: int) -> None:
        """A process is at a point. It may not return."""
        if self._cells[0] != number:
            return
        self._cells[1] -= 1
        if self._cells[1] <= 0:
            self._cells[0] = 0
            os.kill(os.getpid(), signal.SIGKILL)


def install() -> None:
    """Wrap every function in this process."""
    points = Points(Path(os.environ[FILE_VARIABLE]))
    for index, (module, name) in enumerate(ALL_FUNCTIONS.values()):
        owner: Any = importlib.import_module(module)
        *path, last = name.split(".")
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, last, _wrapped(getattr(owner, last), points, 2 * index + 1))


def _wrapped(function: Callable[..., Any], points: Points, number: int) -> Callable[..., Any]:
    def call(*args: Any, **named: Any) -> Any:
        points.passed(number)
        found = function(*args, **named)
        points.passed(number + 1)
        return found

    return call


class Killer:
    """Arms one point after the other for as long as a run has faults. `fired` are those that killed somebody."""

    def __init__(self, path: Path) -> None:
        self.points = Points(path)
        self.fired: set[str] = set()

    @contextmanager
    def over(self, plan: Plan, target: Target, places: list[tuple[str, int]]) -> Iterator[None]:
        """Kill."""
        end = threading.Event()
        thread = threading.Thread(target=self._run, args=(random.Random(f"points {plan.seed}"), end))
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
            self.points.arm(0)

    def _run(self, rng: random.Random, end: threading.Event) -> None:
        while not end.is_set():
            for name in rng.sample(POINTS, len(POINTS)):
                is_hot = name.partition(" ")[2] in HOT
                self.points.arm(ALL_POINTS.index(name) + 1, rng.randint(1, PASSES_MAX if is_hot else 3))
                deadline_s = time.monotonic() + PATIENCE_S
                while self.points.armed and time.monotonic() < deadline_s and not end.is_set():
                    time.sleep(0.005)
                if not self.points.armed:
                    self.fired.add(name)
                if end.wait(PAUSE_S):
                    return
