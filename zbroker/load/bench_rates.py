"""As fast as it goes: what a producer's and a consumer's process of a benchmark do when rates are measured."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.ids import TopicPartition
from zbroker.load.bench_task import Outcome, Reporter, Task, fresh_values, wait_for_go
from zbroker.load.histogram import Histogram
from zbroker.load.usage import Usage


def produce(task: Task) -> Outcome:
    """Send the task's records to its partitions in turn, and return when all are acknowledged.

    The latency of `send_many` is that of each call's whole list.
    """
    latency, reporter = Histogram(), Reporter()
    calls = [
        fresh_values(min(task.call_records, task.records - first), task.size_bytes, task.seed + first, task.content)
        for first in range(0, task.records, task.call_records)
    ]
    partitions = itertools.cycle(task.partitions)
    with Producer(task.settings, bootstrap_servers=task.bootstrap_servers) as producer:
        _warm_up(producer, task)
        before = wait_for_go()
        began_ns = time.monotonic_ns()
        if task.mode == "send_many":
            for values in calls:
                future = producer.send_many(task.topic, values, partition=next(partitions))
                future.add_done_callback(_stamp(latency))
                reporter.advance(len(values))
        elif task.mode == "sender":
            emit = producer.sender(task.topic)
            for values in calls:
                for value in values:
                    emit(value)
                reporter.advance(len(values))
        else:
            send, topic = producer.send, task.topic
            for values in calls:
                for value in values:
                    send(topic, value)
                reporter.advance(len(values))
        producer.flush()
        ended_ns = time.monotonic_ns()
        usage = Usage.of().since(before)
    return Outcome(
        name=task.name,
        records=task.records,
        bytes=task.records * task.size_bytes,
        began_ns=began_ns,
        ended_ns=ended_ns,
        usage=usage,
        latency=latency.as_counts(),
    )


def records_of(task: Task, partition: int) -> int:
    """How many records a producer of lists leaves in a partition, its warm-up included."""
    if partition not in task.partitions:
        return 0
    sizes = [min(task.call_records, task.records - first) for first in range(0, task.records, task.call_records)]
    mine = sizes[task.partitions.index(partition) :: len(task.partitions)]
    return sum(mine) + _warm_up_records_of_one(task)


def _warm_up_records_of_one(task: Task) -> int:
    return 1 + task.warm_up_records // len(task.partitions)


def _warm_up(producer: Producer[Any, Any], task: Task) -> None:
    """Open the lanes and warm the code: some records to each partition."""
    producer.partitions_for(task.topic)
    count = _warm_up_records_of_one(task)
    for partition in task.partitions:
        producer.send_many(task.topic, [bytes(task.size_bytes)] * count, partition=partition)
    producer.flush()


def _stamp(latency: Histogram) -> Callable[[object], None]:
    started_ns = time.monotonic_ns()
    return lambda _: latency.add(time.monotonic_ns() - started_ns)


def consume(task: Task) -> Outcome:
    """Read the task's partitions until it has its records, or nothing more comes."""
    reporter = Reporter()
    got = size_bytes = 0
    defaults: dict[str, object] = {"auto_offset_reset": "earliest", "max_poll_records": 10_000}
    with Consumer({**defaults, **task.settings}, bootstrap_servers=task.bootstrap_servers) as consumer:
        partitions = [TopicPartition(task.topic, number) for number in task.partitions]
        consumer.assign(partitions)
        for one in partitions:
            consumer.position(one)
        before = wait_for_go()
        began_ns = ended_ns = time.monotonic_ns()
        timeout_ms = task.stop_after_s * 1000
        if task.mode == "batches":
            for batch in consumer.batches(timeout_ms=timeout_ms):
                values = batch.values()
                got += len(batch)
                size_bytes += len(values.data)
                reporter.advance(len(batch))
                if got >= task.records:
                    break
        else:
            while got < task.records:
                polled = consumer.poll(timeout_ms=timeout_ms)
                if not polled:
                    break
                for records in polled.values():
                    got += len(records)
                    for record in records:
                        size_bytes += len(record.value or b"")
                reporter.advance(sum(map(len, polled.values())))
        ended_ns = time.monotonic_ns()
        usage = Usage.of().since(before)
    return Outcome(name=task.name, records=got, bytes=size_bytes, began_ns=began_ns, ended_ns=ended_ns, usage=usage)
