"""T20 for groups: the coordinator dies at every step of a rebalance, just before and just after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conditions import wait_until
from tests.consuming import make_topic
from tests.fault_points import ALL_POINTS, FILE_VARIABLE, GROUP_POINTS, Points
from tests.killed_broker import Broker
from zbroker.load.group_crew import GroupCrew
from zbroker.load.rebalance import Writing

PARTITIONS = 4


@pytest.mark.timeout(300)
def test_t20_the_coordinator_dies_at_every_step_of_a_rebalance_and_no_commit_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = Points(tmp_path / "points")
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "points"))
    with Broker(workers=1, config={"supervisor": {"crash_loop_window_ms": 1}}) as broker:
        servers = broker.bootstrap_servers
        make_topic({"bootstrap_servers": servers}, "t", PARTITIONS)
        settings = {"bootstrap_servers": servers, "heartbeat_interval_ms": 100, "session_timeout_ms": 5_000}
        with GroupCrew(tmp_path, "t", PARTITIONS, group_id="g", **settings) as crew:
            for _ in range(2):
                crew.start()
            crew.wait_until_shared()
            with Writing(servers, "t", PARTITIONS) as writing:
                for name in GROUP_POINTS:
                    newcomer = crew.start(goes=False)
                    leaver = crew.living[0]
                    pid = broker.pid_of("coordinator")
                    points.arm(ALL_POINTS.index(name) + 1)
                    newcomer.go()
                    leaver.stop()
                    wait_until(lambda: not points.armed, what=f"a death {name}")
                    broker.wait_for_restart("coordinator", pid)
                    crew.wait_until_shared()
            crew.wait_until(lambda: crew.left_out(writing.counts) == 0, "every record read")
            for member in crew.living:
                member.stop()
            report = crew.report()
            assert not report.counts, report
        assert broker.stop() == 0
