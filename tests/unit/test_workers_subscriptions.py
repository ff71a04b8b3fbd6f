"""A leader that says nothing is asked, and connected to anew; a pause of one's own is no silence of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conditions import wait_until
from zbroker import ids
from zbroker.clock import ManualClock
from zbroker.config.paths import paths_for
from zbroker.config.schema import BrokerSection, ServerConfig
from zbroker.transport.loop import Loop
from zbroker.transport.sockets import Context, RouterSocket
from zbroker.workers.subscriptions import SILENCE_MAX_MS, TICK_MS, Subscriptions

LEADER = ids.worker_number(0)


class Follower:
    """As much of one as a connection needs."""

    key = (1, 0)
    connections = 0

    def connected(self) -> None:
        """Nothing is to be sent."""
        self.connections += 1


class Following:
    """A follower's side whose time the test makes, and a leader that says nothing."""

    def __init__(self, run_dir: Path) -> None:
        self.clock = ManualClock()
        self._loop = Loop(self.clock)
        paths = paths_for(ServerConfig(broker=BrokerSection(run_dir=str(run_dir))))
        self._endpoint = f"ipc://{paths.stream_socket(ids.process_name(LEADER))}"
        self.lead()
        self._subscriptions = Subscriptions(
            self._loop, self.clock, paths, number=ids.replica_number(0), incarnation=1, message_max_bytes=1 << 20
        )
        self.follower = Follower()
        found = self._subscriptions.follow(self.follower, LEADER, ids.own_incarnation())  # type: ignore[arg-type]
        assert found is not None
        self.connection = found

    def lead(self) -> None:
        self._context = Context()
        self._leader = RouterSocket(self._context, message_max_bytes=1 << 20)
        self._leader.bind(self._endpoint)

    def end_connections(self) -> None:
        self._leader.close()
        self._context.close()

    def passes(self, time_ms: int) -> None:
        self.clock.advance(time_ms)
        while self._loop.run_once(0):
            pass

    def close(self) -> None:
        self._subscriptions.close()
        self.end_connections()
        self._loop.close()


@pytest.fixture
def following(tmp_path: Path) -> Iterator[Following]:
    found = Following(tmp_path)

    def is_connected() -> bool:
        found.passes(TICK_MS)
        return found.connection.is_connected

    wait_until(is_connected)
    yield found
    found.close()


def test_a_leader_is_not_silent_while_the_follower_itself_stood_still(following: Following) -> None:
    first = following.connection.socket
    following.passes(10 * SILENCE_MAX_MS)
    assert following.connection.socket is first
    for _ in range(SILENCE_MAX_MS // TICK_MS + 1):
        following.passes(TICK_MS)
    assert following.connection.socket is not first


def test_a_follower_notices_the_end_of_its_connection_without_any_silence_and_is_told_of_the_next(
    following: Following,
) -> None:
    first, told = following.connection.socket, following.follower.connections
    following.end_connections()

    def has_noticed() -> bool:
        following.passes(0)
        return following.connection.socket is not first

    wait_until(has_noticed)
    assert following.follower.connections == told
    following.lead()

    def is_told() -> bool:
        following.passes(1)
        return following.follower.connections > told

    wait_until(is_told)
