"""A metrics pipeline of three processes: measure, average over windows of time, watch.

    zbroker serve &
    python examples/metrics_pipeline.py watch &
    python examples/metrics_pipeline.py average &
    python examples/metrics_pipeline.py measure

`average` commits only what its published windows hold: one that is killed reads the open windows again, and publishes
none twice, since a window's name is its dedup_id.
"""

import argparse
import json
import os
import time
from dataclasses import dataclass, field
from statistics import fmean

from zbroker import AdminClient, Consumer, NewTopic, Producer

RAW, AVERAGES = "metrics", "metrics-averages"


@dataclass
class Window:
    """What came of one metric in one stretch of time."""

    start_ms: int
    first_offset: int
    values: list[float] = field(default_factory=list)


def make_topics(servers: str | None) -> None:
    """Make the two topics unless they are there."""
    with AdminClient(bootstrap_servers=servers) as admin:
        admin.create_topics([NewTopic(topic, num_partitions=2) for topic in (RAW, AVERAGES)], raise_errors=False)


def measure(servers: str | None, samples: int, interval_ms: int) -> None:
    """Send the load and the free memory of this host, again and again."""
    with Producer(bootstrap_servers=servers, value_serializer=lambda value: json.dumps(value).encode()) as producer:
        for _ in range(samples):
            producer.send(RAW, os.getloadavg()[0], b"load")
            producer.send(RAW, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), b"free_bytes")
            time.sleep(interval_ms / 1000)


def average(servers: str | None, window_ms: int) -> None:
    """Publish the average of each metric and window as soon as a later record of that metric comes."""
    windows: dict[tuple[int, bytes], Window] = {}
    settings = {"group_id": "average", "enable_auto_commit": False, "auto_offset_reset": "earliest"}
    with (
        Producer(bootstrap_servers=servers) as producer,
        Consumer(RAW, bootstrap_servers=servers, **settings) as consumer,
    ):
        for record in consumer:
            place, start_ms = (record.partition, record.key), record.timestamp // window_ms * window_ms
            window = windows.setdefault(place, Window(start_ms, record.offset))
            if start_ms > window.start_ms:
                publish(producer, record.key, window)
                window = windows[place] = Window(start_ms, record.offset)
            window.values.append(json.loads(record.value))
            # What the oldest open window of the partition needs is read again after a death.
            firsts = [one.first_offset for (partition, _), one in windows.items() if partition == record.partition]
            consumer.commit({record.tp: min(firsts)})


def publish(producer: Producer, metric: bytes, window: Window) -> None:
    """Send a window's average, once."""
    text = json.dumps({"from_ms": window.start_ms, "mean": fmean(window.values), "samples": len(window.values)})
    producer.send(AVERAGES, text.encode(), metric, dedup_id=f"{metric.decode()}@{window.start_ms}").result()


def watch(servers: str | None, count: int | None) -> None:
    """Print averages as they come."""
    with Consumer(AVERAGES, bootstrap_servers=servers, auto_offset_reset="earliest") as consumer:
        for number, record in enumerate(consumer, 1):
            print(record.key.decode(), record.value.decode(), flush=True)
            if number == count:
                break


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "average", "watch"])
    parser.add_argument("--bootstrap-servers")
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--interval-ms", type=int, default=100)
    parser.add_argument("--window-ms", type=int, default=1_000)
    parser.add_argument("--count", type=int)
    arguments = parser.parse_args()
    make_topics(arguments.bootstrap_servers)
    if arguments.what == "measure":
        measure(arguments.bootstrap_servers, arguments.samples, arguments.interval_ms)
    elif arguments.what == "average":
        average(arguments.bootstrap_servers, arguments.window_ms)
    else:
        watch(arguments.bootstrap_servers, arguments.count)
