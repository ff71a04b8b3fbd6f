"""What every system that is compared can be asked for, and what it must not do.

A system is started on 127.0.0.1 with free ports and its data in a directory of the caller's. Every measured span is in
a `Span`: it begins when the client is connected and has done one round trip, and ends when everything is acknowledged
(produce) or read (consume); values are made beforehand. An acknowledgement means the same for all: the record is in the
page cache of every copy that must have it, and no fsync was waited for.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from bench.peers.processes import cpu_s

TIMEOUT_S = 120.0
_SPIN_S = 0.000_4
_ASYNC_SPIN_S = 0.002  # an event loop sleeps in whole milliseconds

OwnTool = Callable[[str, str, int, int], dict[str, float]]
"""(address, topic, count of records, their size in bytes) to the rates that the tool tells."""


class MissingError(Exception):
    """A system cannot be run here: `what` was not found, `command` installs it."""

    def __init__(self, what: str, command: str) -> None:
        super().__init__(f"{what}; install it with: {command}")
        self.what = what
        self.command = command


class Span:
    """Seconds on the clock, and CPU seconds of this process and of the broker's, between begin and end."""

    def __init__(self, pids: Callable[[], Sequence[int]]) -> None:
        self._pids = pids
        self.wall_s = self.client_cpu_s = self.broker_cpu_s = 0.0

    def __enter__(self) -> Self:
        self._watched = list(self._pids())
        self.broker_cpu_s -= sum(map(cpu_s, self._watched))
        self.client_cpu_s -= time.process_time()
        self.wall_s -= time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wall_s += time.perf_counter()
        self.client_cpu_s += time.process_time()
        self.broker_cpu_s += sum(map(cpu_s, self._watched))

    def figures(self, count: int, size_bytes: int) -> dict[str, float]:
        """The rates, and the CPU time of a record over all processes."""
        return {
            "records_per_s": count / self.wall_s,
            "mb_per_s": count * size_bytes / self.wall_s / 1e6,
            "cpu_us": (self.client_cpu_s + self.broker_cpu_s) / count * 1e6,
            "broker_cpu_us": self.broker_cpu_s / count * 1e6,
        }


class System(ABC):
    """One broker and its best Python client. Methods are called by one thread."""

    name: ClassVar[str]
    produce_ways: ClassVar[tuple[str, ...]]
    """Names of its calls to produce: for each record first, the batch call last."""
    consume_ways: ClassVar[tuple[str, ...]]
    settings: ClassVar[dict[str, str]]
    """What differs from the defaults, in words, for the result."""
    slowness: ClassVar[int] = 1
    """It is given so many times fewer records in a throughput run, so that a run takes about a second."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.address = ""
        self._topics = 0

    @classmethod
    @abstractmethod
    def check(cls) -> str:
        """Give the versions of server and client. Raises MissingError."""

    @abstractmethod
    def prepare(self) -> None:
        """What is done once before the first start and is not the start: formatting a directory."""

    @abstractmethod
    def start(self) -> None:
        """Start all processes; it answers clients when this returns."""

    @abstractmethod
    def stop(self) -> None:
        """End all processes. Its data are of no use any more."""

    @abstractmethod
    def pids(self) -> list[int]:
        """All processes of the broker."""

    def new_name(self) -> str:
        """A name that no topic has."""
        self._topics += 1
        return f"bench-{self._topics}"

    @abstractmethod
    def make_topic(self) -> str:
        """Make a topic of one partition and give its name."""

    @abstractmethod
    def remove_topic(self, topic: str) -> None:
        """Remove a topic with its data."""

    @abstractmethod
    def produce(self, way: str, topic: str, values: list[bytes], span: Span) -> None:
        """Produce all; all are acknowledged at the end of the span."""

    @abstractmethod
    def consume(self, way: str, topic: str, count: int, span: Span) -> None:
        """Read so many records from the topic's begin, each value as bytes, or as the way says."""

    def own_tools(self) -> Mapping[str, OwnTool]:
        """Its own tools to measure with: what they do, "produce" or "consume", and how."""
        return {}

    @abstractmethod
    def acknowledge(self, topic: str, value: bytes, tries: int, warm: int) -> list[float]:
        """Produce one and wait for its acknowledgement, `warm` + `tries` times; give the microseconds of the tries."""

    @abstractmethod
    def send_paced(self, topic: str, count: int, interval_s: float) -> None:
        """Send `count` records, one each interval, whatever happened to those before.

        A record's value is the time at which it was due, in nanoseconds of the monotonic clock.
        """

    @staticmethod
    @abstractmethod
    def receive(address: str, topic: str, count: int, ready: Callable[[], None]) -> list[float]:
        """In a process of its own: wait for records as they come; give the microseconds since each was due.

        It calls `ready` when it waits for them.
        """


def due_times(count: int, interval_s: float) -> Iterator[bytes]:
    """Values of records that are due; each is given at its time. Sleeps, and spins at the end of a sleep."""
    due_ns = time.monotonic_ns() + 50_000_000
    for _ in range(count):
        left_s = (due_ns - time.monotonic_ns()) / 1e9
        if left_s > _SPIN_S:
            time.sleep(left_s - _SPIN_S)
        while time.monotonic_ns() < due_ns:
            pass
        yield due_ns.to_bytes(8, "little")
        due_ns += int(interval_s * 1e9)


async def due_times_async(count: int, interval_s: float) -> AsyncIterator[bytes]:
    """The same for a client on an event loop, which serves its connections meanwhile."""
    due_ns = time.monotonic_ns() + 50_000_000
    for _ in range(count):
        left_s = (due_ns - time.monotonic_ns()) / 1e9
        if left_s > _ASYNC_SPIN_S:
            await asyncio.sleep(left_s - _ASYNC_SPIN_S)
        while time.monotonic_ns() < due_ns:
            await asyncio.sleep(0)
        yield due_ns.to_bytes(8, "little")
        due_ns += int(interval_s * 1e9)


def since_us(value: bytes) -> float:
    """Microseconds since the record was due."""
    return (time.monotonic_ns() - int.from_bytes(value[:8], "little")) / 1000


def chunks(values: list[bytes], count: int) -> Iterator[list[bytes]]:
    """Lists of at most `count` values."""
    for begin in range(0, len(values), count):
        yield values[begin : begin + count]
