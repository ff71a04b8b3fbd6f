"""`python -m zbroker.testing.serve SETTINGS PID`: a broker in the foreground from settings in one argument, as JSON.

It ends with the process PID, which started it: a test run that is killed leaves no broker behind, however early.
"""

from __future__ import annotations

import sys

import msgspec

from zbroker.config.schema import ServerConfig
from zbroker.workers import supervisor
from zbroker.workers.process import die_with_parent


def main() -> int:
    """Run until told to stop; the exit code is the supervisor's."""
    die_with_parent(int(sys.argv[2]))
    return supervisor.main(msgspec.json.decode(sys.argv[1], type=ServerConfig))


if __name__ == "__main__":
    sys.exit(main())
