"""A consumer that gives out so many records a second, by every call and every way to the broker (S-149)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.consuming import broker_with_tcp, fill, numbers
from zbroker import aio
from zbroker.client.consumer import Consumer
from zbroker.testing import Broker

PER_S = 400
COUNT = 200
AT_LEAST_S = (COUNT - PER_S / 10) / PER_S


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(workers=1)
    with broker:
        yield broker, address


def by_polls(settings: dict[str, Any], topic: str) -> Iterator[list[bytes | None]]:
    with Consumer(topic, settings, auto_offset_reset="earliest") as consumer:
        while True:
            yield [record.value for record in consumer.consume(1_000, timeout_ms=20_000)]


def by_iteration(settings: dict[str, Any], topic: str) -> Iterator[list[bytes | None]]:
    with Consumer(topic, settings, auto_offset_reset="earliest") as consumer:
        for record in consumer:
            yield [record.value]


def by_batches(settings: dict[str, Any], topic: str) -> Iterator[list[bytes | None]]:
    with Consumer(topic, settings, auto_offset_reset="earliest") as consumer:
        for batch in consumer.batches():
            yield [record.value for record in batch]


@pytest.mark.parametrize("read", [by_polls, by_iteration, by_batches])
def test_s149_records_come_no_faster_than_they_may_and_all_of_them(way: dict[str, Any], topic: str, read: Any) -> None:
    fill(way, topic, numbers(COUNT), batch=10)
    start_s = time.monotonic()
    found: list[bytes | None] = []
    for values in read({**way, "max_records_per_s": PER_S}, topic):
        found += values
        if len(found) >= COUNT:
            break
    assert time.monotonic() - start_s >= AT_LEAST_S - 10 / PER_S, "the last batch may come in advance"
    assert found == numbers(COUNT)


def test_s149_the_asyncio_consumer_keeps_to_it_too(way: dict[str, Any], topic: str) -> None:
    fill(way, topic, numbers(COUNT))

    async def main() -> list[bytes | None]:
        found: list[bytes | None] = []
        async with aio.Consumer(topic, way, auto_offset_reset="earliest", max_records_per_s=PER_S) as consumer:
            async for record in consumer:
                found.append(record.value)
                if len(found) == COUNT:
                    break
        return found

    start_s = time.monotonic()
    assert asyncio.run(main()) == numbers(COUNT)
    assert time.monotonic() - start_s >= AT_LEAST_S
