"""The workloads of `zbroker bench` in the calling process against a broker that is up.

Values are fresh objects (a reused one flatters by the cache), rates count acknowledged records, latencies are taken by
the one monotonic clock of the host.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.ids import TopicPartition
from zbroker.load.histogram import Histogram

ProduceMode = Literal["send", "sender", "send_many"]
ConsumeMode = Literal["records", "batches"]
Advance = Callable[[int], None]

_CHUNK_RECORDS = 10_000


class Result(msgspec.Struct):
    """What a workload measured."""

    workload: str
    records: int
    bytes: int
    seconds: float
    latency: Histogram

    @property
    def records_per_s(self) -> float:
        """Records in a second."""
        return self.records / max(self.seconds, 1e-9)

    @property
    def mb_per_s(self) -> float:
        """Value megabytes (10^6) in a second."""
        return self.bytes / max(self.seconds, 1e-9) / 1e6

    def as_row(self) -> dict[str, float | int | str]:
        """One row for a table or JSON."""
        row: dict[str, float | int | str] = {
            "workload": self.workload,
            "records": self.records,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 6),
            "records_per_s": round(self.records_per_s, 1),
            "mb_per_s": round(self.mb_per_s, 3),
        }
        if self.latency.count:
            for percent in (50.0, 95.0, 99.0, 99.9):
                row[f"p{percent:g}_us"] = round(self.latency.percentile_ns(percent) / 1000, 1)
        return row


def fresh_values(count: int, size_bytes: int) -> list[bytes]:
    """`count` value objects of random bytes, none of them shared."""
    block = os.urandom(size_bytes * min(count, 1000))
    return [block[(n % 1000) * size_bytes : (n % 1000 + 1) * size_bytes] for n in range(count)]


def produce(
    bootstrap_servers: str,
    topic: str,
    *,
    records: int,
    size_bytes: int,
    mode: ProduceMode = "send",
    settings: dict[str, object] | None = None,
    advance: Advance = lambda _: None,
) -> Result:
    """Send `records` values of `size_bytes` and wait until all are acknowledged."""
    latency = Histogram()
    spent_s = 0.0
    with Producer(settings or {}, bootstrap_servers=bootstrap_servers) as producer:
        producer.partitions_for(topic)
        emit = producer.sender(topic)
        left = records
        while left:
            values = fresh_values(min(left, _CHUNK_RECORDS), size_bytes)
            started_s = time.perf_counter()
            if mode == "send_many":
                future = producer.send_many(topic, values)
                future.add_done_callback(_stamp(latency))
            elif mode == "sender":
                for value in values:
                    emit(value)
            else:
                last, send = None, producer.send
                for value in values:
                    last = send(topic, value)
                assert last is not None
                last.add_done_callback(_stamp(latency))
            spent_s += time.perf_counter() - started_s
            left -= len(values)
            advance(len(values))
        started_s = time.perf_counter()
        producer.flush()
        spent_s += time.perf_counter() - started_s
    return Result(f"produce {mode}", records, records * size_bytes, spent_s, latency)


def _stamp(latency: Histogram) -> Callable[[object], None]:
    started_ns = time.monotonic_ns()
    return lambda _: latency.add(time.monotonic_ns() - started_ns)


def consume(
    bootstrap_servers: str,
    topic: str,
    *,
    records: int,
    mode: ConsumeMode = "records",
    settings: dict[str, object] | None = None,
    advance: Advance = lambda _: None,
) -> Result:
    """Read the topic from its start until `records` were read or it ends."""
    got = size_bytes = 0
    defaults: dict[str, object] = {"auto_offset_reset": "earliest", "max_poll_records": _CHUNK_RECORDS}
    with Consumer({**defaults, **(settings or {})}, bootstrap_servers=bootstrap_servers) as consumer:
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(partitions)
        wanted = min(records, sum(consumer.end_offsets(partitions).values()))
        started_s = time.perf_counter()
        if mode == "batches":
            for batch in consumer.batches(timeout_ms=1000):
                values = batch.values()
                got += len(batch)
                size_bytes += len(values.data)
                advance(len(batch))
                if got >= wanted:
                    break
        else:
            while got < wanted:
                polled = consumer.poll(timeout_ms=1000)
                count = sum(map(len, polled.values()))
                if not count:
                    break
                got += count
                size_bytes += sum(len(record.value or b"") for found in polled.values() for record in found)
                advance(count)
        seconds = time.perf_counter() - started_s
    return Result(f"consume {mode}", got, size_bytes, seconds, Histogram())


def acknowledge_latency(
    bootstrap_servers: str, topic: str, *, rounds: int, size_bytes: int, settings: dict[str, object] | None = None
) -> Result:
    """Send one record and wait for its acknowledgement, again and again."""
    latency = Histogram()
    value = os.urandom(size_bytes)
    with Producer(settings or {}, bootstrap_servers=bootstrap_servers) as producer:
        for _ in range(min(200, rounds)):
            producer.send(topic, value).result(10)
        started_s = time.perf_counter()
        for _ in range(rounds):
            started_ns = time.perf_counter_ns()
            producer.send(topic, value).result(10)
            latency.add(time.perf_counter_ns() - started_ns)
        seconds = time.perf_counter() - started_s
    return Result("acknowledge", rounds, rounds * size_bytes, seconds, latency)


def end_to_end_latency(
    bootstrap_servers: str,
    topic: str,
    *,
    rounds: int,
    pause_ms: float = 2.0,
    settings: dict[str, object] | None = None,
) -> Result:
    """From just before `send` to a consumer thread that slept, with `pause_ms` between two records.

    The pauses are fixed points in time, so a late record does not delay the next one's stamp (no coordinated omission).
    """
    latency = Histogram()
    ready = threading.Event()

    def read() -> None:
        with Consumer({"auto_offset_reset": "latest"}, bootstrap_servers=bootstrap_servers) as consumer:
            consumer.assign([TopicPartition(topic, 0)])
            consumer.position(TopicPartition(topic, 0))
            ready.set()
            seen = 0
            while seen < rounds:
                for record in consumer.consume(100, timeout_ms=10_000):
                    assert record.value is not None
                    latency.add(time.monotonic_ns() - int.from_bytes(record.value, "little"))
                    seen += 1

    reader = threading.Thread(target=read, name="bench-consumer", daemon=True)
    reader.start()
    assert ready.wait(30), "the consumer did not start"
    started_s = time.monotonic()
    with Producer(settings or {}, bootstrap_servers=bootstrap_servers) as producer:
        for number in range(rounds):
            due_s = started_s + number * pause_ms / 1000
            time.sleep(max(0.0, due_s - time.monotonic()))
            producer.send(topic, max(int(due_s * 1e9), 0).to_bytes(8, "little"), partition=0).result(10)
    reader.join(30)
    return Result("end to end", latency.count, latency.count * 8, time.monotonic() - started_s, latency)
