"""When the end of a process is told, and when nothing more can come from it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conditions import wait_until
from zbroker import ids
from zbroker.clock import HostClock
from zbroker.transport.loop import Loop
from zbroker.workers.departures import Departures

NUMBER = ids.worker_number(0)


class Watching:
    """A loop that is turned by hand, and what was told in which of its turns."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.turns = 0
        self.ended: list[int] = []
        self.silent: dict[bytes, int] = {}  # connection -> in which turn
        self.asked: dict[bytes, int] = {}  # connection -> how often it was asked for
        self.routable_times = 0
        self.departures = Departures(
            self.loop,
            HostClock(),
            is_routable=self.is_routable,
            on_end=self.end,
            on_silence=lambda connection: self.silent.update({connection: self.turns}),
        )

    def is_routable(self, connection: bytes) -> bool:
        assert self.ended, "only the dead are asked for"
        self.asked[connection] = self.asked.get(connection, 0) + 1
        return self.asked[connection] <= self.routable_times

    def end(self, incarnation: int) -> list[bytes]:
        self.ended.append(incarnation)
        return [b"one", b"other"]

    def turn(self) -> None:
        self.turns += 1
        self.loop.run_once(20)

    def has_ended(self) -> bool:
        self.turn()
        return bool(self.ended)

    def is_silent(self) -> bool:
        self.turn()
        return len(self.silent) == 2


@pytest.fixture
def watching() -> Iterator[Watching]:
    found = Watching()
    yield found
    found.departures.close()
    found.loop.close()


@pytest.fixture
def mortal() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_an_end_is_told_once_and_the_silence_of_each_connection_some_turns_later(
    watching: Watching, mortal: subprocess.Popen[bytes]
) -> None:
    incarnation = ids.incarnation_of(mortal.pid)
    assert watching.departures.watch(NUMBER, incarnation)
    assert watching.departures.watch(NUMBER, incarnation)
    assert watching.departures.watch(NUMBER + 2, ids.own_incarnation())
    assert len(watching.departures) == 2
    watching.turn()
    assert watching.ended == []
    watching.routable_times = 3
    mortal.kill()

    wait_until(watching.has_ended)
    ended_in = watching.turns
    assert not watching.silent
    wait_until(watching.is_silent)
    assert watching.ended == [incarnation]
    assert watching.asked == {b"one": 4, b"other": 4}
    # As many turns after nobody was routable any more as there are processes, and some.
    assert min(watching.silent.values()) - ended_in > 3 + len(watching.departures)
    assert len(watching.departures) == 1


def test_who_has_ended_is_not_watched(watching: Watching, mortal: subprocess.Popen[bytes]) -> None:
    incarnation = ids.incarnation_of(mortal.pid)
    mortal.kill()
    mortal.wait()
    assert not watching.departures.watch(NUMBER, incarnation)
    assert len(watching.departures) == 0


def test_one_that_stays_routable_is_silent_all_the_same_after_a_while(
    watching: Watching, mortal: subprocess.Popen[bytes]
) -> None:
    watching.routable_times = sys.maxsize
    assert watching.departures.watch(NUMBER, ids.incarnation_of(mortal.pid))
    mortal.kill()
    wait_until(watching.is_silent)
