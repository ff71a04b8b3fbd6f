"""S-193 with real processes: readers show on the boards how far they are, whichever way they read; the doctor tells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conditions import wait_until
from tests.consuming import WAYS, broker_with_tcp, fill, make_topic, numbers, read_values, settings_for
from zbroker.client.consumer import Consumer
from zbroker.doctor import traffic
from zbroker.doctor.findings import Finding, Level
from zbroker.shm.board_reader import BoardReader
from zbroker.testing import Broker

COUNT = 3_000


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(workers=1)
    with broker:
        yield broker, address


def reader_offsets(broker: Broker) -> list[int | None]:
    board = BoardReader.find(broker.paths.boards_dir, "worker-0")
    assert board is not None
    try:
        return [view.reader_offset for view in board.partitions()]
    finally:
        board.close()


def backlog(broker: Broker) -> Finding:
    return next(one for one in traffic.examine_traffic(broker.paths.boards_dir) if one.rule == "backlog")


@pytest.mark.parametrize("way", WAYS)
def test_a_reader_that_falls_behind_is_found_and_one_that_catches_up_is_not(
    way: str, served: tuple[Broker, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = served[0]
    settings: dict[str, Any] = settings_for(way, *served)
    monkeypatch.setattr(traffic, "BACKLOG_RECORDS", 1_000)
    monkeypatch.setattr("zbroker.client.sleep.TELL_NS", 0)
    make_topic(settings, f"backlog-{way}")
    fill(settings, f"backlog-{way}", numbers(COUNT), batch=100)
    assert reader_offsets(broker)[-1] is None, "nobody has read it"
    assert backlog(broker).level is Level.PASS
    with Consumer(
        f"backlog-{way}",
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=2_000,
        fetch_max_bytes=2_000,
        **settings,
    ) as consumer:
        read_values(consumer, 10)
        consumer.poll(timeout_ms=20_000, max_records=10)
        wait_until(lambda: reader_offsets(broker)[-1] is not None, what="the word of the reader")
        slow = backlog(broker)
        assert slow.level is Level.WARN, slow
        assert "more consumers" in slow.fix
        read_values(consumer, COUNT - 20)
        consumer.poll(timeout_ms=100)
        wait_until(lambda: reader_offsets(broker)[-1] == COUNT, what="the reader's end")
        assert backlog(broker).level is Level.PASS
