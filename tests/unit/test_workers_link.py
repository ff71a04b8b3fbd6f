"""A process and its router: it waits for one, and what it had asked through one that died it hears of from the next."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conditions import wait_until
from zbroker import ids
from zbroker.clock import HostClock, ManualClock
from zbroker.errors import BrokerError, RequestTimedOutError
from zbroker.transport.loop import Loop
from zbroker.transport.sockets import Context, RouterSocket
from zbroker.wire.codec import encode
from zbroker.wire.layout import Api, Header, pack_reply, unpack_header
from zbroker.wire.messages import Done, ProcessWelcome
from zbroker.workers.link import HELLO_INTERVAL_MS, HELLOS_IN_SILENCE, RouterLink


def test_a_process_without_a_router_says_once_that_it_waits_and_where(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    loop = Loop(clock)
    endpoint = f"ipc://{tmp_path}/back.sock"
    link = RouterLink(
        loop, clock, endpoint, number=ids.worker_number(0), incarnation=ids.own_incarnation(),
        message_max_bytes=1 << 20, on_request=lambda frames: None,
    )  # fmt: skip
    for _ in range(2 * HELLOS_IN_SILENCE):
        clock.advance(HELLO_INTERVAL_MS)
        loop.run_once(0)
    said = [record for record in caplog.records if "no router answers" in record.message]
    assert len(said) == 1
    assert vars(said[0])["at"] == endpoint
    link.close()
    loop.close()


class PlayedRouter:
    """A router that the test plays: it welcomes whoever says hello, and answers nothing else."""

    def __init__(self, endpoint: str) -> None:
        self.incarnation = 0
        self.greets_late = False
        """Whether it answers the hellos of the connection before."""
        self.hellos: list[int] = []
        self.asked: list[Header] = []
        self._context = Context()
        self._socket = RouterSocket(self._context, message_max_bytes=1 << 20)
        self._socket.bind(endpoint)

    def take(self) -> None:
        while (message := self._socket.receive()) is not None:
            header = unpack_header(message[2].buffer)
            if header.api == Api.PROCESS_HELLO:
                welcome = encode(ProcessWelcome(self.incarnation))
                self.hellos.append(header.correlation)
                greeted = header._replace(correlation=header.correlation - self.greets_late)
                self._socket.send([message[0].bytes, pack_reply(greeted), welcome])
            else:
                self.asked.append(header)

    def turn_until(self, loop: Loop, is_true: Callable[[], bool]) -> None:
        """Play, and turn the loop of who talks to it, until something is true."""

        def turn() -> bool:
            self.take()
            loop.run_once(5)
            return is_true()

        wait_until(turn)

    def close(self) -> None:
        self._socket.close()
        self._context.close()


def test_calls_through_a_router_that_died_end_when_the_next_one_is_there(tmp_path: Path) -> None:
    loop, clock = Loop(), HostClock()
    endpoint = f"ipc://{tmp_path}/back.sock"
    router = PlayedRouter(endpoint)
    errors: list[BrokerError | None] = []
    link = RouterLink(
        loop, clock, endpoint, number=ids.worker_number(0), incarnation=ids.own_incarnation(),
        message_max_bytes=1 << 20, on_request=lambda frames: None,
    )  # fmt: skip

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as first:
        router.incarnation = ids.incarnation_of(first.pid)
        router.turn_until(loop, lambda: link.is_welcome)
        link.call(ids.COORDINATOR, Api.REGISTER, Done(), lambda error, _: errors.append(error), timeout_ms=600_000)
        router.turn_until(loop, lambda: len(router.asked) == 1)
        first.kill()
        router.turn_until(loop, lambda: not link.is_welcome)
        assert errors == []
    router.incarnation = ids.own_incarnation()
    router.turn_until(loop, lambda: bool(errors))
    assert link.is_welcome
    assert isinstance(errors[0], RequestTimedOutError)
    link.close()
    router.close()
    loop.close()


def test_a_process_that_loses_its_connection_to_a_living_router_begins_again(tmp_path: Path) -> None:
    loop, clock = Loop(), HostClock()
    endpoint = f"ipc://{tmp_path}/back.sock"
    router = PlayedRouter(endpoint)
    router.incarnation = ids.own_incarnation()
    errors: list[BrokerError | None] = []
    welcomes: list[int] = []
    link = RouterLink(
        loop, clock, endpoint, number=ids.worker_number(0), incarnation=ids.own_incarnation(),
        message_max_bytes=1 << 20, on_request=lambda frames: None, on_welcome=lambda: welcomes.append(1),
    )  # fmt: skip

    router.turn_until(loop, lambda: link.is_welcome)
    link.call(ids.COORDINATOR, Api.REGISTER, Done(), lambda error, _: errors.append(error), timeout_ms=600_000)
    router.turn_until(loop, lambda: len(router.asked) == 1)
    router.close()
    router = PlayedRouter(endpoint)
    router.incarnation = ids.own_incarnation()
    router.greets_late = True
    router.turn_until(loop, lambda: len(router.hellos) >= 3)
    assert not link.is_welcome, "what answers a hello by the connection before says nothing of this one"
    assert (len(welcomes), errors) == (1, [])
    router.greets_late = False
    router.turn_until(loop, lambda: link.is_welcome)
    assert len(welcomes) == 2
    assert isinstance(errors[0], RequestTimedOutError)
    link.close()
    router.close()
    loop.close()
