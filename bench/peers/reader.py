"""A consumer in a process of its own: `python -m bench.peers.reader SYSTEM ADDRESS TOPIC COUNT`.

Prints `ready` when it waits for records, and at the end the latencies in microseconds as JSON.
"""

from __future__ import annotations

import json
import sys

from bench.peers.registry import system


def main() -> None:
    """Read COUNT records and print how long each was on its way."""
    name, address, topic, count = sys.argv[1:]
    spent_us = system(name).receive(address, topic, int(count), lambda: print("ready", flush=True))
    print(json.dumps(spent_us), flush=True)


if __name__ == "__main__":
    main()
