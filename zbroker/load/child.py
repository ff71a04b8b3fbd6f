"""The processes of a run, each with its task in the command line.

Guarantee: a child ends with the process that started it, however that ends, even while it waits for a broker that has
gone as well. A terminal's Ctrl-C is for that process alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import IO, TypeVar

import msgspec

from zbroker.workers.process import die_with_parent

T = TypeVar("T", bound=msgspec.Struct)


def start(
    module: str, task: msgspec.Struct, *, stdout: int | IO[bytes] | None = None, stderr: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """A child of this process, `python -m MODULE TASK_AS_JSON PID`, with a pipe for its stdin."""
    command = [sys.executable, "-m", module, msgspec.json.encode(task).decode(), str(os.getpid())]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, process_group=0)


def own_task(kind: type[T]) -> T:
    """What this process, a child, has to do. From here on it ends with its parent."""
    die_with_parent(int(sys.argv[2]))
    return msgspec.json.decode(sys.argv[1], type=kind)
