"""Clients belong to the process that made them: sockets, threads and shared memory do not survive a fork.

Guarantees: in a forked child every open client is marked closed and touches nothing; its calls raise ForkError.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from zbroker.errors import ForkError


class Forkable(Protocol):
    """What holds sockets of its process."""

    is_closed: bool


_open: weakref.WeakSet[Forkable] = weakref.WeakSet()


def guard(client: Forkable) -> None:
    """Mark it closed in every child that is forked from now on."""
    _open.add(client)


def let_go(client: Forkable) -> None:
    """It is closed."""
    _open.discard(client)


def check_process(pid: int) -> None:
    """Raise ForkError unless this is the process `pid`."""
    if os.getpid() != pid:
        raise ForkError(
            f"a client made in pid {pid} was used in pid {os.getpid()}; create one per process "
            "(gunicorn: post_fork, celery: worker_process_init)"
        )


def _mark_forked() -> None:
    for client in _open:
        client.is_closed = True


os.register_at_fork(after_in_child=_mark_forked)
