"""Processes of the systems that are compared: free ports, start, memory, CPU time, and their end.

Guarantees: a server dies with the benchmark, and `end` leaves none of its children.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil

ANSWER_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 10.0
_PR_SET_PDEATHSIG = 1
_CPUCLOCK_SCHED = 2


def free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1 that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def start(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, its output in `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            cwd=log.parent,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def wait_for(answers: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until `answers` is true; an OSError of it counts as false. Raises RuntimeError with the log's end."""
    deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            if answers():
                return
        except OSError:
            pass
        time.sleep(0.005)
    raise RuntimeError(f"{process.args!r} does not answer:\n{log.read_text(errors='replace')[-4000:]}")


def is_listening(port: int) -> bool:
    """Whether somebody takes connections there."""
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server and all its children at once: nobody needs its data."""
    family = tree(process.pid)
    for pid in family:
        _kill(pid)
    process.wait(_END_TIMEOUT_S)
    deadline_s = time.monotonic() + _END_TIMEOUT_S
    while any(psutil.pid_exists(pid) for pid in family) and time.monotonic() < deadline_s:
        time.sleep(0.005)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process, of those too that have ended; 0 when it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)  # what clock_getcpuclockid(3) gives
    except OSError:
        return 0.0


def memory_mib(pids: Iterable[int]) -> dict[str, float]:
    """Memory of all these processes: `pss` counts a page that several share once, `rss` once for each."""
    pss = rss = 0.0
    for pid in pids:
        try:
            found = psutil.Process(pid).memory_full_info()
        except psutil.NoSuchProcess:
            continue
        pss += found.pss / (1 << 20)
        rss += found.rss / (1 << 20)
    return {"pss_mib": pss, "rss_mib": rss}
