"""Members of a consumer group as processes: started, stopped, killed, and what their files say of them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import count as numbers
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import msgspec

from zbroker.check.findings import Contract, Report
from zbroker.check.groups import check_groups
from zbroker.check.history import Call, Kind, Op, Read
from zbroker.load.child import start
from zbroker.load.group_client import COMMITTED, LEFT, LOST, READ, READY, REFUSED, REVOKED, TAKEN, Task

NEVER_NS: Final = (1 << 63) - 1
END_TIMEOUT_S: Final = 20.0
LOOK_S: Final = 0.005


class CrewError(RuntimeError):
    """A member did not do what it was to do."""


class Interval(NamedTuple):
    """From when to when a member had a partition. `is_lost`: it heard late that it had it no more."""

    partition: int
    first_ns: int
    last_ns: int
    is_lost: bool


class Member:
    """One member's process, and what it has written so far."""

    def __init__(self, number: int, path: Path, process: subprocess.Popen[bytes]) -> None:
        self.number = number
        self._path = path
        self._process = process
        self._position = 0
        self.killed_ns = NEVER_NS
        self.events: list[list[Any]] = []
        self.owned: set[int] = set()
        self.revoked_count = 0

    def look(self) -> None:
        """Take in what it has written since the last look."""
        with self._path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._position += end
        for line in data[:end].splitlines():
            event = msgspec.json.decode(line)
            self.events.append(event)
            if event[0] == TAKEN:
                self.owned.update(event[2])
            elif event[0] in (REVOKED, LOST):
                self.owned.difference_update(event[2])
                self.revoked_count += len(event[2]) if event[0] == REVOKED else 0

    def has(self, what: str) -> bool:
        """Whether there was such an event."""
        return any(event[0] == what for event in self.events)

    @property
    def is_gone(self) -> bool:
        """Whether it has left, or was refused."""
        return self.has(LEFT) or self.has(REFUSED)

    def go(self) -> None:
        """Let it join."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self._process.pid, number)

    def kill(self) -> int:
        """SIGKILL; when that was sent, on the monotonic clock."""
        at_ns = time.monotonic_ns()
        self.signal(signal.SIGKILL)
        self.killed_ns = at_ns
        return at_ns

    def ask_to_leave(self) -> None:
        """SIGTERM, once it has begun: before that it would not end in order. Raises CrewError if it does not begin."""
        deadline_s = time.monotonic() + END_TIMEOUT_S
        while not self.has(READY):
            if time.monotonic() > deadline_s:
                raise CrewError(f"member {self.number} does not begin")
            time.sleep(LOOK_S)
            self.look()
            self.check()
        self.signal(signal.SIGTERM)

    def stop(self) -> None:
        """Let it leave its group; return when it has ended. Raises CrewError when it did not end well."""
        self.ask_to_leave()
        self.wait()

    def wait(self) -> None:
        """Wait until it has ended. Raises CrewError when it did not end as it should."""
        try:
            code = self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise CrewError(f"member {self.number} does not end") from error
        if code != (0 if self.killed_ns == NEVER_NS else -signal.SIGKILL):
            raise CrewError(f"member {self.number} ended with {code}")
        self.look()

    def end(self) -> None:
        """End it, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def check(self) -> None:
        """Raises CrewError when it has ended by itself."""
        if self._process.poll() not in (None, 0) and self.killed_ns == NEVER_NS:
            raise CrewError(f"member {self.number} ended with {self._process.returncode}")

    def intervals(self) -> Iterator[Interval]:
        """When it had which partition."""
        since: dict[int, int] = {}
        for event in self.events:
            if event[0] == TAKEN:
                since.update(dict.fromkeys(event[2], event[1]))
            elif event[0] in (REVOKED, LOST):
                for partition in event[2]:
                    yield Interval(partition, since.pop(partition), event[1], event[0] == LOST)
        for partition, first_ns in since.items():
            yield Interval(partition, first_ns, self.killed_ns, False)


class GroupCrew:
    """The members of one group. A context manager: nobody runs afterwards."""

    def __init__(self, directory: Path, topic: str, partitions: int, **settings: Any) -> None:
        """`settings`: of every member."""
        self._directory = directory
        self._topic = topic
        self._settings = settings
        self._numbers = numbers(1)
        self.partitions = partitions
        self.members: list[Member] = []

    def start(self, *, goes: bool = True, **settings: Any) -> Member:
        """Start a member. With `goes` it joins at once, else at its `go`, and is ready for that."""
        number = next(self._numbers)
        path = self._directory / f"member-{number}.jsonl"
        path.touch()
        task = Task(str(path), self._topic, {**self._settings, **settings})
        member = Member(number, path, start("zbroker.load.group_client", task))
        self.members.append(member)
        if goes:
            member.go()
        else:
            self.wait_until(lambda: member.has(READY), f"member {number} ready")
        return member

    @property
    def living(self) -> list[Member]:
        """Those that were not killed, have not left, and were not refused."""
        return [one for one in self.members if one.killed_ns == NEVER_NS and not one.is_gone]

    def look(self) -> None:
        """Take in what all have written."""
        for member in self.members:
            member.look()
            member.check()

    def wait_until(self, is_so: Callable[[], bool], what: str, timeout_s: float = END_TIMEOUT_S) -> None:
        """Look until it is so. Raises CrewError after the time."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            self.look()
            if is_so():
                return
            if time.monotonic() > deadline_s:
                shown = {one.number: sorted(one.owned) for one in self.living}
                raise CrewError(f"{what}: not within {timeout_s} s; they have {shown}")
            time.sleep(LOOK_S)

    @property
    def is_shared(self) -> bool:
        """Whether the living have every partition, each once, and none has two more than another."""
        counts = [len(one.owned) for one in self.living]
        everything = sorted(number for one in self.living for number in one.owned)
        return everything == list(range(self.partitions)) and max(counts) - min(counts) <= 1

    def wait_until_shared(self, timeout_s: float = END_TIMEOUT_S) -> None:
        """Look until it is shared."""
        self.wait_until(lambda: self.is_shared, "every partition with one member", timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self.members:
            member.end()

    # --- what they have done -----------------------------------------------------------------------------------------

    def read_twice(self) -> int:
        """How many records were given to members more than once."""
        spans: dict[int, list[tuple[int, int]]] = {}
        for member in self.members:
            for event in member.events:
                if event[0] == READ:
                    spans.setdefault(event[2], []).append((event[3], event[4] + 1))
        twice = 0
        for of_partition in spans.values():
            end = 0
            for first, after in sorted(of_partition):
                twice += max(0, min(after, end) - first)
                end = max(end, after)
        return twice

    def left_out(self, counts: dict[int, int]) -> int:
        """How many of so many records of each partition no member was given."""
        missing = 0
        for partition, count in counts.items():
            found = sorted(
                (event[3], event[4] + 1)
                for member in self.members
                for event in member.events
                if event[0] == READ and event[2] == partition
            )
            end = 0
            for first, after in found:
                missing += max(0, first - end)
                end = max(end, after)
            missing += max(0, count - end)
        return missing

    def report(self) -> Report:
        """What the checker's rules of groups find in what they did."""
        report = Report(Contract())
        check_groups(self._history(), report)
        return report

    def _history(self) -> list[Op]:
        found: list[Op] = []
        group = str(self._settings.get("group_id", ""))
        for member in self.members:
            for one in member.intervals():
                kind = Kind.INFO if one.is_lost else Kind.OK
                assigned = (str(one.partition),)
                found.append(
                    Op(member.number, Call.OWN, kind, one.first_ns, one.last_ns, assigned=assigned, group=group)
                )
            for event in member.events:
                if event[0] == READ:
                    polls = {str(event[2]): [Read(event[3], "")]}
                    found.append(Op(member.number, Call.POLL, Kind.OK, event[1], event[1], polls=polls))
                elif event[0] == COMMITTED:
                    commits = {str(event[3]): event[4]}
                    found.append(
                        Op(member.number, Call.COMMIT, Kind.OK, event[1], event[2], commits=commits, group=group)
                    )
        return sorted(found, key=lambda op: (op.invoke_ns, op.process))
