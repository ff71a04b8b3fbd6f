"""What processes have used, by the kernel's own counts: CPU time, memory, context switches, calls, bytes copied.

CPU time is exact to the nanosecond (schedstat), where `times` counts in hundredths of a second. A thread that ended
takes its counts with it: processes are read while they live.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from msgspec import Struct

from zbroker import ids
from zbroker.load.faults import broker_processes


class Usage(Struct, frozen=True):
    """Counts of a process since its start; memory as it is now and at its highest."""

    cpu_ns: int = 0
    sleeps: int = 0
    preemptions: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    calls: int = 0
    disk_read_bytes: int = 0
    resident_bytes: int = 0
    resident_bytes_max: int = 0
    descriptors: int = 0

    @property
    def switches(self) -> int:
        """Context switches, wanted and not."""
        return self.sleeps + self.preemptions

    def since(self, older: Usage) -> Usage:
        """What was used between two looks; memory and descriptors as in the newer one."""
        return Usage(
            self.cpu_ns - older.cpu_ns,
            self.sleeps - older.sleeps,
            self.preemptions - older.preemptions,
            self.read_bytes - older.read_bytes,
            self.written_bytes - older.written_bytes,
            self.calls - older.calls,
            self.disk_read_bytes - older.disk_read_bytes,
            self.resident_bytes,
            self.resident_bytes_max,
            self.descriptors,
        )

    def plus(self, other: Usage) -> Usage:
        """Two processes as one."""
        return Usage(*(getattr(self, name) + getattr(other, name) for name in self.__struct_fields__))

    @classmethod
    def of(cls, pid: int | str = "self") -> Self:
        """Look at a process. Raises FileNotFoundError or ProcessLookupError when it is gone."""
        root = Path(f"/proc/{pid}")
        cpu_ns = sleeps = preemptions = 0
        for task in (root / "task").iterdir():
            try:
                ran_ns = int((task / "schedstat").read_text().split()[0])
                status = _fields(task / "status")
            except (FileNotFoundError, ProcessLookupError):
                continue  # a thread that has just ended
            cpu_ns += ran_ns
            sleeps += int(status["voluntary_ctxt_switches"])
            preemptions += int(status["nonvoluntary_ctxt_switches"])
        if pid == "self":  # a running thread's schedstat is as old as its last tick
            cpu_ns = time.process_time_ns()
        status, io = _fields(root / "status"), _fields(root / "io")
        return cls(
            cpu_ns,
            sleeps,
            preemptions,
            int(io["rchar"]),
            int(io["wchar"]),
            int(io["syscr"]) + int(io["syscw"]),
            int(io["read_bytes"]),
            int((root / "statm").read_text().split()[1]) * resource.getpagesize(),
            int(status["VmHWM"].split()[0]) << 10,
            sum(1 for _ in (root / "fd").iterdir()),
        )


def _fields(path: Path) -> dict[str, str]:
    pairs = (line.partition(":") for line in path.read_text().splitlines())
    return {name: value.strip() for name, _, value in pairs}


def broker_usage(boards_dir: Path | None) -> dict[str, Usage]:
    """name -> usage of every process of a broker that lives; nothing when its boards cannot be seen."""
    if boards_dir is None:
        return {}
    found = {}
    for name, incarnation in broker_processes(boards_dir).items():
        try:
            found[name] = Usage.of(ids.pid_of(incarnation))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def used_between(before: Mapping[str, Usage], after: Mapping[str, Usage]) -> dict[str, Usage]:
    """name -> what each process used. A process that came in between counts from its start."""
    return {name: usage.since(before.get(name, Usage())) for name, usage in after.items()}
