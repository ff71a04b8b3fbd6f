"""A leader that says nothing is asked, and connected to anew; a pause of one's own is no silence of it."""

from __future__ import annotations

from pathlib import Path

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

    def connected(self) -> None:
        """Nothing is to be sent."""


def test_a_leader_is_not_silent_while_the_follower_itself_stood_still(tmp_path: Path) -> None:
    clock = ManualClock()
    loop, context = Loop(clock), Context()
    paths = paths_for(ServerConfig(broker=BrokerSection(run_dir=str(tmp_path))))
    leader = RouterSocket(context, message_max_bytes=1 << 20)
    leader.bind(f"ipc://{paths.stream_socket(ids.process_name(LEADER))}")
    subscriptions = Subscriptions(
        loop, clock, paths, number=ids.replica_number(0), incarnation=1, message_max_bytes=1 << 20
    )
    connection = subscriptions.follow(Follower(), LEADER, ids.own_incarnation())  # type: ignore[arg-type]  # see Follower
    assert connection is not None

    def passes(time_ms: int) -> None:
        clock.advance(time_ms)
        while loop.run_once(0):
            pass

    def is_connected() -> bool:
        passes(TICK_MS)
        return connection.is_connected

    wait_until(is_connected)
    first = connection.socket
    passes(10 * SILENCE_MAX_MS)
    assert connection.socket is first
    for _ in range(SILENCE_MAX_MS // TICK_MS + 1):
        passes(TICK_MS)
    assert connection.socket is not first
    subscriptions.close()
    leader.close()
    context.close()
    loop.close()
