"""The parts around the coordinator's state machine, as tests model them: its host, its board, its workers."""

from __future__ import annotations

from typing import Any

from zbroker.core.cluster_state import Site
from zbroker.wire.inner_messages import Held, Register

Key = tuple[int, int]
PARTITIONS_MAX = 500


def site(**changes: Any) -> Site:
    """The coordinator's host, as tests have it."""
    fields: dict[str, Any] = {
        "data_dir": "/data",
        "memory_dir": "/run/memory",
        "further_data_dirs": [],
        "board": "/run/boards/coordinator",
        "incarnation": 7,
        "partitions_max": PARTITIONS_MAX,
        "processes_max": 50,
    }
    return Site(**{**fields, **changes})


class Board:
    """Places for partitions, given out once while the partition exists."""

    def __init__(self) -> None:
        self.slots: dict[Key, int] = {}
        self.leaders: dict[Key, tuple[int, int | None, int | None]] = {}
        self.wanted: list[int] = []
        self.is_ready = False
        self._next = 0

    def claim(self, topic_id: int, partition: int) -> int:
        if (topic_id, partition) not in self.slots:
            self.slots[topic_id, partition] = self._next
            self._next += 1
        return self.slots[topic_id, partition]


class Worker:
    """One incarnation of a process: the partitions it leads and those it follows, with their epochs."""

    def __init__(self, number: int, incarnation: int) -> None:
        self.number = number
        self.incarnation = incarnation
        self.open: dict[Key, tuple[int, int]] = {}  # -> (copy id, epoch)
        self.following: dict[Key, tuple[int, int]] = {}  # -> (copy id, epoch); also what it was only asked to look at
        self.settings: dict[int, dict[str, str]] = {}  # by topic id

    def register(self) -> Register:
        held = [Held(key[0], key[1], copy_id, epoch) for key, (copy_id, epoch) in self.open.items()]
        held += [Held(key[0], key[1], copy_id, epoch, False) for key, (copy_id, epoch) in self.following.items()]
        return Register(self.number, self.incarnation, f"/board-{self.incarnation}", f"/lane-{self.number}", held)
