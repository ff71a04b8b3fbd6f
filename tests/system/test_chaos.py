"""Kills, pauses and restarts of random processes under the standard load, and everything that the clients were told
checked afterwards. The seed is in the report; `zbroker chaos --seed N` draws the same faults again.

Small versions of T16, T17, T19, T25 and T28; `zbroker soak` runs the long ones.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from zbroker.check.copies import compare_copies
from zbroker.load.chaos import ChaosReport, run_chaos
from zbroker.load.faults import broker_processes
from zbroker.load.plan import Plan
from zbroker.testing import Broker

SEED = int(os.environ.get("ZBROKER_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
BROKER_ROLES = frozenset({"router", "worker", "replica", "coordinator"})


class Target:
    """A broker of the test's own, as a chaos run sees it."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.bootstrap_servers = broker.bootstrap_servers
        self.boards_dir = broker.paths.boards_dir


@pytest.fixture
def target() -> Iterator[Target]:
    with Broker(workers=2, replicas=2) as broker:
        yield Target(broker)


def run(target: Target, directory: Path, **changes: object) -> ChaosReport:
    """A run, its verdict, and what must be true of the broker afterwards."""
    plan = Plan(seed=SEED, **changes)  # type: ignore[arg-type]  # the plan's own fields
    report = run_chaos(plan, target, directory)
    told = msgspec.json.format(msgspec.json.encode(report)).decode()
    assert report.is_sound, told
    assert report.acknowledged > 100 * plan.duration_s * 0.5, told
    broker = target.broker
    assert set(broker_processes(target.boards_dir)) == {
        "coordinator",
        "router",
        "worker-0",
        "worker-1",
        "replica-0",
        "replica-1",
    }
    assert broker.stop() == 0
    assert compare_copies([broker.paths.data_dir]) == []
    left = sorted(path.name for path in broker.paths.run_dir.rglob("*") if not path.is_dir())
    assert left == [], f"left behind: {left}"
    return report


@pytest.mark.timeout(300)
def test_t16_random_processes_are_killed_and_nothing_is_lost_doubled_or_reordered(
    target: Target, tmp_path: Path
) -> None:
    report = run(target, tmp_path, duration_s=75.0, fault_interval_s=1.0, pauses=0, faults_min=20, faults_max=60)
    assert sum(report.faults.values()) >= 20, report
    assert not report.refusals, "a producer was shown an error"


@pytest.mark.timeout(300)
def test_t17_random_processes_are_paused_and_a_woken_leader_harms_nobody(target: Target, tmp_path: Path) -> None:
    plan = {"duration_s": 45.0, "fault_interval_s": 2.5, "kills": 0, "pauses": 1, "faults_min": 5, "faults_max": 15}
    report = run(target, tmp_path, **plan)
    assert sum(report.faults.values()) >= 5, report


@pytest.mark.timeout(300)
def test_t19_processes_are_restarted_one_after_the_other_and_no_client_is_shown_an_error(
    target: Target, tmp_path: Path
) -> None:
    report = run(
        target,
        tmp_path,
        duration_s=20.0,
        fault_interval_s=1.5,
        kills=0,
        pauses=0,
        restarts=1,
        faults_min=3,
        roles=BROKER_ROLES,
    )
    assert sum(report.faults.values()) >= 3, report
    assert not report.refusals, "a producer was shown an error"


@pytest.mark.timeout(300)
def test_t25_copies_are_moved_and_processes_emptied_under_load_with_kills_and_restarts_in_between(
    target: Target, tmp_path: Path
) -> None:
    report = run(
        target,
        tmp_path,
        duration_s=20.0,
        topics=1,
        partitions=20,
        min_insync_replicas=3,
        fault_interval_s=1.5,
        kills=1,
        pauses=0,
        restarts=1,
        faults_min=3,
        move_interval_s=0.05,
    )
    assert report.moves.get("move", 0) >= 5, report
    assert report.moves.get("drain", 0) + report.moves.get("elect", 0) >= 1, report
    assert sum(report.faults.values()) >= 3, report


@pytest.mark.timeout(300)
def test_t28_kills_pauses_restarts_and_moves_at_once(target: Target, tmp_path: Path) -> None:
    report = run(
        target,
        tmp_path,
        duration_s=15.0,
        kills=3,
        pauses=1,
        restarts=1,
        faults_min=5,
        move_interval_s=0.2,
        records_per_s=1_500,
    )
    assert sum(report.faults.values()) >= 5, report
    assert report.moves, report
