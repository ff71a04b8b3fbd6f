"""Rows of the produce side: the batch call, the call for each record, and the bound sender; on tmpfs and on a disk."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from bench import bare
from bench.harness import Contender, Row, best, median, row, run_rounds, spread
from bench.world import BATCH_RECORDS, World, batches
from zbroker.client.producer import Producer
from zbroker.doctor.host import file_system_of
from zbroker.shm.owned_directory import OwnedDirectory
from zbroker.testing import Broker

CHUNK_RECORDS = 10_000
DISK_RECORDS = 24_000_000  # 2.5 GB: what the host's cache and the kernel's patience take in at first is a part of it
DISK_LISTS = 25  # of fresh values, used again and again: making them would give the disk time to catch up


def send_many(world: World) -> dict[str, float]:
    """Acknowledged records a second of the batch call."""
    spent_s, topic = 0.0, world.topic()
    with Producer(bootstrap_servers=world.servers) as producer:
        producer.send(topic, b"warm").result(10)
        for values in batches(world.count):
            started_s = time.perf_counter()
            producer.send_many(topic, values)
            spent_s += time.perf_counter() - started_s
        started_s = time.perf_counter()
        producer.flush()
        spent_s += time.perf_counter() - started_s
    return {"records_per_s": world.count / spent_s}


def each(world: World, how: str, key: bytes | None) -> dict[str, float]:
    """Acknowledged records a second of one call for each record, and what the call costs."""
    topic, chunks = world.topic(), max(1, world.count // 4 // CHUNK_RECORDS)
    with Producer(bootstrap_servers=world.servers) as producer:
        producer.send(topic, b"warm").result(10)
        emit, send = producer.sender(topic), producer.send
        called_s = 0.0
        for _ in range(chunks):
            values = bare.fresh_values(CHUNK_RECORDS, 100)
            started_s = time.perf_counter()
            if how == "sender":
                for value in values:
                    emit(value, key)
            else:
                for value in values:
                    send(topic, value, key)
            called_s += time.perf_counter() - started_s
        started_s = time.perf_counter()
        producer.flush()
        spent_s = called_s + time.perf_counter() - started_s
    sent = chunks * CHUNK_RECORDS
    return {"records_per_s": sent / spent_s, "call_us": called_s / sent * 1e6}


def produce_rows(world: World, rounds: int) -> list[Row]:
    """The rows on tmpfs."""
    scratch = world.scratch / "bare.log"
    contenders: dict[str, Contender] = {
        "bare join + CRC + pwrite": lambda: bare.join_crc_pwrite(scratch, batches(world.count)),
        "bare columns + CRC + pwrite": lambda: bare.columns_crc_pwrite(scratch, batches(world.count)),
        "send_many": lambda: send_many(world),
        "send": lambda: each(world, "send", None),
        "send with key": lambda: each(world, "send", b"user-1234"),
        "sender": lambda: each(world, "sender", None),
    }
    found = run_rounds(contenders, rounds)
    top = {name: best(figures, "records_per_s") for name, figures in found.items()}
    calls = {name: min(one["call_us"] for one in found[name]) for name in ("send", "send with key", "sender")}
    join, columns = "bare join + CRC + pwrite", "bare columns + CRC + pwrite"
    many = top["send_many"]
    rates = {name: spread(found[name], "records_per_s", 1e-6) for name in ("send_many", "send", "sender")}
    spent = {name: spread(found[name], "call_us") for name in calls}
    return [
        row(
            "send_many, acknowledged, tmpfs", many / 1e6, "M/s", _of(join, top[join]), many / top[join], ">= 0.35",
            rates["send_many"],
        ),
        row(
            "send_many, acknowledged, tmpfs", many / 1e6, "M/s", _of(columns, top[columns]), many / top[columns],
            ">= 0.60", rates["send_many"],
        ),
        row("send, acknowledged", top["send"] / 1e6, "M/s", target=">= 1 M/s", spread=rates["send"]),
        row("send, the call", calls["send"], "us", target="<= 0.9", spread=spent["send"]),
        row("send with a key, the call", calls["send with key"], "us", target="<= 1.2", spread=spent["send with key"]),
        row("sender, acknowledged", top["sender"] / 1e6, "M/s", target=">= 2.5 M/s", spread=rates["sender"]),
        row("sender, the call", calls["sender"], "us", target="<= 0.3", spread=spent["sender"]),
    ]  # fmt: skip


def _of(name: str, rate: float) -> str:
    return f"{name}, {rate / 1e6:.1f} M/s"


def disk_rows(disk: Path, count: int, rounds: int) -> list[Row]:
    """The batch call where the data go to a disk, until they are on it, beside the disk's own rate."""
    with OwnedDirectory.make("zbb-", disk) as here:
        kind = file_system_of(here)
        contenders: dict[str, Contender] = {
            "bare pwrite, disk": lambda: bare.disk_write(here / "bare.log", count),
            "send_many, disk": lambda: _send_many_to_disk(here, count),
        }
        found = run_rounds(contenders, rounds)
    own, many = (median(found[name], "mb_per_s") for name in contenders)  # a disk has good and bad moments
    beside = f"bare pwrite and fdatasync, {own:.0f} MB/s"
    what = f"send_many, sustained, {kind}, {count / 10_000_000:.1f} GB until they are on the disk"
    return [row(what, many, "MB/s", beside, many / own, ">= 0.80", spread(found["send_many, disk"], "mb_per_s"))]


def _send_many_to_disk(directory: Path, count: int) -> dict[str, float]:
    lists = list(batches(DISK_LISTS * BATCH_RECORDS))
    calls = count // BATCH_RECORDS
    with Broker(config={"broker": {"data_dir": str(directory / "data")}}) as broker:
        world = World(broker, directory, count)
        name, _, files = world.new_topic()
        with Producer(bootstrap_servers=world.servers) as producer:
            producer.send(name, b"warm").result(10)
            started_s = time.perf_counter()
            for number in range(calls):
                producer.send_many(name, lists[number % DISK_LISTS])
            producer.flush()
            bare.sync_files(sorted(files.glob("*.log")))
            spent_s = time.perf_counter() - started_s
    shutil.rmtree(directory / "data")
    return {"mb_per_s": calls * bare.columns_bytes(BATCH_RECORDS) / spent_s / 1e6}
