"""Processes that are killed with a request in their hands: its asker is told, and need not wait for its own deadline.

The clients here cannot see the process's end by themselves: they come by tcp, or had no reason to watch it.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conditions import wait_until_stopped
from tests.consuming import broker_with_tcp, make_topic, settings_for
from tests.forwarding import DEADLINE_MS, wait_until_forwarded
from zbroker import ids
from zbroker.client.admin import AdminClient
from zbroker.client.connection import Connection
from zbroker.client.producer import Producer
from zbroker.client.settings import ConnectionSettings, read_settings
from zbroker.errors import BrokerNotAvailableError, NotLeaderForPartitionError
from zbroker.testing import Broker
from zbroker.wire.codec import encode
from zbroker.wire.layout import Api
from zbroker.wire.messages import ListOffsetsRequest

WAIT_S = 30.0


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(workers=1)
    with broker:
        yield broker, address


@pytest.fixture(params=["zmq", "tcp"])
def way(request: pytest.FixtureRequest, served: tuple[Broker, str]) -> dict[str, Any]:
    return {**settings_for(request.param, *served), "request_timeout_ms": DEADLINE_MS}


def stop(broker: Broker, name: str) -> int:
    pid = broker.signal(name, signal.SIGSTOP)
    wait_until_stopped(pid)
    return pid


def test_a_request_to_a_worker_that_is_killed_is_answered_at_once(
    served: tuple[Broker, str], way: dict[str, Any]
) -> None:
    broker, _ = served
    connection = Connection(read_settings(ConnectionSettings, way, {}))
    body = encode(ListOffsetsRequest([]))
    with contextlib.closing(connection), ThreadPoolExecutor(1) as asker:
        connection.request(ids.worker_number(0), Api.LIST_OFFSETS, [body])  # it is there
        pid = stop(broker, "worker-0")
        asked = asker.submit(
            connection.request, ids.worker_number(0), Api.LIST_OFFSETS, [body], timeout_ms=DEADLINE_MS, repeats=False
        )
        wait_until_forwarded(connection)
        broker.kill("worker-0")
        with pytest.raises(NotLeaderForPartitionError, match="worker-0 has ended"):
            asked.result(WAIT_S)
        broker.wait_for_restart("worker-0", pid)


def test_what_may_have_been_done_by_a_coordinator_that_is_killed_is_told_and_not_repeated(
    served: tuple[Broker, str], way: dict[str, Any]
) -> None:
    broker, _ = served
    with AdminClient(way) as admin, ThreadPoolExecutor(1) as asker:
        admin.list_topics()  # it is there
        pid = stop(broker, "coordinator")
        asked = asker.submit(admin.create_topics, ["never"], timeout_ms=DEADLINE_MS)
        wait_until_forwarded(admin._connection)
        broker.kill("coordinator")
        with pytest.raises(BrokerNotAvailableError, match="the coordinator has ended while it was asked"):
            asked.result(WAIT_S)
        broker.wait_for_restart("coordinator", pid)
        assert "never" not in admin.list_topics()


def test_a_producer_far_away_goes_on_with_the_successor_of_a_worker_that_is_killed(served: tuple[Broker, str]) -> None:
    broker, address = served
    settings = settings_for("tcp", broker, address)
    make_topic(settings, "t")
    with Producer(settings, request_timeout_ms=DEADLINE_MS, delivery_timeout_ms=2 * DEADLINE_MS) as producer:
        assert producer.send("t", b"first").result(WAIT_S).offset == 0
        pid = stop(broker, "worker-0")
        second = producer.send("t", b"second")
        producer.flush(local=True)
        wait_until_forwarded(producer._connection)
        broker.kill("worker-0")
        assert second.result(WAIT_S).offset == 1
        broker.wait_for_restart("worker-0", pid)
