"""Numbers and names that identify topics, processes and their incarnations.

A *process number* names a role and its index for ever (it is what a request header's `target` holds). An *incarnation*
names one run of one process: no two processes of one boot share it, because the kernel never gives the same pid twice
within one clock tick of its start-time counter.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from zbroker.errors import InvalidTopicError

COORDINATOR = 0
ROUTER = 1
_FIRST_SHARED = 16
_PID_BITS = 22  # Linux: pid_max is at most 4,194,304

_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}\Z")


class TopicPartition(NamedTuple):
    """A topic's name and the number of one of its partitions."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}:{self.partition}"


def worker_number(index: int) -> int:
    """Process number of worker-`index`."""
    assert index >= 0
    return _FIRST_SHARED + 2 * index


def replica_number(index: int) -> int:
    """Process number of replica-`index`."""
    assert index >= 0
    return _FIRST_SHARED + 2 * index + 1


def process_name(number: int) -> str:
    """`coordinator`, `router`, `worker-N` or `replica-N`."""
    if number == COORDINATOR:
        return "coordinator"
    if number == ROUTER:
        return "router"
    assert number >= _FIRST_SHARED, f"{number} names no process"
    index, is_replica = divmod(number - _FIRST_SHARED, 2)
    return f"{'replica' if is_replica else 'worker'}-{index}"


def process_number(name: str) -> int:
    """The inverse of `process_name`. Raises ValueError for any other text."""
    if name == "coordinator":
        return COORDINATOR
    if name == "router":
        return ROUTER
    role, _, index = name.rpartition("-")
    if role == "worker" and index.isascii() and index.isdigit():
        return worker_number(int(index))
    if role == "replica" and index.isascii() and index.isdigit():
        return replica_number(int(index))
    raise ValueError(f"{name!r} names no process: coordinator, router, worker-N, replica-N")


def start_ticks(pid: int) -> int:
    """Clock ticks after boot at which the process started (field 22 of /proc/PID/stat).

    Raises ProcessLookupError when there is no such process.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(pid) from None
    # The name in parentheses may hold spaces and parentheses of its own: count from the last one.
    return int(text[text.rindex(")") + 2 :].split()[19])


def incarnation_of(pid: int) -> int:
    """The incarnation of a live process. Raises ProcessLookupError when there is none."""
    return start_ticks(pid) << _PID_BITS | pid


def own_incarnation() -> int:
    """The incarnation of the calling process."""
    return incarnation_of(os.getpid())


def pid_of(incarnation: int) -> int:
    """The pid that an incarnation had or has."""
    return incarnation & ((1 << _PID_BITS) - 1)


def is_alive(incarnation: int) -> bool:
    """Whether exactly this run of the process still exists (a zombie counts as gone)."""
    pid = pid_of(incarnation)
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0] not in ("Z", "X") and int(fields[19]) << _PID_BITS | pid == incarnation


def open_pidfd(incarnation: int) -> int | None:
    """A pidfd for exactly this incarnation, or None when it is gone. The caller closes it.

    The descriptor is opened first and the start time read afterwards: in the other order the pid could be given to a
    stranger in between, and the stranger would be watched, or killed, in its place.
    """
    try:
        fd = os.pidfd_open(pid_of(incarnation))
    except ProcessLookupError:
        return None
    if not is_alive(incarnation):
        os.close(fd)
        return None
    return fd


def check_topic_name(name: str) -> None:
    """Raise InvalidTopicError unless `name` may name a topic (Kafka's `Topic.validate`)."""
    if not _TOPIC_NAME.match(name) or name in (".", ".."):
        raise InvalidTopicError(f"{name[:300]!r} is not a topic name")


def collision_key(name: str) -> str:
    """Two topic names with the same key may not both exist: metric names write '.' as '_' (Kafka's rule)."""
    return name.replace(".", "_")


def partition_directory_name(topic_id: int, partition: int) -> str:
    """Directory name of a partition's copy. It holds numbers only: user text never becomes a path."""
    return f"t{topic_id:08x}-{partition}"
