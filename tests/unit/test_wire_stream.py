"""Stream messages: their bytes are fixed, and nothing else is taken for one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from zbroker.errors import InvalidRequestError
from zbroker.wire import stream
from zbroker.wire.stream import ENTRY_BYTES, HEAD_BYTES, KIND_OF, Kind, Message, pack

GOLDEN = Path(__file__).parents[1] / "golden" / "wire_stream.txt"
KEY = (7, 3, 9, 12, 5)
ENTRIES: dict[Kind, list[stream.Entry]] = {
    Kind.SUBSCRIBE: [stream.Subscribe(*KEY, 8, stream.FLAG_INLINE, 1000, 900)],
    Kind.COPIED: [stream.Copied(*KEY, 1010, 1000), stream.Copied(7, 4, 9, 13, 1, 0, 0)],
    Kind.UNSUBSCRIBE: [stream.Key(*KEY)],
    Kind.PING: [],
    Kind.ACCEPTED: [stream.Accepted(*KEY, 5, 990)],
    Kind.DIVERGED: [stream.Diverged(*KEY, 6, 0, 800)],
    Kind.BEGIN_ANEW: [stream.BeginAnew(*KEY, 500)],
    Kind.REJECTED: [stream.Rejected(*KEY, 74, 0)],
    Kind.APPENDED: [stream.Appended(*KEY, 1000, 1010, 960, 4096, 352, 995, 5, 1010, 0, 0)],
    Kind.PONG: [],
    Kind.RESET: [],
}


def golden_text() -> str:
    lines = ["# One stream message of each kind: sender 17 of incarnation 1122334455667788, sequence 42."]
    for kind, entries in ENTRIES.items():
        lines.append(f"{kind.name} {pack(kind, 17, 0x1122334455667788, 42, entries).hex()}")
    return "\n".join(lines) + "\n"


def test_every_kind_has_exactly_the_golden_bytes() -> None:
    assert golden_text() == GOLDEN.read_text()


@pytest.mark.parametrize("kind", list(Kind))
def test_what_was_packed_is_read_again(kind: Kind) -> None:
    message = Message.read([pack(kind, 17, 99, 42, ENTRIES[kind]), b"bytes of batches"])
    assert message.head[2:6] == (kind, 17, 99, 42)
    assert message.entries == ENTRIES[kind]
    assert message.inline == [b"bytes of batches"]


def test_every_kind_has_an_example_and_a_size() -> None:
    assert set(ENTRIES) == set(Kind) == set(ENTRY_BYTES)
    for kind, entries in ENTRIES.items():
        assert len(pack(kind, 1, 1, 1, entries)) == HEAD_BYTES + len(entries) * ENTRY_BYTES[kind]
        assert all(KIND_OF[type(entry)] == kind for entry in entries)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"zS",
        pack(Kind.PING, 1, 1, 1)[:-1],
        pack(Kind.COPIED, 1, 1, 1, ENTRIES[Kind.COPIED])[:-1],
        pack(Kind.COPIED, 1, 1, 1, ENTRIES[Kind.COPIED]) + b"\0",
        b"zB" + pack(Kind.PING, 1, 1, 1)[2:],
        b"zS\x02" + pack(Kind.PING, 1, 1, 1)[3:],
        b"zS\x01\x63" + pack(Kind.PING, 1, 1, 1)[4:],
        pack(Kind.PING, 1, 1, 1)[:24] + b"\x01\0\0\0\0\0\0\0",
        pack(Kind.PING, 1, 1, 1)[:24] + b"\xff\xff\xff\xff\0\0\0\0",
    ],
)
def test_other_bytes_are_refused_with_a_typed_error(frame: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        Message.read([frame])


def test_a_message_without_frames_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        Message.read([])


def test_t46_mutated_messages_are_read_or_refused_and_nothing_else() -> None:
    rng = random.Random(46)
    frames = [pack(kind, 17, 99, 42, entries) for kind, entries in ENTRIES.items()]
    refused = 0
    for _ in range(5_000):
        frame = bytearray(rng.choice(frames))
        for _ in range(rng.randint(1, 3)):
            frame[rng.randrange(len(frame))] = rng.randrange(256)
        cut = bytes(frame[: rng.randrange(len(frame) + 1)]) if rng.random() < 0.3 else bytes(frame)
        try:
            message = Message.read([cut])
        except InvalidRequestError:
            refused += 1
        else:
            assert len(message.entries) <= stream.ENTRIES_MAX
    assert refused > 1_000
