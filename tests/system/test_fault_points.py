"""T20: processes die at named points of the protocol, just before and just after each step of it, under load."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.fault_points import FILE_VARIABLE, HOT, POINTS, Killer
from tests.killed_broker import Broker
from zbroker.check.copies import compare_copies
from zbroker.load.chaos import run_chaos
from zbroker.load.plan import Plan

SEED = int(os.environ.get("ZBROKER_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
DURATION_S = float(os.environ.get("ZBROKER_POINTS_S", "45"))


class Target:
    """A broker, as a chaos run sees it."""

    def __init__(self, broker: Broker) -> None:
        self.bootstrap_servers = broker.bootstrap_servers
        self.boards_dir = broker.paths.boards_dir


@pytest.mark.timeout(400)
def test_t20_processes_die_at_every_point_of_the_protocol_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "points"
    killer = Killer(path)
    monkeypatch.setenv(FILE_VARIABLE, str(path))
    with Broker(workers=2, replicas=2) as broker:
        plan = Plan(
            seed=SEED,
            duration_s=DURATION_S,
            fault_interval_s=6.0,
            kills=1,
            pauses=0,
            move_interval_s=0.1,
            segment_bytes=64 << 10,
        )
        report = run_chaos(plan, Target(broker), tmp_path, disturbances=[killer.over])
        assert report.is_sound, str(report)
        assert not report.refusals, f"a producer was shown an error: {report.refusals}"
        assert broker.stop() == 0
        assert compare_copies([broker.paths.data_dir]) == []
    assert any(name.partition(" ")[2] in HOT for name in killer.fired), killer.fired
    assert len(killer.fired) >= DURATION_S / 5, f"seed {SEED}: {sorted(set(POINTS) - killer.fired)} killed nobody"
