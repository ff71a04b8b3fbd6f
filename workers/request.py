"""One request and the way back to who asked, the same for a lane and for a socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from zbroker.errors import BrokerError, InvalidRequestError
from zbroker.record.layout import BatchHeader
from zbroker.wire.codec import decode
from zbroker.wire.copy_messages import ProduceOptions
from zbroker.wire.layout import Api, Header, pack_reply

NO_APPEND_TIME: Final = -1
ANY_OFFSET: Final = -1

Frame = bytes | bytearray | memoryview
Batch = bytearray | memoryview


class Route(Protocol):
    """The way back. `send` never blocks and never raises; a reply to somebody who is gone is dropped."""

    def send(self, frames: Sequence[Frame]) -> None:
        """Send [header, body...]."""

    def rouse(self) -> bool:
        """Wake who asked, ahead of what comes at once, if it sleeps and can be woken. Returns whether it was."""


class Request:
    """A decoded header, the frames after it, and the way back. Answered at most once.

    `body` is this process's own memory: nobody else can change it. `batch` is a produce request's batch and header
    between check and append; it is dropped then, so that a request that waits for the disk holds no batch.
    """

    __slots__ = (
        "append_time_ms",
        "batch",
        "body",
        "expected_offset",
        "header",
        "is_answered",
        "is_numbered",
        "route",
        "uid",
    )

    def __init__(self, header: Header, body: Sequence[Frame], route: Route, uid: int) -> None:
        self.header = header
        self.body = body
        self.route = route
        self.uid = uid
        self.is_answered = False
        self.is_numbered = False
        self.batch: tuple[Batch, BatchHeader] | None = None
        self.append_time_ms = NO_APPEND_TIME
        self.expected_offset = ANY_OFFSET

    def take_options(self) -> None:
        """Take what follows a produce request's batch. Raises InvalidRequestError."""
        if len(self.body) != 2:
            raise InvalidRequestError(f"one or two body frames, not {len(self.body)}")
        self.expected_offset = decode(ProduceOptions, self.body[1]).expected_offset

    def reply(self, *body: Frame) -> None:
        """Answer with success."""
        assert not self.is_answered, "a request is answered once"
        self.is_answered = True
        self.route.send((pack_reply(self.header), *body))

    def refuse(self, error: BrokerError) -> None:
        """Answer with an error; a produce with acks=0 gets no answer."""
        assert not self.is_answered, "a request is answered once"
        self.is_answered = True
        header = self.header
        if header.api == Api.PRODUCE and header.acks == 0:
            return
        self.route.send((pack_reply(header, error.code), error.wire_text.encode()))
