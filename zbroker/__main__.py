"""`zbroker`, and `python -m zbroker`: the command. Ctrl-C ends it without a traceback from its first import on."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def run() -> int:
    """Import the command, which takes a moment, and run it; the exit code."""
    try:
        from zbroker.cli.main import main
    except KeyboardInterrupt:
        return INTERRUPTED
    return main()


if __name__ == "__main__":
    sys.exit(run())
