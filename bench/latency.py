"""Rows of the round trips: one record and its acknowledgement, and from a producer to a sleeping consumer."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from bench import bare
from bench.harness import Row, median, row, run_rounds, spread
from bench.world import World
from zbroker.client.producer import Producer

WARM = 100
APART_S = 0.003  # between two records to a consumer that sleeps


def acknowledge(world: World, transport: str, rounds: int) -> dict[str, float]:
    """One record and its acknowledgement, again and again."""
    topic, value, spent_us = world.topic(), bytes(100), []
    with Producer(bootstrap_servers=world.servers, transport=transport, acks=1) as producer:
        for number in range(rounds + WARM):
            started_ns = time.perf_counter_ns()
            producer.send(topic, value).result(10)
            if number >= WARM:
                spent_us.append((time.perf_counter_ns() - started_ns) / 1000)
    return _percentiles(spent_us)


def end_to_end(world: World, rounds: int) -> dict[str, float]:
    """From `send` to another process's consumer that slept."""
    topic = world.topic()
    command = [sys.executable, "-m", "bench.reader", world.servers, topic, str(rounds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        with Producer(bootstrap_servers=world.servers) as producer:
            for _ in range(rounds):
                time.sleep(APART_S)
                producer.send(topic, time.monotonic_ns().to_bytes(8, "little")).result(10)
        spent_us = json.loads(reader.stdout.readline())
    return _percentiles(spent_us)


def _percentiles(spent_us: list[float]) -> dict[str, float]:
    spent_us.sort()
    return {"p50_us": spent_us[len(spent_us) // 2], "p99_us": spent_us[len(spent_us) * 99 // 100]}


def latency_rows(world: World, rounds: int, tries: int) -> list[Row]:
    """All of them beside the bare echo."""
    found = run_rounds(
        {
            "zmq echo": lambda: bare.zmq_echo(world.scratch, tries),
            "zmq echo, apart": lambda: bare.zmq_echo(world.scratch, tries // 3, apart_s=APART_S),
            "acknowledge, lane": lambda: acknowledge(world, "auto", tries),
            "acknowledge, zmq": lambda: acknowledge(world, "zmq", tries),
            "end to end": lambda: end_to_end(world, tries // 3),
        },
        rounds,
    )
    echo = median(found["zmq echo"], "p50_us")
    rows = []
    for name, shown, target in (
        ("acknowledge, lane", "acknowledge, acks=1, lane", "<= 0.65"),
        ("acknowledge, zmq", "acknowledge, acks=1, zmq through the router", "<= 3.5"),
        ("end to end", "end to end to a sleeping consumer", "<= 0.8"),
    ):
        middle = median(found[name], "p50_us")
        middles, tails = spread(found[name], "p50_us"), spread(found[name], "p99_us")
        rows.append(row(f"{shown}, p50", middle, "us", f"zmq echo, {echo:.0f} us", middle / echo, target, middles))
        rows.append(row(f"{shown}, p99", tails.median, "us", spread=tails))
    middle, apart = (median(found[name], "p50_us") for name in ("end to end", "zmq echo, apart"))
    beside = f"zmq echo with the same pauses of {APART_S * 1000:.0f} ms, {apart:.0f} us"
    rows.append(row("end to end to a sleeping consumer, p50", middle, "us", beside, middle / apart, "<= 0.8"))
    return rows
