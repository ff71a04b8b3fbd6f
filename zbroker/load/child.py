"""The processes of a run, each with its task in the command line.

Guarantee: a child ends with the process that started it, however that ends, even while it waits for a broker that has
gone as well.
"""

from __future__ import annotations

import os
import sys
from typing import TypeVar

import msgspec

from zbroker.workers.process import die_with_parent

T = TypeVar("T", bound=msgspec.Struct)


def command_of(module: str, task: msgspec.Struct) -> list[str]:
    """The command line of a child of this process: `python -m MODULE TASK_AS_JSON PID`."""
    return [sys.executable, "-m", module, msgspec.json.encode(task).decode(), str(os.getpid())]


def own_task(kind: type[T]) -> T:
    """What this process, a child, has to do. From here on it ends with its parent."""
    die_with_parent(int(sys.argv[2]))
    return msgspec.json.decode(sys.argv[1], type=kind)
