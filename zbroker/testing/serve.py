"""`python -m zbroker.testing.serve SETTINGS`: a broker in the foreground from settings in one argument, as JSON.

It ends with the process that started it: a test run that is killed leaves no broker behind.
"""

from __future__ import annotations

import os
import sys

import msgspec

from zbroker.config.schema import ServerConfig
from zbroker.workers import supervisor
from zbroker.workers.process import die_with_parent


def main() -> int:
    """Run until told to stop; the exit code is the supervisor's."""
    die_with_parent(os.getppid())
    return supervisor.main(msgspec.json.decode(sys.argv[1], type=ServerConfig))


if __name__ == "__main__":
    sys.exit(main())
