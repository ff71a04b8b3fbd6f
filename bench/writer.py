"""A producer in a process of its own: `python -m bench.writer SERVERS TOPIC COUNT`.

Prints `ready`, waits for a line on stdin, then sends COUNT 100-byte records by batches and ends when all are
acknowledged.
"""

from __future__ import annotations

import sys

from bench.world import batches
from zbroker.client.producer import Producer


def main() -> None:
    """Send as fast as it goes."""
    servers, topic, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with Producer(bootstrap_servers=servers) as producer:
        producer.partitions_for(topic)
        values = list(batches(count))
        print("ready", flush=True)
        sys.stdin.readline()
        for one in values:
            producer.send_many(topic, one)
        producer.flush()


if __name__ == "__main__":
    main()
