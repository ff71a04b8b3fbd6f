"""`python -m zbroker` is the `zbroker` command."""

from __future__ import annotations

import sys

from zbroker.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
