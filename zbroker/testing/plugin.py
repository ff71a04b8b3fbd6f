"""Fixtures that pytest finds by itself where zbroker is installed.

`zbroker_server`: one broker of real processes for the whole test run, on /dev/shm, gone afterwards.
`zbroker_topic`: the name of a fresh topic with one partition on that broker, deleted afterwards.

Nothing of zbroker is imported before a test asks for one of them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from zbroker.testing.broker import Broker


@pytest.fixture(scope="session")
def zbroker_server() -> Iterator[Broker]:
    """A broker with one worker: `zbroker_server.bootstrap_servers` is what a client needs."""
    from zbroker.testing.broker import Broker

    with Broker(workers=1) as broker:
        yield broker


@pytest.fixture
def zbroker_topic(zbroker_server: Broker) -> Iterator[str]:
    """The name of a topic that nobody else uses."""
    from zbroker.client.admin import AdminClient, NewTopic

    name = f"test-{uuid.uuid4().hex[:12]}"
    with AdminClient(bootstrap_servers=zbroker_server.bootstrap_servers) as admin:
        admin.create_topics([NewTopic(name, num_partitions=1)])
        yield name
        admin.delete_topics([name])
