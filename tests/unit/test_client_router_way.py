"""The way to the router: what waits there, in which order it leaves, and what leaves while no router is known."""

from __future__ import annotations

from typing import Any

from zbroker.client.lanes import OUTBOX_MESSAGES_MAX
from zbroker.client.router_way import RouterWay
from zbroker.client.unanswered import Unanswered, pending_of


class FakeSocket:
    """Takes `room` messages."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.sent: list[bytes] = []

    def send(self, frames: Any) -> bool:
        if self.room <= 0:
            return False
        self.room -= 1
        self.sent.append(frames[0])
        return True


def way_of(socket: Any) -> tuple[RouterWay, Unanswered]:
    unanswered = Unanswered()
    for correlation in range(1, 10):
        unanswered.add(correlation, pending_of((lambda *_: None, 0, 16, None)))
    return RouterWay(socket, unanswered), unanswered


def test_what_finds_no_room_waits_and_leaves_in_order_without_what_nobody_wants_any_more() -> None:
    socket = FakeSocket(1)
    way, unanswered = way_of(socket)
    for number in range(1, 5):
        way.send((b"%d" % number,), number)
    assert (socket.sent, way.is_backed_up) == ([b"1"], True)
    unanswered.take(3, None)
    socket.room = 1
    way.flush()
    assert (socket.sent, way.is_backed_up) == ([b"1", b"2"], True)
    socket.room = 9
    way.send((b"5",), 5)
    way.flush()
    assert (socket.sent, way.is_backed_up) == ([b"1", b"2", b"4", b"5"], False)


def test_without_a_known_router_only_hellos_leave_and_only_the_newest_waits() -> None:
    socket = FakeSocket()
    way, unanswered = way_of(socket)
    way.hold()
    way.send((b"1",), 1)
    way.send((b"2",), 2)
    way.send((b"hello",), 3, is_hello=True)
    assert (socket.sent, way.is_backed_up) == ([b"hello"], False)
    socket.room = 0
    way.send((b"lost",), 4, is_hello=True)
    way.send((b"hello again",), 5, is_hello=True)
    assert way.is_backed_up, "it has to be tried again"
    socket.room = 9
    way.flush()
    assert socket.sent == [b"hello", b"hello again"]
    socket.room = 0
    way.send((b"late",), 6, is_hello=True)
    unanswered.take(6, None)
    socket.room = 9
    way.flush()
    assert (socket.sent[2:], way.is_backed_up) == ([], False)
    way.release()
    assert (socket.sent[2:], way.is_backed_up) == ([b"1", b"2"], False)
    way.send((b"4",), 4)
    assert socket.sent[4:] == [b"4"]


def test_so_many_wait_and_no_more() -> None:
    socket = FakeSocket(0)
    way, _ = way_of(socket)
    for _ in range(OUTBOX_MESSAGES_MAX + 5):
        way.send((b"x",), 0)
    socket.room = 1 << 30
    way.flush()
    assert len(socket.sent) == OUTBOX_MESSAGES_MAX
