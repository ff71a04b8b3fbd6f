"""A process that finds no router waits for it, and says so once."""

from __future__ import annotations

from pathlib import Path

import pytest

from zbroker import ids
from zbroker.clock import ManualClock
from zbroker.transport.loop import Loop
from zbroker.workers.link import HELLO_INTERVAL_MS, HELLOS_IN_SILENCE, RouterLink


def test_a_process_without_a_router_says_once_that_it_waits_and_where(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    loop = Loop(clock)
    endpoint = f"ipc://{tmp_path}/back.sock"
    link = RouterLink(
        loop, clock, endpoint, number=ids.worker_number(0), incarnation=ids.own_incarnation(),
        message_max_bytes=1 << 20, on_request=lambda frames: None,
    )  # fmt: skip
    for _ in range(2 * HELLOS_IN_SILENCE):
        clock.advance(HELLO_INTERVAL_MS)
        loop.run_once(0)
    said = [record for record in caplog.records if "no router answers" in record.message]
    assert len(said) == 1
    assert vars(said[0])["at"] == endpoint
    link.close()
    loop.close()
