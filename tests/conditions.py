"""Waiting for a condition with a deadline: what tests do in place of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")


def wait_until(condition: Callable[[], T], *, timeout_s: float = 20.0, what: str = "condition") -> T:
    """Return the first true value of `condition()`; fail the test when none came within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout_s} s; last value {value!r}")
        time.sleep(0.002)


def wait_until_stopped(*pids: int) -> None:
    """Wait until SIGSTOP has stopped these processes."""
    processes = [psutil.Process(pid) for pid in pids]
    wait_until(
        lambda: all(one.status() == psutil.STATUS_STOPPED for one in processes), timeout_s=10, what=f"a stop of {pids}"
    )
