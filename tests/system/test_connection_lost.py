"""Connections to the router that break while both ends live: a process is reached again by the next, a client goes on.

Nobody but libzmq ends them, for a frame above the limit or one that makes no sense, or the router, when its clients
take too much memory. What was on its way is lost; who had asked is told, and need not wait for its own deadline.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conditions import wait_until_stopped
from tests.consuming import broker_with_tcp, make_topic, numbers, read_values, settings_for
from tests.cut_connections import cut
from tests.forwarding import DEADLINE_MS, wait_until_forwarded
from zbroker import ids
from zbroker.client.admin import AdminClient
from zbroker.client.connection import Connection
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.client.settings import ConnectionSettings, read_settings
from zbroker.errors import BrokerNotAvailableError, NotLeaderForPartitionError
from zbroker.ids import TopicPartition
from zbroker.testing import Broker
from zbroker.wire.codec import encode
from zbroker.wire.layout import Api
from zbroker.wire.messages import DescribeConfigs, ListOffsetsRequest

WAIT_S = 30.0
WORKER = ids.worker_number(0)
ASKED = {
    "coordinator": (ids.COORDINATOR, Api.DESCRIBE_CLUSTER, encode(DescribeConfigs(""))),
    "worker-0": (WORKER, Api.LIST_OFFSETS, encode(ListOffsetsRequest([]))),
    "replica-0": (ids.replica_number(0), Api.LIST_OFFSETS, encode(ListOffsetsRequest([]))),
}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(workers=1, replicas=1)
    with broker:
        yield broker, address


@pytest.fixture(params=["zmq", "tcp"])
def way(request: pytest.FixtureRequest, served: tuple[Broker, str]) -> dict[str, Any]:
    return {**settings_for(request.param, *served), "request_timeout_ms": DEADLINE_MS}


@contextlib.contextmanager
def stopped(broker: Broker, name: str) -> Iterator[int]:
    pid = broker.signal(name, signal.SIGSTOP)
    try:
        wait_until_stopped(pid)
        yield pid
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("name", ASKED)
def test_a_process_whose_connection_broke_is_reached_again(
    served: tuple[Broker, str], way: dict[str, Any], name: str
) -> None:
    broker, _ = served
    number, api, body = ASKED[name]
    pids = {other: broker.pid_of(other) for other in (*ASKED, "router")}
    with contextlib.closing(Connection(read_settings(ConnectionSettings, way, {}))) as connection:
        for _ in range(5):
            assert cut(pids[name], broker.paths.run_dir / "back") == 1
            connection.request(number, api, [body], timeout_ms=DEADLINE_MS // 2)
    assert {other: broker.pid_of(other) for other in pids} == pids, "none was restarted for it"


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_what_a_worker_was_asked_when_its_connection_broke_is_answered_by_the_router(
    served: tuple[Broker, str], way: dict[str, Any], lost: str
) -> None:
    broker, _ = served
    number, api, body = ASKED["worker-0"]
    connection = Connection(read_settings(ConnectionSettings, way, {}))
    with contextlib.closing(connection), ThreadPoolExecutor(1) as asker:
        connection.request(number, api, [body])  # it is there
        with stopped(broker, "worker-0") as worker:
            asked = asker.submit(connection.request, number, api, [body], timeout_ms=DEADLINE_MS, repeats=False)
            wait_until_forwarded(connection)
            if lost == "request":
                assert cut(worker, broker.paths.run_dir / "back", swallow=True) == 1
            else:
                with stopped(broker, "router") as router:
                    os.kill(worker, signal.SIGCONT)
                    assert cut(router, broker.paths.run_dir / "back", other_pid=worker, swallow=True) == 1
        with pytest.raises(NotLeaderForPartitionError, match="worker-0 has lost its connection"):
            asked.result(WAIT_S)
        connection.request(number, api, [body])


def test_what_a_coordinator_may_have_done_when_its_connection_broke_is_told_and_not_repeated(
    served: tuple[Broker, str], way: dict[str, Any]
) -> None:
    broker, _ = served
    with AdminClient(way) as admin, ThreadPoolExecutor(1) as asker:
        admin.list_topics()  # it is there
        with stopped(broker, "coordinator") as coordinator:
            asked = asker.submit(admin.create_topics, ["never"], timeout_ms=DEADLINE_MS)
            wait_until_forwarded(admin._connection)
            assert cut(coordinator, broker.paths.run_dir / "back", swallow=True) == 1
        with pytest.raises(BrokerNotAvailableError, match="the coordinator has lost its connection while it was"):
            asked.result(WAIT_S)
        assert "never" not in admin.list_topics()


def test_a_record_that_was_on_its_way_when_its_clients_connection_broke_is_sent_again(
    served: tuple[Broker, str],
) -> None:
    broker, address = served
    settings = {**settings_for("zmq", broker, address), "request_timeout_ms": DEADLINE_MS}
    make_topic(settings, "on-its-way")
    with Producer(settings, delivery_timeout_ms=2 * DEADLINE_MS) as producer:
        assert producer.send("on-its-way", b"first").result(WAIT_S).offset == 0
        with stopped(broker, "router") as router:
            second = producer.send("on-its-way", b"second")
            producer.flush(local=True)
            assert cut(router, broker.paths.run_dir / "front", swallow=True) == 1
        assert second.result(WAIT_S).offset == 1


@pytest.mark.parametrize("transport", ["zmq", "auto"])
def test_nothing_is_lost_doubled_or_reordered_while_every_connection_breaks_again_and_again(
    served: tuple[Broker, str], transport: str
) -> None:
    broker, _ = served
    topic, rounds, burst = f"broken-{transport}", 15, 50
    settings = {"bootstrap_servers": broker.bootstrap_servers, "transport": transport}
    make_topic(settings, topic, factor=2)
    sent, read = numbers(rounds * burst), []
    broken = dict.fromkeys(("back", "front", "stream-"), 0)
    with Producer(settings, acks="all") as producer, Consumer(settings, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        for turn in range(rounds):
            futures = [producer.send(topic, value) for value in sent[turn * burst :][:burst]]
            for path, name in (("back", list(ASKED)[turn % 3]), ("front", "router"), ("stream-", "worker-0")):
                broken[path] += cut(broker.pid_of(name), broker.paths.run_dir / path)
            for future in futures:
                future.result(WAIT_S)
            read += read_values(consumer, burst)
    assert read == sent
    assert min(broken.values()) >= rounds // 2, broken
