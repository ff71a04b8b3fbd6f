"""The table of figures: `python -m bench [--rounds N] [--small]`. Writes bench/results/main_path.json.

Each figure stands beside the bare loop that it is compared with, both measured in this one run, in turns.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import psutil

from bench import bare
from bench.harness import Contender, best, median, print_table, run_rounds, save
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.ids import TopicPartition
from zbroker.testing import Broker

BATCH_RECORDS = 1_200  # of the bare loops: what send_many puts into a batch of 100-byte values
Row = dict[str, Any]


def row(what: str, value: float, unit: str, beside: str = "", ratio: float | None = None, target: str = "") -> Row:
    """One line of the table."""
    shown = round(ratio, 3) if ratio is not None else ""
    return {"what": what, "value": round(value, 3), "unit": unit, "beside": beside, "ratio": shown, "target": target}


def batches(count: int) -> Iterator[list[bytes]]:
    """Lists of fresh 100-byte values."""
    for _ in range(max(1, count // BATCH_RECORDS)):
        yield bare.fresh_values(BATCH_RECORDS, 100)


class Runs:
    """The contenders, against one broker on tmpfs."""

    def __init__(self, broker: Broker, scratch: Path, count: int) -> None:
        self.servers = broker.bootstrap_servers
        self.count = count
        self.scratch = scratch
        self._topics = 0

    def topic(self) -> str:
        """A new topic of one partition."""
        self._topics += 1
        name = f"bench-{self._topics}"
        with AdminClient(bootstrap_servers=self.servers) as admin:
            admin.create_topics([NewTopic(name, 1)])
        return name

    def send_many(self) -> dict[str, float]:
        """Acknowledged records a second of the batch call."""
        spent_s, topic = 0.0, self.topic()
        with Producer(bootstrap_servers=self.servers) as producer:
            producer.send(topic, b"warm").result(10)
            for values in batches(self.count):
                started_s = time.perf_counter()
                producer.send_many(topic, values)
                spent_s += time.perf_counter() - started_s
            started_s = time.perf_counter()
            producer.flush()
            spent_s += time.perf_counter() - started_s
        return {"records_per_s": self.count // BATCH_RECORDS * BATCH_RECORDS / spent_s}

    def each(self, how: str, key: bytes | None) -> dict[str, float]:
        """Acknowledged records a second of one call for each record, and what the call costs."""
        topic, count = self.topic(), self.count // 4
        with Producer(bootstrap_servers=self.servers) as producer:
            producer.send(topic, b"warm").result(10)
            emit, send = producer.sender(topic), producer.send
            spent_s = called_s = 0.0
            for _ in range(count // 10_000):
                values = bare.fresh_values(10_000, 100)
                started_s = time.perf_counter()
                if how == "sender":
                    for value in values:
                        emit(value, key)
                else:
                    for value in values:
                        send(topic, value, key)
                called_s += time.perf_counter() - started_s
            spent_s = called_s
            started_s = time.perf_counter()
            producer.flush()
            spent_s += time.perf_counter() - started_s
        sent = count // 10_000 * 10_000
        return {"records_per_s": sent / spent_s, "call_us": called_s / sent * 1e6}

    def consume(self, topic: str, as_batches: bool) -> dict[str, float]:
        """Records a second of one consumer that reads what is there."""
        got = 0
        with Consumer(
            {"auto_offset_reset": "earliest", "max_poll_records": 10_000}, bootstrap_servers=self.servers
        ) as c:
            c.assign([TopicPartition(topic, 0)])
            end = c.end_offsets([TopicPartition(topic, 0)])[TopicPartition(topic, 0)]
            started_s = time.perf_counter()
            if as_batches:
                for batch in c.batches(timeout_ms=1000):
                    values = batch.values()
                    got += len(values.ends) if len(values.data) else len(batch)
                    if got >= end:
                        break
            else:
                while got < end:
                    got += sum(map(len, c.poll(timeout_ms=1000).values()))
            return {"records_per_s": got / (time.perf_counter() - started_s)}

    def acknowledge(self, transport: str, rounds: int) -> dict[str, float]:
        """One record and its acknowledgement, again and again."""
        topic, value, spent_us = self.topic(), bytes(100), []
        with Producer(bootstrap_servers=self.servers, transport=transport) as producer:
            for number in range(rounds + 100):
                started_ns = time.perf_counter_ns()
                producer.send(topic, value).result(10)
                if number >= 100:
                    spent_us.append((time.perf_counter_ns() - started_ns) / 1000)
        spent_us.sort()
        return {"p50_us": spent_us[len(spent_us) // 2], "p99_us": spent_us[len(spent_us) * 99 // 100]}

    def end_to_end(self, rounds: int) -> dict[str, float]:
        """From `send` to another process's consumer that slept."""
        topic = self.topic()
        command = [sys.executable, "-m", "bench.reader", self.servers, topic, str(rounds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None
            reader.stdout.readline()
            with Producer(bootstrap_servers=self.servers) as producer:
                for _ in range(rounds):
                    time.sleep(0.003)
                    producer.send(topic, time.monotonic_ns().to_bytes(8, "little")).result(10)
            spent_us = sorted(json.loads(reader.stdout.readline()))
        return {"p50_us": spent_us[len(spent_us) // 2], "p99_us": spent_us[len(spent_us) * 99 // 100]}


def throughput(runs: Runs, rounds: int) -> list[Row]:
    """Produce and consume."""
    filled = runs.topic()
    with Producer(bootstrap_servers=runs.servers) as producer:
        for values in batches(runs.count):
            producer.send_many(filled, values)
        producer.flush()
        with AdminClient(bootstrap_servers=runs.servers) as admin:
            directory = Path(admin.describe_topics([filled])[filled].partitions[0].directory)
    segments = sorted(directory.glob("*.log"))
    scratch = runs.scratch / "bare.log"
    contenders: dict[str, Contender] = {
        "bare join + CRC + pwrite": lambda: bare.join_crc_pwrite(scratch, batches(runs.count)),
        "bare columns + CRC + pwrite": lambda: bare.columns_crc_pwrite(scratch, batches(runs.count)),
        "send_many": runs.send_many,
        "send": lambda: runs.each("send", None),
        "send with key": lambda: runs.each("send", b"user-1234"),
        "sender": lambda: runs.each("sender", None),
        "bare mapped scan": lambda: bare.mapped_scan(segments),
        "consume as records": lambda: runs.consume(filled, False),
        "consume as batches": lambda: runs.consume(filled, True),
    }
    found = run_rounds(contenders, rounds)
    top = {name: best(figures, "records_per_s") for name, figures in found.items()}
    calls = {n: min(f["call_us"] for f in found[n]) for n in ("send", "send with key", "sender")}
    join, columns = top["bare join + CRC + pwrite"], top["bare columns + CRC + pwrite"]
    scan, many = top["bare mapped scan"], top["send_many"]
    return [
        row("send_many, acknowledged", many / 1e6, "M/s", "bare join + CRC + pwrite", many / join, ">= 0.35"),
        row("send_many, acknowledged", many / 1e6, "M/s", "bare columns + CRC + pwrite", many / columns, ">= 0.60"),
        row("send, acknowledged", top["send"] / 1e6, "M/s", target=">= 1 M/s"),
        row("send, the call", calls["send"], "us", target="<= 0.9"),
        row("send with a key, the call", calls["send with key"], "us", target="<= 1.2"),
        row("sender, acknowledged", top["sender"] / 1e6, "M/s", target=">= 2.5 M/s"),
        row("sender, the call", calls["sender"], "us", target="<= 0.3"),
        row("consume as records", top["consume as records"] / 1e6, "M/s", target=">= 2.5 M/s"),
        row(
            "consume as batches",
            top["consume as batches"] / 1e6,
            "M/s",
            "mapped scan",
            top["consume as batches"] / scan,
            ">= 0.90",
        ),
    ]


def latency(runs: Runs, rounds: int, small: bool) -> list[Row]:
    """Round trips and end to end."""
    tries = 300 if small else 3_000
    found = run_rounds(
        {
            "zmq echo": lambda: bare.zmq_echo(runs.scratch, tries),
            "acknowledge, lane": lambda: runs.acknowledge("auto", tries),
            "acknowledge, zmq": lambda: runs.acknowledge("zmq", tries),
            "end to end": lambda: runs.end_to_end(tries // 3),
        },
        rounds,
    )
    echo = median(found["zmq echo"], "p50_us")
    rows = []
    for name, target in (("acknowledge, lane", "<= 0.65"), ("acknowledge, zmq", "<= 3.5"), ("end to end", "<= 0.8")):
        middle = median(found[name], "p50_us")
        rows.append(row(f"{name}, p50", middle, "us", f"zmq echo {echo:.0f} us", middle / echo, target))
        rows.append(row(f"{name}, p99", median(found[name], "p99_us"), "us"))
    return rows


def footprint(partitions: int, seconds: float) -> list[Row]:
    """Start, memory, and what many idle partitions cost."""
    started_s = time.perf_counter()
    with Broker(workers="auto") as broker:
        with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
            producer.send("first", b"x").result(10)
        first_s = time.perf_counter() - started_s
        processes = {name: psutil.Process(broker.pid_of(name)) for name in broker.process_names()}
        resident = max(process.memory_info().rss for process in processes.values()) / (1 << 20)
        with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
            began_s = time.perf_counter()
            admin.create_topics([NewTopic("many", partitions)], timeout_ms=120_000)
            created_s = time.perf_counter() - began_s
        time.sleep(1)
        before = _cpu_s(processes.values())
        time.sleep(seconds)
        share = (_cpu_s(processes.values()) - before) / seconds * 100
    return [
        row("start to the first acknowledged record", first_s, "s", target="< 0.6"),
        row("largest process, idle", resident, "MiB", target="< 30"),
        row(f"create {partitions} partitions", created_s, "s"),
        row(f"{partitions} idle partitions, all processes", share, "% of a core", target="< 2"),
    ]


def _cpu_s(processes: Any) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@click.command()
@click.option("--rounds", default=5, show_default=True, help="How often each contender runs.")
@click.option("--small", is_flag=True, help="Few records: checks that every part runs, says nothing about speed.")
def main(rounds: int, small: bool) -> None:
    """Measure the main path beside bare loops, print the table, and write bench/results/main_path.json."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="zbb-", dir="/dev/shm") as directory, Broker(workers=1) as broker:
        runs = Runs(broker, Path(directory), 48_000 if small else 1_200_000)
        parts: tuple[Callable[[], list[Row]], ...] = (
            lambda: throughput(runs, rounds),
            lambda: latency(runs, min(rounds, 3), small),
        )
        for part in parts:
            rows += part()
    rows += footprint(20 if small else 1_000, 0.5 if small else 10)
    print_table(rows)
    if not small:
        print(save("main_path", "python -m bench", rows))


if __name__ == "__main__":
    main()
