"""What clients did and were told, as one list of operations: the only thing that the checker looks at.

An operation is one call of one client, from `invoke_ns` to `complete_ns` of one monotonic clock. Its `kind` says what
the client knows: `ok`, it was done; `fail`, it surely was not; `info`, nobody knows (a time-out, a death). A client
that crashes comes back as another `process`. Values are unique over the whole history; `key` names a partition.

The definitions are Jepsen's (jepsen/tests/kafka.clj); watermarks and epochs are added for readers that share memory
with the broker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path

import msgspec
from msgspec import Struct


class Kind(Enum):
    """What the client knows of its operation."""

    OK = "ok"
    INFO = "info"
    FAIL = "fail"


class Call(Enum):
    """What the client did. `TXN` sends and polls as one; `OWN` is no call: it had partitions of its group meanwhile."""

    SEND = "send"
    POLL = "poll"
    TXN = "txn"
    ASSIGN = "assign"
    SUBSCRIBE = "subscribe"
    COMMIT = "commit"
    OWN = "own"


class Sent(Struct, frozen=True, array_like=True, gc=False):
    """A record that was sent; `offset` None: the client was not told."""

    key: str
    value: str
    offset: int | None = None


class Read(Struct, frozen=True, array_like=True, gc=False):
    """A record that was read; `epoch` -1: the client did not see it."""

    offset: int
    value: str
    epoch: int = -1


class Op(Struct, frozen=True):
    """One operation.

    `polls` holds what was read of each key, in the order in which it came. `assigned` is what an ASSIGN or SUBSCRIBE
    asks for, or an OWN had; `commits` are offsets of the group `group`; `rebalanced` names keys whose position may have
    moved inside this operation. `watermarks` are the high watermarks that the reader saw when it had read.
    """

    process: int
    call: Call
    kind: Kind
    invoke_ns: int
    complete_ns: int
    sends: tuple[Sent, ...] = ()
    polls: dict[str, list[Read]] = msgspec.field(default_factory=dict)
    assigned: tuple[str, ...] = ()
    rebalanced: tuple[str, ...] = ()
    watermarks: dict[str, int] = msgspec.field(default_factory=dict)
    commits: dict[str, int] = msgspec.field(default_factory=dict)
    group: str = ""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Op)


def save(history: Iterable[Op], path: Path) -> None:
    """Write a history, one operation a line, so that a failure can be looked at again."""
    with path.open("wb") as file:
        for op in history:
            file.write(_encoder.encode(op) + b"\n")


def load(path: Path) -> Iterator[Op]:
    """Read what `save` wrote. Raises msgspec.DecodeError for anything else."""
    with path.open("rb") as file:
        for line in file:
            yield _decoder.decode(line)
