"""The clients of a chaos run: started, hit, started again as somebody new, and ended in order."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import subprocess
import time
from itertools import count as numbers
from pathlib import Path
from typing import Any, Final

from zbroker import ids
from zbroker.load.chaos_client import ACKNOWLEDGED, ASSIGNED, Task
from zbroker.load.child import start
from zbroker.load.faults import Fault, role_of
from zbroker.load.plan import ChaosError, Plan

DRAIN_PROCESS: Final = 0
RESTART_MAX_S: Final = 2.0
CLIENT_TIMEOUT_S: Final = 120.0
START_TIMEOUT_S: Final = 60.0
ACKNOWLEDGED_OR_ASSIGNED: Final = re.compile(f'^\\["({ACKNOWLEDGED}|{ASSIGNED})"'.encode(), re.MULTILINE)
_ENDED_BY_FAULTS: Final = (-signal.SIGKILL, -signal.SIGTERM)


class Crew:
    """The client processes of a run."""

    def __init__(self, plan: Plan, bootstrap_servers: str, places: list[tuple[str, int]], directory: Path) -> None:
        self._plan = plan
        self._bootstrap_servers = bootstrap_servers
        self._places = places
        self._directory = directory
        self._numbers = numbers(1)
        self._running: dict[str, tuple[int, subprocess.Popen[bytes]]] = {}
        self._due: dict[str, float] = {}  # name -> when to start it again
        self._started: list[tuple[str, int, int]] = []  # name, its number, when
        self.paths: dict[int, Path] = {}

    def start(self) -> None:
        """Start every producer and consumer."""
        for index in range(self._plan.producers):
            self._start(f"producer-{index}")
        for index in range(self._plan.consumers):
            self._start(f"consumer-{index}")

    def wait_until_at_work(self) -> None:
        """Wait until each has been told something: faults before that would hit nobody. Raises ChaosError."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not all(ACKNOWLEDGED_OR_ASSIGNED.search(_read(path)) for path in self.paths.values()):
            for name, (_, process) in self._running.items():
                if process.poll() is not None:
                    raise ChaosError(f"{name} ended at its start with {process.returncode}:\n{self._last_lines(name)}")
            if time.monotonic() > deadline_s:
                raise ChaosError(f"the clients do not get on after {START_TIMEOUT_S:.0f} s")
            time.sleep(0.02)

    def _start(self, name: str) -> None:
        process = next(self._numbers)
        self._started.append((name, process, time.monotonic_ns()))
        self._running[name] = (process, self._spawn(role_of(name), process, f"{name}-{process}"))

    def _spawn(self, role: str, process: int, name: str) -> subprocess.Popen[bytes]:
        plan, path = self._plan, self._directory / f"{name}.jsonl"
        settings: dict[str, Any] = {"bootstrap_servers": self._bootstrap_servers}
        # Half of the clients share memory with the broker, half of them send and fetch messages.
        settings["transport"] = "auto" if process % 2 else "zmq"
        if role == "producer":
            settings |= {
                "acks": plan.acks,
                "delivery_timeout_ms": 120_000,
                "enable_idempotence": plan.acks in ("all", "fsync"),
            }
        else:
            settings |= {"auto_offset_reset": "earliest"}
        settings |= plan.client_settings
        task = Task(
            role="producer" if role == "producer" else "consumer",
            process=process,
            path=str(path),
            partitions=self._places,
            settings=settings,
            seed=plan.seed * 1_000_003 + process,
            records_per_s=max(1, plan.records_per_s // max(1, plan.producers)),
        )
        self.paths[process] = path
        with (self._directory / f"{name}.log").open("wb") as errors:
            return start("zbroker.load.chaos_client", task, stdout=errors, stderr=errors)

    def processes(self) -> dict[str, int]:
        """name -> incarnation of the clients that live."""
        found = {}
        for name, (_, process) in self._running.items():
            with contextlib.suppress(ProcessLookupError):
                if process.poll() is None:
                    found[name] = ids.incarnation_of(process.pid)
        return found

    def paused_by(self, faults: list[Fault]) -> set[int]:
        """The numbers of the clients that were paused."""
        paused = [(fault.name, fault.at_ns) for fault in faults if fault.kind == "pause"]
        return {
            max(number for name, number, since_ns in self._started if name == hit and since_ns <= at_ns)
            for hit, at_ns in paused
            if role_of(hit) in ("producer", "consumer")
        }

    def replace_dead(self, rng: random.Random) -> None:
        """Start clients again that were killed, some time after; each comes back as somebody new."""
        now_s = time.monotonic()
        for name, (_, process) in list(self._running.items()):
            if process.poll() is None:
                continue
            if process.returncode not in _ENDED_BY_FAULTS:
                raise ChaosError(f"{name} ended by itself with {process.returncode}:\n{self._last_lines(name)}")
            self._due.setdefault(name, now_s + rng.uniform(0, RESTART_MAX_S))
            if self._due[name] <= now_s:
                del self._due[name]
                _close(process)
                self._start(name)

    def _last_lines(self, name: str) -> str:
        number = self._running[name][0]
        return (self._directory / f"{name}-{number}.log").read_text(errors="replace")[-2_000:]

    def finish(self) -> int:
        """Let the producers end, then the consumers, then drain. How many did not end as they should."""
        bad = 0
        for role in ("producer", "consumer"):
            found = [p for name, (_, p) in self._running.items() if role_of(name) == role]
            bad += sum(not _end(process) for process in found)
        drain = self._spawn("consumer", DRAIN_PROCESS, "drain")
        bad += not _end(drain)
        return bad

    def kill(self) -> None:
        """End whatever still runs."""
        for _, process in self._running.values():
            if process.poll() is None:
                process.kill()
            _close(process)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _end(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.communicate(b"finish\n", timeout=CLIENT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    return process.returncode in (0, *_ENDED_BY_FAULTS)


def _close(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
