"""What copies and durability cost: `python -m bench.durability [--rounds N] [--small]`. Writes results/durability.json.

- The batch path with two copies in sync beside one, in turns, on tmpfs and on a disk.
- How many records one fdatasync answers with acks=fsync and many producers.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import click

from bench.harness import Contender, Row, best, command_of, print_table, row, run_rounds, save, spread
from bench.world import batches
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.producer import Producer
from zbroker.shm.board_reader import BoardReader
from zbroker.shm.layout import Counter
from zbroker.shm.owned_directory import OwnedDirectory
from zbroker.testing import Broker

RECORDS = 1_200_000
SMALL_RECORDS = 24_000
PRODUCERS = 100
PROCESSES = 4
FSYNC_S = 10.0
ABOUT = "100-byte records, lists of 10,000"


def _batch_rate(servers: str, topic: str, count: int) -> Contender:
    def run() -> dict[str, float]:
        with Producer(bootstrap_servers=servers, acks="all") as producer:
            producer.send_many(topic, [b"first"]).result(30)
            lists = list(batches(count))
            begin_s = time.perf_counter()
            for values in lists:
                producer.send_many(topic, values)
            producer.flush()
            return {"records_per_s": sum(map(len, lists)) / (time.perf_counter() - begin_s)}

    return run


def copies_rows(rounds: int, count: int, directory: Path | None, target: str) -> list[Row]:
    """The batch path with one copy and with two."""
    where = "tmpfs" if directory is None else "disk"
    with Broker(workers=1, replicas=1, directory=directory) as broker:
        with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
            admin.create_topics([NewTopic("one", 1, 1), NewTopic("two", 1, 2, {"min.insync.replicas": "2"})])
        found = run_rounds(
            {name: _batch_rate(broker.bootstrap_servers, name, count) for name in ("one", "two")}, rounds
        )
    one, two = (best(found[name], "records_per_s") for name in ("one", "two"))
    rates = spread(found["two"], "records_per_s", 1e-6)
    return [row(f"send_many, two copies in sync, {where}", two / 1e6, "M/s", "one copy", two / one, target, rates)]


def fsync_rows(producers: int, seconds: float, directory: Path) -> list[Row]:
    """Many producers that each wait for their record to be on the disk."""
    with ExitStack() as stack:
        broker = stack.enter_context(Broker(workers=1, directory=directory))
        servers = broker.bootstrap_servers
        with AdminClient(bootstrap_servers=servers) as admin:
            admin.create_topics([NewTopic("durable", 1)])
        each = max(1, producers // PROCESSES)
        command = [sys.executable, "-m", "bench.producers", servers, "durable", str(each), str(seconds)]
        pipe = subprocess.PIPE
        processes = [
            stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
            for _ in range(producers // each)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        before = _fsyncs(broker)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        acknowledged = sum(int(process.communicate(timeout=seconds + 60)[0]) for process in processes)
        synced = _fsyncs(broker) - before
    return [
        row(f"records for one fdatasync, {producers} producers", acknowledged / max(1, synced), "", target=">= 20"),
        row("acks=fsync, records acknowledged", acknowledged / seconds, "1/s"),
    ]


def _fsyncs(broker: Broker) -> int:
    reader = BoardReader.find(broker.paths.boards_dir, "worker-0")
    assert reader is not None
    try:
        return reader.counter(Counter.FSYNCS)
    finally:
        reader.close()


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Of the batch path.")
@click.option("--small", is_flag=True, help="Few of everything: checks that it runs, says nothing about speed.")
@click.option("--disk", default="/var/tmp", show_default=True, type=Path, help="A directory on the disk to measure.")
def main(rounds: int, small: bool, disk: Path) -> None:
    """Measure, print the table, and write bench/results/durability.json."""
    count = SMALL_RECORDS if small else RECORDS
    rows = copies_rows(rounds, count, None, ">= 0.5")
    with OwnedDirectory.make("zbb-", disk) as directory:
        rows += copies_rows(rounds, count, directory / "copies", ">= 0.4")
        rows += fsync_rows(5 if small else PRODUCERS, 1.0 if small else FSYNC_S, directory / "fsync")
    print_table(rows)
    if not small:
        print(save("durability", command_of("bench.durability"), rows, about=ABOUT))


if __name__ == "__main__":
    main()
