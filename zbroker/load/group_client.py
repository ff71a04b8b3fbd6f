"""A member of a consumer group, as a process of its own that may be killed at any moment.

    python -m zbroker.load.group_client TASK_AS_JSON PID

It reads, commits each record behind it, and writes what it does and is told, a line for each event, straight to a file:
what was written before a SIGKILL is there. It joins when the line `go` comes on stdin, and leaves at SIGTERM.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import msgspec

from zbroker.client.consumer import Consumer
from zbroker.errors import CommitFailedError, UnreleasedInstanceIdError
from zbroker.ids import TopicPartition
from zbroker.load.chaos_client import EventLog
from zbroker.load.child import own_task

READY, TAKEN, REVOKED, LOST, READ, COMMITTED, REFUSED, LEFT = (
    "ready", "taken", "revoked", "lost", "read", "committed", "refused", "left"
)  # fmt: skip
POLL_MS = 1_000


class Task(msgspec.Struct):
    """What a member has to do."""

    path: str
    topic: str
    settings: dict[str, Any]


class _Member:
    def __init__(self, task: Task, log: EventLog) -> None:
        self._task = task
        self._log = log
        self.is_stopping = False
        self._consumer: Consumer[Any, Any] | None = None

    def stop(self, *_: object) -> None:
        """Leave when what is under way is done."""
        self.is_stopping = True
        if self._consumer is not None:
            self._consumer.wakeup()

    def _told(self, what: str) -> Callable[[Collection[TopicPartition]], None]:
        return lambda partitions: self._log.write(what, time.monotonic_ns(), [tp.partition for tp in partitions])

    def run(self) -> None:
        """Be a member until told to stop, or until the group refuses it."""
        task = self._task
        self._log.write(READY, time.monotonic_ns())
        sys.stdin.readline()
        settings = {"auto_offset_reset": "earliest", "enable_auto_commit": False, **task.settings}
        with Consumer(settings) as consumer:
            self._consumer = consumer
            consumer.subscribe(
                [task.topic],
                on_assign=self._told(TAKEN),
                on_revoke=self._told(REVOKED),
                on_lost=self._told(LOST),
            )
            try:
                while not self.is_stopping:
                    self._work(consumer)
            except UnreleasedInstanceIdError as error:
                self._log.write(REFUSED, time.monotonic_ns(), type(error).__name__)
                return
        self._log.write(LEFT, time.monotonic_ns())

    def _work(self, consumer: Consumer[Any, Any]) -> None:
        polled = consumer.poll(timeout_ms=POLL_MS)
        for tp, records in polled.items():
            self._log.write(READ, time.monotonic_ns(), tp.partition, records[0].offset, records[-1].offset)
            begun_ns = time.monotonic_ns()
            try:
                for record in records:
                    consumer.commit(record)
            except CommitFailedError:
                continue
            self._log.write(COMMITTED, begun_ns, time.monotonic_ns(), tp.partition, records[-1].offset + 1)


def main() -> None:
    """Do the task that the command line holds."""
    task = own_task(Task)
    member = _Member(task, EventLog(Path(task.path)))
    signal.signal(signal.SIGTERM, member.stop)
    member.run()


if __name__ == "__main__":
    main()
