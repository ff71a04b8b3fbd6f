"""What a chaos run is: the load, the faults, the broker, and what may disturb it besides signals."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import msgspec


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One chaos run. Times in seconds, as their names say; the defaults are the load L1 of the test programme.

    With `move_interval_s` copies are moved all the while, one request after another with that pause; `drains` and
    `elections` are the shares of requests that empty a process or send leaders back, to 8 that move one copy.

    Faults come at random moments: a run with `faults_min` takes longer until there were so many, one with `faults_max`
    ends with the last.
    """

    seed: int
    duration_s: float = 60.0
    fault_interval_s: float = 1.2
    kills: int = 3
    pauses: int = 1
    restarts: int = 0
    pause_max_s: float = 3.0
    faults_min: int = 0
    faults_max: int = 0
    move_interval_s: float = 0.0
    drains: int = 1
    elections: int = 1
    roles: frozenset[str] = frozenset({"router", "worker", "replica", "coordinator", "producer", "consumer"})
    topics: int = 2
    partitions: int = 4
    replication_factor: int = 3
    min_insync_replicas: int = 2
    acks: str = "all"
    producers: int = 4
    consumers: int = 2
    records_per_s: int = 1_000
    segment_bytes: int = 256 << 10
    client_settings: dict[str, Any] = {}


class Target(Protocol):
    """The broker that is tried."""

    @property
    def bootstrap_servers(self) -> str:
        """Its address."""

    @property
    def boards_dir(self) -> Path:
        """Where its processes keep their boards."""


class ChaosError(RuntimeError):
    """The run could not be made: the broker or a client did not do what a run needs."""


Disturb = Callable[[Plan, Target, list[tuple[str, int]]], AbstractContextManager[None]]
"""What goes on beside the signals, told the partitions under load: it begins when the context is entered, and has ended
and healed when that is left."""
