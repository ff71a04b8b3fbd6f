"""A consumer in a process of its own, for end-to-end latency: `python -m bench.reader SERVERS TOPIC COUNT`.

Prints `ready` when it waits, and at the end the latencies in microseconds as JSON. The records' values are the time at
which they were sent, on the host's monotonic clock.
"""

from __future__ import annotations

import json
import sys
import time

from zbroker.client.consumer import Consumer
from zbroker.ids import TopicPartition


def main() -> None:
    """Read COUNT records and print how long each was on its way."""
    servers, topic, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    spent_us: list[float] = []
    with Consumer(bootstrap_servers=servers, auto_offset_reset="latest") as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        consumer.position(TopicPartition(topic, 0))
        print("ready", flush=True)
        while len(spent_us) < count:
            for record in consumer.consume(100, timeout_ms=10_000):
                now_ns = time.monotonic_ns()
                assert record.value is not None
                spent_us.append((now_ns - int.from_bytes(record.value, "little")) / 1000)
    print(json.dumps(spent_us), flush=True)


if __name__ == "__main__":
    main()
