"""Members of consumer groups as processes of their own, and what their logs must say together.

Run as a program, a member reads, commits each record behind it, and writes what it does into a file, line by line, each
before it goes on: what a killed member has done is all there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.conditions import wait_until
from zbroker.client.consumer import Consumer
from zbroker.errors import CommitFailedError
from zbroker.ids import TopicPartition
from zbroker.record.records import ConsumerRecord

STARTED, ASSIGNED, REVOKED, LOST, READ, COMMITTED, FAILED, LEFT = (
    "started",
    "assigned", "revoked", "lost", "read", "committed", "failed", "left"
)  # fmt: skip
END_TIMEOUT_S = 20.0


class Event(NamedTuple):
    """A line of a member's log. `ns`: when it was done, of a commit when it was begun. `offset`: of the record that was
    read, or what was committed; else -1."""

    ns: int
    what: str
    topic: str
    partition: int
    offset: int

    @property
    def tp(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)


class MemberProcess:
    """A member of a group. Use it as a context manager: it is gone afterwards."""

    def __init__(self, directory: Path, name: str, topics: Iterable[str], way: dict[str, Any], **settings: Any) -> None:
        self.name = name
        self.log_path = directory / f"{name}.log"
        self.log_path.touch()
        self.killed_ns = 0
        told = {"auto_offset_reset": "earliest", "enable_auto_commit": False, **way, **settings}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.group_members", str(self.log_path), json.dumps([*topics]), json.dumps(told)]
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def events(self) -> list[Event]:
        """Everything that it has done so far."""
        assert self._process.poll() in (None, 0, -signal.SIGKILL), f"{self.name} ended with {self._process.returncode}"
        lines = self.log_path.read_text().splitlines(keepends=True)
        return [Event(*json.loads(line)) for line in lines if line.endswith("\n")]

    def owned(self) -> set[TopicPartition]:
        """What it reads, as far as it has said."""
        found: set[TopicPartition] = set()
        for event in self.events():
            if event.what == ASSIGNED:
                found.add(event.tp)
            elif event.what in (REVOKED, LOST):
                found.discard(event.tp)
        return found

    def count(self, what: str) -> int:
        """How many events of a kind there are."""
        return sum(event.what == what for event in self.events())

    def wait_for(self, owned: int, timeout_s: float = 20) -> None:
        """Wait until it reads so many partitions."""
        wait_until(
            lambda: len(self.owned()) == owned, timeout_s=timeout_s, what=f"{self.name} with {owned} of partitions"
        )

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL; it is gone when this returns."""
        self.killed_ns = self.killed_ns or time.monotonic_ns()
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Let it leave its group; gives its exit code."""
        wait_until(lambda: self.count(STARTED), what=f"{self.name} started")
        self._process.terminate()
        return self._process.wait(END_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()


class Interval(NamedTuple):
    """From when to when a member had a partition, and how it ended: REVOKED, LOST, LEFT, a kill ("") or not yet."""

    owner: str
    first_ns: int
    last_ns: int
    end: str


FOR_EVER = 1 << 63


def intervals(members: Iterable[MemberProcess]) -> dict[TopicPartition, list[Interval]]:
    """Who has had each partition, in order of time."""
    found: dict[TopicPartition, list[Interval]] = {}
    for member in members:
        since: dict[TopicPartition, int] = {}
        for event in member.events():
            if event.what == ASSIGNED:
                assert event.tp not in since, f"{member.name} was given {event.tp} twice"
                since[event.tp] = event.ns
            elif event.what in (REVOKED, LOST):
                found.setdefault(event.tp, []).append(Interval(member.name, since.pop(event.tp), event.ns, event.what))
        for tp, first_ns in since.items():
            found.setdefault(tp, []).append(Interval(member.name, first_ns, member.killed_ns or FOR_EVER, ""))
    return {tp: sorted(of_partition, key=lambda one: one.first_ns) for tp, of_partition in found.items()}


def check_group(members: Collection[MemberProcess], counts: dict[TopicPartition, int] | None = None) -> None:
    """No partition had two owners, no commit went back or was accepted from a former owner, and what was committed was
    read. `counts`: that everything was read, so many records of each partition."""
    for tp, of_partition in intervals(members).items():
        for one, after in pairwise(of_partition):
            # Who is told that a partition is lost is told late: its commits say when it was taken.
            assert one.end == LOST or one.last_ns <= after.first_ns, f"{tp} had two owners: {one} {after}"
    names = {event.tp for member in members for event in member.events() if event.what == READ}
    for tp in names:
        events = sorted((event, member.name) for member in members for event in member.events() if event.tp == tp)
        _check_commits(tp, events)
        read = {event.offset for event, _ in events if event.what == READ}
        assert read == set(range(max(read) + 1)), f"{tp}: left out {sorted(set(range(max(read))) - read)[:10]}"
    for tp, count in (counts or {}).items():
        found = {
            event.offset for member in members for event in member.events() if (event.what, event.tp) == (READ, tp)
        }
        assert len(found) == count, f"{tp}: {len(found)} of {count} records were read"


def _check_commits(tp: TopicPartition, events: list[tuple[Event, str]]) -> None:
    committed, by = 0, ""
    begun: dict[str, bool] = {}
    for event, name in events:
        if event.what == ASSIGNED:
            begun[name] = False
        elif event.what == READ and not begun.get(name, True):
            begun[name] = True
            assert event.offset >= committed, f"{tp}: {name} began at {event.offset}, {by} had committed {committed}"
        elif event.what == COMMITTED:
            assert event.offset > committed, f"{tp}: {name} committed {event.offset} after {by} had {committed}"
            committed, by = event.offset, name


def repeats(members: Iterable[MemberProcess]) -> int:
    """How many records were read more than once."""
    read = [(event.tp, event.offset) for member in members for event in member.events() if event.what == READ]
    return len(read) - len(set(read))


# --- the program -----------------------------------------------------------------------------------------------------


def main() -> None:
    """Arguments: the log file, topics, settings. SIGTERM: leave. SIGUSR1: hang at the next record, until another."""
    path, topics, settings = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    log = os.open(path, os.O_WRONLY | os.O_APPEND)
    pause_s = settings.pop("pause_s", 0.0)
    is_stopping = is_stuck = False

    def write(what: str, tp: tuple[str, int], offset: int = -1, ns: int = 0) -> None:
        os.write(log, json.dumps([ns or time.monotonic_ns(), what, *tp, offset]).encode() + b"\n")

    def stop(*_: object) -> None:
        nonlocal is_stopping
        is_stopping = True
        consumer.wakeup()

    def stick(*_: object) -> None:
        nonlocal is_stuck
        is_stuck = not is_stuck

    def told(what: str) -> Any:
        def call(partitions: Collection[TopicPartition]) -> None:
            for tp in partitions:
                write(what, tp)

        return call

    def work(records: list[ConsumerRecord[Any, Any]]) -> None:
        for record in records:
            while is_stuck and not is_stopping:
                time.sleep(0.002)
            if is_stopping:
                return
            write(READ, record.tp, record.offset)
            time.sleep(pause_s)
            begun_ns = time.monotonic_ns()
            try:
                consumer.commit(record)
            except CommitFailedError:
                write(FAILED, record.tp, record.offset + 1)
                return
            write(COMMITTED, record.tp, record.offset + 1, begun_ns)

    signal.signal(signal.SIGUSR1, stick)
    with Consumer(settings) as consumer:
        signal.signal(signal.SIGTERM, stop)
        consumer.subscribe(topics, on_assign=told(ASSIGNED), on_revoke=told(REVOKED), on_lost=told(LOST))
        write(STARTED, ("", -1))
        while not is_stopping:
            work(consumer.consume(50, timeout_ms=1_000))
    write(LEFT, ("", -1))


if __name__ == "__main__":
    main()
