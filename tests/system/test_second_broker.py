"""T34: a second broker on the same data directory."""

from __future__ import annotations

import pytest

from zbroker.client.producer import Producer
from zbroker.testing import Broker
from zbroker.testing.broker import BrokerFailedError


def test_t34_a_second_broker_on_the_same_data_is_refused_and_the_first_goes_on() -> None:
    with Broker() as first, Producer(bootstrap_servers=first.bootstrap_servers) as producer:
        assert producer.send("t34", b"before").result(20).offset == 0
        pids = {name: first.pid_of(name) for name in first.process_names()}
        second = Broker(config={"broker": {"data_dir": str(first.paths.data_dir)}})
        try:
            with pytest.raises(BrokerFailedError, match="coordinator ERROR"):
                second.start()
        finally:
            second.close()
        assert {name: first.pid_of(name) for name in first.process_names()} == pids
        assert producer.send("t34", b"after").result(20).offset == 1
