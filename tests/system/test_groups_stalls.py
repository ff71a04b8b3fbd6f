"""P-07: a consumer that silently stops is in the coordinator's log, with who, where and how far behind."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.conditions import wait_until
from tests.consuming import broker_with_tcp, fill, make_topic, numbers, read_values, settings_for
from zbroker.client.consumer import Consumer

STILL, ON = "a consumer stands still and its lag grows", "a consumer goes on"


@pytest.mark.parametrize("way", ["shm", "tcp"])
def test_p07_a_paused_partition_whose_lag_grows_is_logged_once_and_when_it_goes_on(way: str) -> None:
    broker, address = broker_with_tcp(workers=1)
    broker.config.groups.stalled_after_ms = 1_000
    with broker:
        settings: dict[str, Any] = settings_for(way, broker, address)
        make_topic(settings, "t", 2)
        fill(settings, "t", numbers(5))
        with Consumer(
            "t", group_id="g", auto_offset_reset="earliest", auto_commit_interval_ms=20, **settings
        ) as consumer:
            assert read_values(consumer, 5) == numbers(5)
            consumer.pause(("t", 0))
            batches = itertools.count(1)

            def write_and_poll() -> bool:
                for partition in (0, 1):
                    fill(settings, "t", numbers(1, next(batches)), partition)
                consumer.consume(10, timeout_ms=10)
                return STILL in broker.log

            wait_until(write_and_poll, what="a line about the member that stands still")
            (line,) = [line for line in broker.log.splitlines() if STILL in line]
            assert "partition=0" in line
            assert consumer.group_metadata().member_id in line
            for _ in range(20):
                write_and_poll()
            assert broker.log.count(STILL) == 1, "once is enough, and the other partition goes on"
            consumer.resume()

            def is_on() -> bool:
                consumer.consume(100, timeout_ms=10)
                return ON in broker.log

            wait_until(is_on, what="a line that it goes on")
