"""isolation_level="read_durable": nothing is given out before it is on the disk, whichever way it is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.consuming import WAYS, broker_with_tcp, fill, make_topic, numbers, read_values
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.errors import ConfigError
from zbroker.testing import Broker


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(workers=1)
    with broker:
        yield broker, address


def test_records_are_held_back_until_they_are_synced(way: dict[str, Any], request: pytest.FixtureRequest) -> None:
    topic = f"held-{WAYS.index(request.node.callspec.params['way'])}"
    make_topic(way, topic, flush_messages=-1, flush_ms=-1)
    fill(way, topic, numbers(20))
    with (
        Consumer(topic, auto_offset_reset="earliest", isolation_level="read_durable", **way) as durable,
        Consumer(topic, auto_offset_reset="earliest", **way) as other,
        Producer(way, acks="fsync") as producer,
    ):
        assert read_values(other, 20) == numbers(20)
        assert durable.poll(timeout_ms=200) == {}
        assert durable.position((topic, 0)) == 0
        assert durable.lag() == dict.fromkeys(durable.assignment(), 20), "its end is the high watermark too"
        producer.send(topic, b"20", partition=0).result(20)
        assert read_values(durable, 21) == numbers(21)
        assert read_values(other, 1) == [b"20"]
        fill(way, topic, numbers(5, 21))
        assert durable.consume(5, timeout_ms=100) == []
        producer.send(topic, b"26", partition=0).result(20)
        batches = durable.batches(timeout_ms=20_000)
        got = [record.value for batch in (next(batches), next(batches)) for record in batch]
        assert got == [*numbers(5, 21), b"26"]


def test_a_topic_that_syncs_by_itself_wakes_a_reader_that_sleeps(way: dict[str, Any]) -> None:
    topic = f"synced-{way.get('transport', 'tcp')}"
    make_topic(way, topic, flush_ms=20)
    with Consumer(topic, auto_offset_reset="earliest", isolation_level="read_durable", **way) as durable:
        for round_ in range(3):
            fill(way, topic, numbers(10, round_ * 10))
            assert read_values(durable, 10) == numbers(10, round_ * 10)


def test_no_other_level_is_known() -> None:
    with pytest.raises(ConfigError, match="isolation_level"):
        Consumer("t", isolation_level="read_committed")
