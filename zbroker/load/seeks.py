"""What it costs to go to any offset of a log: from `seek` to the record in hand."""

from __future__ import annotations

import random
import statistics
import time

from zbroker.client.consumer import Consumer
from zbroker.ids import TopicPartition
from zbroker.load.bench_target import Target

SEEKS = 300


def seek_us(target: Target, topic: str, records: int, seed: int) -> float:
    """The median of seeks to offsets drawn from the seed in partition 0, which holds so many records; in us."""
    rng, spent_us = random.Random(seed), []
    with Consumer(bootstrap_servers=target.bootstrap_servers, max_poll_records=1) as consumer:
        tp = TopicPartition(topic, 0)
        consumer.assign([tp])
        consumer.seek(tp, 0)
        assert consumer.consume(1, timeout_ms=5_000)
        for _ in range(SEEKS):
            offset = rng.randrange(records)
            started_ns = time.perf_counter_ns()
            consumer.seek(tp, offset)
            record = consumer.consume(1, timeout_ms=5_000)[0]
            spent_us.append((time.perf_counter_ns() - started_ns) / 1000)
            assert record.offset == offset
    return statistics.median(spent_us)
