"""The router dies while a request is on its way: whoever asked learns of it, and asks the next one."""

from __future__ import annotations

import os
import signal

from tests.consuming import broker_with_tcp, make_topic
from zbroker.client.producer import Producer

LONG_MS = 60_000


def test_a_record_that_was_on_its_way_by_tcp_is_sent_again_long_before_its_request_is_overdue() -> None:
    broker, address = broker_with_tcp(workers=1)
    with broker:
        make_topic({"bootstrap_servers": address}, "t")
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
