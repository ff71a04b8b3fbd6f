"""The router dies while a request is on its way: whoever asked learns of it, and asks the next one."""

from __future__ import annotations

import os
import signal
import socket

from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.producer import Producer
from zbroker.testing import Broker

LONG_MS = 60_000


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_record_that_was_on_its_way_by_tcp_is_sent_again_long_before_its_request_is_overdue() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    network = {"tcp_listen": address, "tcp_unauthenticated_loopback": True}
    with Broker(workers=1, config={"network": network, "coordinator": {"hang_timeout_ms": LONG_MS}}) as broker:
        with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
            admin.create_topics([NewTopic("t", 1)])
        settings = {"request_timeout_ms": LONG_MS, "delivery_timeout_ms": 2 * LONG_MS}
        with Producer(bootstrap_servers=address, **settings) as producer:
            assert producer.send("t", b"first").result(10).offset == 0
            worker = broker.signal("worker-0", signal.SIGSTOP)
            try:
                second = producer.send("t", b"second")
                producer.flush(local=True)
                broker.wait_for_restart("router", broker.kill("router"))
            finally:
                os.kill(worker, signal.SIGCONT)
            # The worker's answer, if it got the request at all, goes to the router that is dead.
            assert second.result(LONG_MS / 1000 / 3).offset == 1
