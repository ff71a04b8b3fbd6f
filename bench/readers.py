"""Rows of what readers cost the worker: nothing while they are awake, and one wake-up each while they sleep.

Awake readers take batch after batch by looking at the worker's board, over and over; the worker's CPU time for the same
records with 50 of them and with one is compared. They share a process, so that both take the same share of the machine,
and the difference is what readers cost the worker, not what a crowded machine does. Sleeping readers leave a wait with
the worker: one record at a time is written for none and for several of them, and the difference in the worker's CPU
time is theirs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

from bench.harness import Row, cpu_ns, least, median, row, run_rounds
from bench.world import World, batches
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.shm.board_reader import BoardReader
from zbroker.shm.layout import Counter

READERS = 50
SLEEPERS = 8
LOOK_S = (
    0.000_5  # between two looks of a process's readers: on few cores, spinning readers would take the worker's turns
)


def with_awake_readers(world: World, readers: int) -> dict[str, float]:
    """The worker's CPU seconds for a million records with so many awake readers, all of which read all of them."""
    topic, pid = world.topic(), world.worker_pid()
    board = BoardReader.find(world.broker.paths.boards_dir, "worker-0")
    assert board is not None
    command = [sys.executable, "-m", "bench.readers", world.servers, topic, str(readers), str(world.count)]
    values = list(batches(world.count))
    with (
        Producer(bootstrap_servers=world.servers) as producer,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        producer.send(topic, b"warm").result(10)
        before_ns, waits = cpu_ns(pid), board.counter(Counter.WAITS)
        for one in values:
            producer.send_many(topic, one)
        producer.flush()
        spent_ns, waits = cpu_ns(pid) - before_ns, board.counter(Counter.WAITS) - waits
        read = json.loads(process.communicate(timeout=120)[0])
    board.close()
    assert read == [world.count + 1] * readers, "every reader has read every record"
    assert waits == 0, "an awake reader asks for nothing"
    return {"cpu_s_per_million": spent_ns / world.count / 1000}


def with_sleepers(world: World, sleepers: int, rounds: int) -> dict[str, float]:
    """The worker's CPU microseconds for one record at a time, with so many readers that sleep; and their wakes."""
    topic, pid = world.topic(), world.worker_pid()
    board = BoardReader.find(world.broker.paths.boards_dir, "worker-0")
    assert board is not None
    with ExitStack() as stack:
        stack.callback(board.close)
        processes = []
        for _ in range(sleepers):
            command = [sys.executable, "-m", "bench.reader", world.servers, topic, str(rounds)]
            processes.append(stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)))
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        producer = stack.enter_context(Producer(bootstrap_servers=world.servers))
        producer.partitions_for(topic)
        before_ns, wakes = cpu_ns(pid), board.counter(Counter.WAKES)
        for _ in range(rounds):
            producer.send(topic, time.monotonic_ns().to_bytes(8, "little")).result(10)
            time.sleep(0.004)
        spent_ns, woken = cpu_ns(pid) - before_ns, board.counter(Counter.WAKES) - wakes
        for process in processes:
            process.communicate(timeout=60)
    return {"cpu_us_per_record": spent_ns / rounds / 1000, "wakes_per_record": woken / rounds}


def reader_rows(world: World, rounds: int, readers: int, wakes: int) -> list[Row]:
    """Both."""
    found = run_rounds(
        {
            "1 awake reader": lambda: with_awake_readers(world, 1),
            f"{readers} awake readers": lambda: with_awake_readers(world, readers),
            "no sleeping reader": lambda: with_sleepers(world, 0, wakes),
            f"{SLEEPERS} sleeping readers": lambda: with_sleepers(world, SLEEPERS, wakes),
        },
        rounds,
    )
    one, many = (least(found[name], "cpu_s_per_million") for name in ("1 awake reader", f"{readers} awake readers"))
    # No difference of the two: a wake costs less than a record's cost differs from round to round.
    alone_us, waking_us = (
        least(found[name], "cpu_us_per_record") for name in ("no sleeping reader", f"{SLEEPERS} sleeping readers")
    )
    woken = median(found[f"{SLEEPERS} sleeping readers"], "wakes_per_record")
    beside = f"with one awake reader, {one * 1000:.0f} ms"
    return [
        row(
            f"worker's CPU for a million records, {readers} awake readers",
            many * 1000,
            "ms",
            beside,
            many / one,
            "<= 1.05",
        ),
        row(
            f"worker's CPU for a record that wakes {SLEEPERS} sleeping readers",
            waking_us,
            "us",
            f"one that wakes nobody, {alone_us:.0f} us; {woken:.1f} wakes a record",
            waking_us / alone_us,
        ),
    ]


def main() -> None:
    """`python -m bench.readers SERVERS TOPIC READERS COUNT`: consumers that never sleep; prints what each has read."""
    servers, topic, readers, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    with ExitStack() as stack:
        consumers: list[Consumer[Any, Any]] = []
        for _ in range(readers):
            consumer = stack.enter_context(Consumer(bootstrap_servers=servers, auto_offset_reset="earliest"))
            consumer.assign([(topic, 0)])
            consumer.position((topic, 0))
            consumers.append(consumer)
        got = [0] * readers
        print("ready", flush=True)
        while min(got) <= count:
            for index, consumer in enumerate(consumers):
                for batch in consumer.batches(timeout_ms=0):
                    got[index] += len(batch)
    print(json.dumps(got), flush=True)


if __name__ == "__main__":
    main()
