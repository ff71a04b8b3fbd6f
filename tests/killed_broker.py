"""A broker whose processes kill themselves at the points of `tests.fault_points`: `Broker` in place of zbroker's own.

Run as a program it is what `zbroker.testing.serve` is, with the points in its processes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import msgspec

from tests import fault_points
from zbroker import testing
from zbroker.config.schema import ServerConfig
from zbroker.workers import supervisor
from zbroker.workers.process import die_with_parent


class Broker(testing.Broker):
    """Set the variable of `fault_points` before the start."""

    program = "tests.killed_broker"


def role(config: ServerConfig, number: int, reload: Callable[[], ServerConfig] | None = None) -> int:
    """A process of the broker."""
    fault_points.install()
    return supervisor.run_role(config, number, reload)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))
    sys.exit(supervisor.main(msgspec.json.decode(sys.argv[1], type=ServerConfig), role=role))
