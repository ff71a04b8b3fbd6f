"""T22: the wall clock of every process, clients included, jumps back and forth by up to an hour under load."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.conditions import wait_until
from tests.wall_clock import WallClock
from zbroker.check.copies import compare_copies
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.producer import Producer
from zbroker.load.chaos import run_chaos
from zbroker.load.plan import Plan
from zbroker.testing import Broker

SEED = int(os.environ.get("ZBROKER_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
CHECK_MS = 50


class Target:
    """A broker, as a chaos run sees it."""

    def __init__(self, broker: Broker) -> None:
        self.bootstrap_servers = broker.bootstrap_servers
        self.boards_dir = broker.paths.boards_dir


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WallClock:
    return WallClock(tmp_path, monkeypatch)


@pytest.mark.timeout(300)
def test_t22_nothing_waits_fails_or_is_lost_when_the_wall_clock_jumps(clock: WallClock, tmp_path: Path) -> None:
    with Broker(workers=2, replicas=1) as broker:
        plan = Plan(seed=SEED, duration_s=10.0, fault_interval_s=3.0, kills=1, pauses=0)
        report = run_chaos(plan, Target(broker), tmp_path, disturbances=[clock.over])
        assert report.is_sound, str(report)
        assert report.acknowledged >= 1_000, report
        assert not report.refusals, "a producer was shown an error"
        assert clock.jump_count > 20
        assert broker.stop() == 0
        assert compare_copies([broker.paths.data_dir]) == []


def test_t22_retention_deletes_nothing_for_a_jump_and_goes_by_the_clock_that_a_process_finds_at_its_start(
    clock: WallClock,
) -> None:
    config = {"storage": {"retention_check_interval_ms": CHECK_MS}}
    small = {"segment.bytes": "65536", "max.message.bytes": "65536"}
    with (
        Broker(workers=1, config=config) as broker,
        AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin,
        Producer(bootstrap_servers=broker.bootstrap_servers) as producer,
    ):
        by_time, by_size = {"retention.ms": str(30 * 60_000)}, {"retention.bytes": "65536"}
        admin.create_topics([NewTopic("t", 1, 1, small | by_time), NewTopic("looked", 1, 1, small | by_size)])

        def write(topic: str) -> int:
            """More than two segments; gives the last offset."""
            for _ in range(5):
                sent = producer.send_many(topic, [b"x" * 10_000] * 5, partition=0).result(30)
            return sent[-1].base_offset

        def log_start(topic: str) -> int:
            return admin.describe_topics([topic])[topic].partitions[0].log_start or 0

        def wait_for_a_look() -> None:
            """By its size the other topic shows that retention has looked since this was called."""
            before = log_start("looked")
            write("looked")
            wait_until(lambda: log_start("looked") > before, what="retention to look")

        for _ in range(4):
            write("t")
        for ahead_s in (59 * 60, -59 * 60, 59 * 60):
            clock.jump_to(ahead_s)
            for _ in range(2):  # the first one may have begun before the jump
                wait_for_a_look()
            assert log_start("t") == 0, f"deleted when the clock was {ahead_s} s ahead"
        broker.wait_for_restart("worker-0", broker.kill("worker-0"))
        wait_until(lambda: log_start("t") > 0)
