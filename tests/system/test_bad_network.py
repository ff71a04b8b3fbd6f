"""T21: messages between tcp clients and the broker are lost, doubled, delayed, swapped, damaged and cut off, under
load; afterwards every acknowledged record is there once and in order. The seed is printed.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.consuming import free_port
from tests.frame_proxy import FrameProxy, Weather
from zbroker.check.copies import compare_copies
from zbroker.client.admin import AdminClient
from zbroker.client.connection import HELLO_ATTEMPT_MS
from zbroker.load.chaos import run_chaos
from zbroker.load.plan import Plan
from zbroker.testing import Broker

SEED = int(os.environ.get("ZBROKER_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
CLIENTS = {"request_timeout_ms": 5_000}
WEATHERS = {
    "lossy": Weather(drop=0.3),
    "slow": Weather(delay_min_s=0.05, delay_max_s=0.15, reorder=0.1),
    "double": Weather(duplicate=0.1, drop=0.05, reset=0.01),
    "cut-and-damaged": Weather(cut_s=2.0, corrupt=0.03),
}


class Target:
    """The broker, as clients see it that come through the proxy."""

    def __init__(self, broker: Broker, proxy: FrameProxy) -> None:
        self.bootstrap_servers = proxy.address
        self.boards_dir = broker.paths.boards_dir


def test_a_client_connects_where_each_answer_takes_longer_than_its_first_attempt() -> None:
    port = free_port()
    network = {"tcp_listen": f"tcp://127.0.0.1:{port}", "tcp_unauthenticated_loopback": True}
    with Broker(config={"network": network}) as broker:
        slow = 2 * HELLO_ATTEMPT_MS / 1_000
        proxy = FrameProxy(("127.0.0.1", port), Weather(delay_min_s=slow, delay_max_s=slow), SEED)
        try:
            plan = Plan(seed=SEED)
            with (
                proxy.over(plan, Target(broker, proxy), []),
                AdminClient(bootstrap_servers=proxy.address) as admin,
            ):
                assert admin.list_topics() == []
        finally:
            proxy.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", WEATHERS)
def test_t21_a_bad_network_loses_doubles_and_reorders_nothing(name: str, tmp_path: Path) -> None:
    port = free_port()
    network = {"tcp_listen": f"tcp://127.0.0.1:{port}", "tcp_unauthenticated_loopback": True}
    with Broker(workers=2, replicas=1, config={"network": network}) as broker:
        proxy = FrameProxy(("127.0.0.1", port), WEATHERS[name], SEED)
        try:
            plan = Plan(seed=SEED, duration_s=8.0, kills=0, pauses=0, client_settings=CLIENTS, records_per_s=500)
            report = run_chaos(plan, Target(broker, proxy), tmp_path, disturbances=[proxy.over])
        finally:
            proxy.close()
        assert report.is_sound, str(report)
        assert report.acknowledged >= 400, (report, proxy.done)
        assert "CorruptRecordError" not in report.refusals, "what was damaged on its way is sent again"
        weather = WEATHERS[name]
        for what in ("drop", "duplicate", "reorder", "corrupt"):
            assert bool(proxy.done[what]) == bool(getattr(weather, what)), f"{what}: {proxy.done}"
        assert not weather.cut_s or proxy.done["cut"]
        assert broker.stop() == 0
        assert compare_copies([broker.paths.data_dir]) == []
