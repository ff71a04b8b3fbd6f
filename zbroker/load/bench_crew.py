"""Runs the processes of a benchmark together: starts them, lets them go at once, collects what each did and used.

    run_tasks(tasks, boards_dir) -> Measured

Guarantees: no process begins before all are ready; when the call returns, in whatever way, none of them is left.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import IO, Final

import msgspec

from zbroker.load.bench_task import Outcome, Progress, Task
from zbroker.load.child import start
from zbroker.load.histogram import Histogram
from zbroker.load.usage import Usage, broker_usage, used_between

READY_TIMEOUT_S: Final = 120.0
END_TIMEOUT_S: Final = 30.0
Advance = Callable[[int], None]


class BenchError(RuntimeError):
    """A process of the benchmark ended early or did not do its work; what it wrote to stderr says why."""


class Measured(msgspec.Struct, kw_only=True):
    """What a run came to: each process's outcome, and what each process of the broker used meanwhile."""

    outcomes: list[Outcome]
    broker: dict[str, Usage]

    def of(self, kind: str) -> list[Outcome]:
        """The outcomes whose names begin so: "producer", "consumer"."""
        return [one for one in self.outcomes if one.name.startswith(kind)]

    def records(self, kind: str) -> int:
        """Records of all processes of a kind."""
        return sum(one.records for one in self.of(kind))

    def seconds(self, kind: str) -> float:
        """From the first begin to the last end of the processes of a kind."""
        found = self.of(kind)
        return max(1, max(one.ended_ns for one in found) - min(one.began_ns for one in found)) / 1e9

    def rate(self, kind: str) -> float:
        """Records a second of all processes of a kind together."""
        return self.records(kind) / self.seconds(kind)

    def usages(self) -> dict[str, Usage]:
        """name -> usage of every process, clients and broker."""
        return {**{one.name: one.usage for one in self.outcomes}, **self.broker}

    def histogram(self, kind: str, which: str = "latency") -> Histogram:
        """The merged latencies of a kind."""
        merged = Histogram()
        for one in self.of(kind):
            merged.merge(Histogram(getattr(one, which)))
        return merged


def run_tasks(tasks: Sequence[Task], boards_dir: Path | None, advance: Advance = lambda _: None) -> Measured:
    """Run the tasks at once against a broker that is up. Raises BenchError."""
    with tempfile.TemporaryFile() as errors, _started(tasks, errors) as running:
        for name, process in running.items():
            _expect_ready(name, process, errors)
        before = broker_usage(boards_dir)
        for process in running.values():
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        outcomes = _collect(running, errors, advance)
        after = broker_usage(boards_dir)
    return Measured(outcomes=[outcomes[task.name] for task in tasks], broker=used_between(before, after))


@contextmanager
def _started(tasks: Sequence[Task], errors: IO[bytes]) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for task in tasks:
            assert task.name not in running, task.name
            running[task.name] = start("zbroker.load.bench_process", task, stdout=subprocess.PIPE, stderr=errors)
        yield running
        for process in running.values():
            process.wait(END_TIMEOUT_S)  # each has said all that it had to say
    finally:
        for process in running.values():
            if process.poll() is None:
                process.kill()
            process.communicate()


def _expect_ready(name: str, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    assert process.stdout is not None
    with DefaultSelector() as selector:
        selector.register(process.stdout, EVENT_READ)
        if not selector.select(READY_TIMEOUT_S):
            raise BenchError(f"{name} was not ready within {READY_TIMEOUT_S:.0f} s")
    if process.stdout.readline() != b"ready\n":
        raise BenchError(_why(name, process, errors))


def _collect(running: dict[str, subprocess.Popen[bytes]], errors: IO[bytes], advance: Advance) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    with DefaultSelector() as selector:
        for name, process in running.items():
            selector.register(_pipe(process), EVENT_READ, name)
        while len(found) < len(running):
            for key, _ in selector.select():
                name = key.data
                line = _pipe(running[name]).readline()
                if not line:
                    raise BenchError(_why(name, running[name], errors))
                if line.startswith(b'{"progress"'):
                    advance(msgspec.json.decode(line, type=Progress).progress)
                    continue
                found[name] = msgspec.json.decode(line, type=Outcome)
                selector.unregister(key.fileobj)
    return found


def _pipe(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def _why(name: str, process: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    process.kill()
    process.wait()
    errors.seek(0)
    return f"{name} ended early ({process.returncode}): {errors.read().decode(errors='replace')[-2_000:]}"
