"""The consumer beside bare loops: `python -m bench.bench_consume [--rounds N] [--small]`.

As records, as batches (CRC checked, `.data` and `.ends` read) warm and while a producer writes ahead of it, beside a
scan of the same mapped files with the same CRCs; and what an empty poll costs. Writes bench/results/consume.json.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from bench import bare
from bench.harness import Contender, best, median, print_table, run_rounds, save
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.ids import TopicPartition
from zbroker.testing import Broker

CHUNK_RECORDS = 12_000
POLLS = 2_000

_WRITER = """
import sys
from bench.bare import fresh_values
from zbroker.client.producer import Producer
servers, topic, count, chunk = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with Producer(bootstrap_servers=servers) as producer:
    producer.partitions_for(topic)
    values = [fresh_values(chunk, 100) for _ in range(count // chunk)]
    print("ready", flush=True)
    sys.stdin.readline()
    for one in values:
        producer.send_many(topic, one)
    producer.flush()
"""


class _Waits:
    """CPU seconds of a consumer's thread that went into waiting because nothing was there."""

    def __init__(self, consumer: Consumer[Any, Any]) -> None:
        self.spent_s = 0.0
        self._wait = consumer._fetcher.wait
        consumer._fetcher.wait = self._timed  # type: ignore[method-assign]  # the one place that knows of sleeping

    def _timed(self, timeout_ms: float) -> None:
        started_s = time.thread_time()
        self._wait(timeout_ms)
        self.spent_s += time.thread_time() - started_s


class Runs:
    """The contenders, against one broker on tmpfs."""

    def __init__(self, broker: Broker, count: int) -> None:
        self.servers = broker.bootstrap_servers
        self.count = max(1, count // CHUNK_RECORDS) * CHUNK_RECORDS
        self.filled = self._topic("filled")
        with Producer(bootstrap_servers=self.servers) as producer:
            for _ in range(self.count // CHUNK_RECORDS):
                producer.send_many("filled", bare.fresh_values(CHUNK_RECORDS, 100))
            producer.flush()
        self._tails = 0

    def _topic(self, name: str) -> Path:
        with AdminClient(bootstrap_servers=self.servers) as admin:
            return Path(admin.create_topics([NewTopic(name, 1)])[name].partitions[0].directory)

    def scan(self) -> dict[str, float]:
        """The bare loop."""
        return bare.mapped_scan(sorted(self.filled.glob("*.log")))

    def read(self, topic: str, how: str) -> dict[str, float]:
        """Read `count` records from the start of a topic."""
        settings: dict[str, Any] = {"auto_offset_reset": "earliest", "max_poll_records": 10_000}
        with Consumer(settings, bootstrap_servers=self.servers) as consumer:
            consumer.assign([(topic, 0)])
            consumer.position((topic, 0))
            waits = _Waits(consumer)
            got = 0
            started_s, started_cpu_s = time.perf_counter(), time.thread_time()
            if how == "batches":
                for batch in consumer.batches():
                    values = batch.values()
                    assert len(values.data) >= len(values.ends)
                    got += len(batch)
                    if got >= self.count:
                        break
            elif how == "iterate":
                for record in consumer:
                    if record.offset == self.count - 1:
                        break
            else:
                while got < self.count:
                    got += sum(map(len, consumer.poll(timeout_ms=1000).values()))
            spent_s, spent_cpu_s = time.perf_counter() - started_s, time.thread_time() - started_cpu_s
        return {
            "records_per_s": self.count / spent_s,
            "without_waits_per_s": self.count / (spent_cpu_s - waits.spent_s),
        }

    def tail(self) -> dict[str, float]:
        """Read batches while another process writes them. The writer sets the pace: CPU time counts."""
        self._tails += 1
        topic = f"tail-{self._tails}"
        self._topic(topic)
        command = [sys.executable, "-c", _WRITER, self.servers, topic, str(self.count), str(CHUNK_RECORDS)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdin is not None
            assert writer.stdout is not None
            writer.stdout.readline()
            writer.stdin.write("go\n")
            writer.stdin.flush()
            return self.read(topic, "batches")

    def polls(self) -> dict[str, float]:
        """What a poll costs that finds nothing."""
        with Consumer(bootstrap_servers=self.servers) as consumer:
            tp = TopicPartition("filled", 0)
            consumer.assign([tp])
            consumer.seek_to_end(tp)
            started_s = time.perf_counter()
            for _ in range(POLLS):
                consumer.poll()
            return {"us": (time.perf_counter() - started_s) / POLLS * 1e6}


@click.command()
@click.option("--rounds", default=5, show_default=True, help="How often each contender runs.")
@click.option("--small", is_flag=True, help="Few records: checks that every part runs, says nothing about speed.")
def main(rounds: int, small: bool) -> None:
    """Measure the consumer beside bare loops and print the table."""
    with Broker(workers=1) as broker:
        runs = Runs(broker, 24_000 if small else 1_200_000)
        contenders: dict[str, Contender] = {
            "bare mapped scan": runs.scan,
            "poll": lambda: runs.read("filled", "poll"),
            "iterate": lambda: runs.read("filled", "iterate"),
            "batches": lambda: runs.read("filled", "batches"),
            "batches at the tail": runs.tail,
            "empty poll": runs.polls,
        }
        found = run_rounds(contenders, rounds)
    scan = best(found["bare mapped scan"], "records_per_s")
    rows: list[dict[str, Any]] = []
    for name, target in (
        ("bare mapped scan", ""),
        ("poll", ">= 2.5 M/s"),
        ("iterate", ""),
        ("batches", ">= 0.90 of the scan"),
        ("batches at the tail", ">= 0.70 of the scan"),
    ):
        rate = best(found[name], "without_waits_per_s" if name == "batches at the tail" else "records_per_s")
        rows.append({"what": name, "M records/s": rate / 1e6, "of the scan": rate / scan, "target": target})
    print_table(rows)
    empty_us = median(found["empty poll"], "us")
    print(f"empty poll: {empty_us:.1f} us")
    if not small:
        print(save("consume", "python -m bench.bench_consume", [*rows, {"what": "empty poll", "us": empty_us}]))


if __name__ == "__main__":
    main()
