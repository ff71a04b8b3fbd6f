"""Entries become numbered messages, in their order, and wait while the socket takes nothing."""

from __future__ import annotations

from zbroker.wire.stream import Accepted, Appended, Copied, Kind, Message
from zbroker.workers.outgoing import BYTES_WAITING_MAX, ENTRIES_WAITING_MAX, Outgoing


class Socket:
    def __init__(self) -> None:
        self.sent: list[list[bytes]] = []
        self.is_full = False

    def send(self, frames: list[bytes]) -> bool:
        if not self.is_full:
            self.sent.append(frames)
        return not self.is_full

    def messages(self) -> list[Message]:
        return [Message.read(frames) for frames in self.sent]


def copied(log_end: int) -> Copied:
    return Copied(1, 0, 1, 2, 3, log_end, 0)


def appended(start: int) -> Appended:
    return Appended(1, 0, 1, 2, 3, start, start + 1, 0, 0, 10, 0, 0, -1, 0, 0)


def test_entries_of_one_kind_share_a_message_and_kinds_keep_their_order() -> None:
    socket = Socket()
    outgoing = Outgoing(socket.send, 17, 99)
    for entry in (copied(1), copied(2), Accepted(1, 0, 1, 2, 3, 0, 0), copied(3)):
        assert outgoing.add(entry)
    assert outgoing.flush()
    messages = socket.messages()
    assert [message.head.kind for message in messages] == [Kind.COPIED, Kind.ACCEPTED, Kind.COPIED]
    assert [message.head.sequence for message in messages] == [0, 1, 2]
    assert [entry.log_end for entry in messages[0].entries] == [1, 2]
    assert not outgoing.is_waiting


def test_what_the_socket_does_not_take_waits_and_leaves_once_in_order() -> None:
    socket = Socket()
    outgoing = Outgoing(socket.send, 17, 99)
    socket.is_full = True
    outgoing.add(copied(1))
    assert not outgoing.flush()
    outgoing.say(Kind.PING)
    outgoing.add(copied(2))
    assert not outgoing.flush()
    socket.is_full = False
    assert outgoing.flush()
    assert outgoing.flush()
    messages = socket.messages()
    assert [message.head.kind for message in messages] == [Kind.COPIED, Kind.PING, Kind.COPIED]
    assert [message.head.sequence for message in messages] == [0, 1, 2]


def test_inline_bytes_travel_with_their_entry() -> None:
    socket = Socket()
    outgoing = Outgoing(socket.send, 17, 99)
    outgoing.add(appended(0))
    for number in range(20):
        outgoing.add(appended(number + 1), b"%d" % number)
    outgoing.flush()
    found = {}
    for message in socket.messages():
        for entry in message.entries:
            found[entry.start_offset] = message.inline[entry.frame - 1] if entry.frame else None
    assert found == {0: None, **{number + 1: b"%d" % number for number in range(20)}}


def test_only_so_much_waits() -> None:
    socket = Socket()
    socket.is_full = True
    outgoing = Outgoing(socket.send, 17, 99)
    taken = 0
    while outgoing.add(copied(taken)):
        taken += 1
        assert taken <= ENTRIES_WAITING_MAX
    assert taken > 1_000
    by_bytes = Outgoing(socket.send, 17, 99)
    taken = 0
    while by_bytes.add(appended(taken), bytes(1 << 20)):
        taken += 1
        assert taken <= BYTES_WAITING_MAX >> 20


def test_a_new_connection_counts_from_the_beginning() -> None:
    socket = Socket()
    outgoing = Outgoing(socket.send, 17, 99)
    outgoing.add(copied(1))
    outgoing.flush()
    outgoing.add(copied(2))
    outgoing.clear()
    outgoing.say(Kind.PING)
    outgoing.flush()
    assert [(message.head.kind, message.head.sequence) for message in socket.messages()] == [
        (Kind.COPIED, 0),
        (Kind.PING, 0),
    ]
