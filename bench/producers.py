"""Producers that each have one record under way: `python -m bench.producers SERVERS TOPIC PRODUCERS SECONDS`.

Prints `ready`, waits for a line on stdin, and prints at the end how many records were acknowledged, with acks=fsync.
One thread serves all of them, since a hundred that fight for one interpreter would measure that.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack

from zbroker.client.producer import Producer


def main() -> None:
    """Send for so many seconds."""
    servers, topic, count, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    with ExitStack() as stack:
        producers = [
            stack.enter_context(Producer(bootstrap_servers=servers, acks="fsync", linger_ms=0)) for _ in range(count)
        ]
        for producer in producers:
            producer.partitions_for(topic)
        print("ready", flush=True)
        sys.stdin.readline()
        acknowledged = 0
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            futures = [producer.send(topic, bytes(100)) for producer in producers]
            for future in futures:
                future.result(60)
            acknowledged += count
    print(acknowledged, flush=True)


if __name__ == "__main__":
    main()
