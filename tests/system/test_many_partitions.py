"""What a partition costs: memory in clients and workers, descriptors, and the time of a start."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.producer import Producer
from zbroker.errors import BufferFullError
from zbroker.testing import Broker

PARTITIONS = 300
KIB = 1 << 10


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_a_producers_buffer_has_one_bound_however_many_partitions_fill_it() -> None:
    """batch_size is for each partition; buffer_memory is for all of them."""
    batch_size, memory = 16_384, 1 << 20
    never_hangs = {"coordinator": {"hang_timeout_ms": 0}}
    with (
        Broker(workers=1, config=never_hangs) as broker,
        AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin,
    ):
        admin.create_topics([NewTopic("many", PARTITIONS)])
        assert PARTITIONS * batch_size > 4 * memory, "partitions times batch size would not fill the buffer"
        producer = Producer(
            bootstrap_servers=broker.bootstrap_servers,
            batch_size=batch_size,
            buffer_memory=memory,
            max_request_size=64 * KIB,
            max_block_ms=1_000,
            linger_ms=60_000,
        )
        for number in range(PARTITIONS):
            producer.send("many", b"x", partition=number)
        assert producer.flush(timeout_ms=20_000) == 0
        worker = broker.signal("worker-0", signal.SIGSTOP)
        used: list[float] = []

        def fill() -> None:
            for number in range(20 * memory // 1_000):
                producer.send("many", bytes(1_000), partition=number % PARTITIONS)
                used.append(producer.metrics()["buffer_bytes"])

        try:
            with pytest.raises(BufferFullError, match="buffer_memory"):
                fill()
        finally:
            os.kill(worker, signal.SIGCONT)
        assert memory * 0.9 < max(used) <= memory + batch_size
        assert producer.flush(timeout_ms=20_000) == 0
        producer.close()


def test_a_partition_costs_a_worker_little_memory_and_few_descriptors() -> None:
    with Broker(workers=1) as broker, AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        admin.create_topics([NewTopic("one", 1)])
        pid = broker.pid_of("worker-0")
        with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
            producer.send("one", b"x").result(20)
            before = (resident_bytes(pid), descriptors(pid))
            admin.create_topics([NewTopic("many", PARTITIONS)])
            for number in range(PARTITIONS):
                producer.send("many", b"x", partition=number)
            assert producer.flush(timeout_ms=20_000) == 0
            after = (resident_bytes(pid), descriptors(pid))
        assert after[0] - before[0] < PARTITIONS * 32 * KIB, (
            f"{(after[0] - before[0]) / PARTITIONS:.0f} bytes a partition"
        )
        # The directory's lock, and the .log of the active segment while there is room for open segments.
        assert after[1] - before[1] <= PARTITIONS * 2 + 8


def test_a_clean_start_reads_little_of_the_logs_and_one_after_a_death_all_that_was_not_synced(tmp_path: Path) -> None:
    """Recovery is what makes many partitions slow to come back: after a clean stop there is next to none."""
    partitions, rounds = 20, 4
    values = [bytes(10_000)] * 100
    total_bytes = partitions * rounds * len(values) * len(values[0])
    with Broker(workers=1, directory=tmp_path) as broker:
        with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
            admin.create_topics([NewTopic("many", partitions)])

        def fill() -> None:
            # A start reads the last batch of each log, however clean the stop was: let that be little.
            with Producer({"max_request_size": 65_536}, bootstrap_servers=broker.bootstrap_servers) as producer:
                for number in range(partitions * rounds):
                    producer.send_many("many", values, partition=number % partitions)
                assert producer.flush(timeout_ms=20_000) == 0

        def read_bytes_of_a_start() -> int:
            broker.start()
            with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
                for number in range(partitions):
                    producer.send("many", b"x", partition=number)
                assert producer.flush(timeout_ms=20_000) == 0
            io = Path(f"/proc/{broker.pid_of('worker-0')}/io").read_text().split()
            assert io[0] == "rchar:"
            return int(io[1])

        fill()
        assert broker.stop() == 0
        after_stop = read_bytes_of_a_start()
        fill()
        broker.kill_all()
        after_death = read_bytes_of_a_start()
    assert after_stop < total_bytes / 4, "a clean stop, and the logs were read"
    assert after_death >= total_bytes, "the counter-example: what is not known to be sound is read"
