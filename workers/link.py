"""A process's connection to the router: says who it is, says it again to every new router, and sends without waiting.

Guarantees: HELLO is repeated until the router has answered it; when the router's pidfd fires, or the connection to it
ends, it starts again, so a restarted router knows every process within a few milliseconds, and a living one where each
is reached now: a process numbers its connections, and what comes by an older one counts no more. A message that cannot
be sent now waits in a bounded outbox, in order; beyond the bound it is dropped and counted, and the asker's own
deadline makes it ask again (zmq promises no more). Calls made to other processes get exactly one outcome: the reply, or
RequestTimedOutError. That comes as soon as a router answers anew, for those made through the connection before: who was
asked may have done it.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from zbroker import ids
from zbroker.clock import NS_PER_MS, Clock
from zbroker.errors import BrokerError, RequestTimedOutError, error_for
from zbroker.transport.loop import Loop
from zbroker.transport.sockets import INNER_FRAME_BYTES_MAX, Context, DealerSocket
from zbroker.wire.codec import decode, encode
from zbroker.wire.layout import REPLY, Api, Header, pack_request, unpack_header
from zbroker.wire.messages import Message, ProcessHello, ProcessWelcome

HELLO_INTERVAL_MS: Final = 20
HELLOS_IN_SILENCE: Final = 250  # five seconds: then it is said that no router answers, once
OUTBOX_MESSAGES_MAX: Final = 10_000
OUTBOX_BYTES_MAX: Final = 64 << 20
CALLS_MAX: Final = 10_000
CALL_TIMEOUT_MS: Final = 1_000

_log = logging.getLogger(__name__)

Frames = Sequence[bytes | bytearray | memoryview]
OnReply = Callable[[BrokerError | None, bytes], None]


class _Call(NamedTuple):
    deadline_ns: int
    on_reply: OnReply


class RouterLink:
    """The DEALER on the router's back socket. `on_request` gets [return address, peer, header, body...]."""

    def __init__(
        self,
        loop: Loop,
        clock: Clock,
        endpoint: str,
        *,
        number: int,
        incarnation: int,
        message_max_bytes: int,
        on_request: Callable[[list[bytes]], None],
        on_welcome: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._endpoint = endpoint
        self._hello = encode(ProcessHello(number, incarnation))
        self._hellos = 0
        self._connection_number = 0
        self._on_request = on_request
        self._on_welcome = on_welcome
        self._calls: dict[int, _Call] = {}
        self._next_correlation = 1
        self._outbox: deque[list[bytes | bytearray | memoryview]] = deque()
        self._outbox_bytes = 0
        self._router_pidfd = -1
        self._has_lost_calls = False
        self._last_router_incarnation = 0
        self.router_incarnation = 0
        self.dropped_count = 0
        self._context = Context()
        frame_bytes_max = max(message_max_bytes, INNER_FRAME_BYTES_MAX)
        self._socket = DealerSocket(self._context, endpoint, message_max_bytes=frame_bytes_max, is_watched=True)
        self._is_closed = False
        loop.add_reader(self._socket.monitor_fileno(), self._look_at_connection)
        loop.add_socket(self._socket, self._on_message)
        self._say_hello()

    @property
    def is_welcome(self) -> bool:
        """Whether the present router has answered."""
        return self.router_incarnation != 0

    def send(self, frames: Frames) -> None:
        """Send now or as soon as there is room, in order. Never blocks."""
        if not self._outbox and self._socket.send(frames):
            return
        size_bytes = sum(map(len, frames))
        if len(self._outbox) >= OUTBOX_MESSAGES_MAX or self._outbox_bytes + size_bytes > OUTBOX_BYTES_MAX:
            self.dropped_count += 1
            return
        self._outbox.append(list(frames))
        self._outbox_bytes += size_bytes
        if len(self._outbox) == 1:
            self._loop.call_after(1, self._flush)

    def call(
        self, target: int, api: Api, body: Message, on_reply: OnReply, *, timeout_ms: int = CALL_TIMEOUT_MS
    ) -> None:
        """Ask another process. `on_reply(error, body)` is called once, from the loop, unless `close` comes first."""
        assert len(self._calls) < CALLS_MAX, "calls that nobody answers have piled up"
        correlation = self._next_correlation
        self._next_correlation += 1
        self._calls[correlation] = _Call(self._clock.now_ns() + timeout_ms * NS_PER_MS, on_reply)
        self._loop.call_after(timeout_ms, lambda: self._expire(correlation))
        self.send([b"", pack_request(api, correlation, target, timeout_ms=timeout_ms), encode(body)])

    def close(self) -> None:
        """Close the socket; messages not sent yet are given up."""
        if self._is_closed:
            return
        self._is_closed = True
        self._forget_router()
        self._loop.remove_reader(self._socket.monitor_fileno())
        self._loop.remove_socket(self._socket)
        self._socket.close()
        self._context.close()

    def _flush(self) -> None:
        while self._outbox and not self._is_closed:
            if not self._socket.send(self._outbox[0]):
                self._loop.call_after(1, self._flush)
                return
            self._outbox_bytes -= sum(map(len, self._outbox.popleft()))

    def _say_hello(self) -> None:
        if self._is_closed or self.is_welcome:
            return
        # Past the outbox: what waits there would reach the router before it knows who is speaking.
        self._socket.send([b"", pack_request(Api.PROCESS_HELLO, self._connection_number, ids.ROUTER), self._hello])
        self._hellos += 1
        if self._hellos == HELLOS_IN_SILENCE:
            said = "no router answers; it is waited for (zbroker serve --role router, or without --role, starts one)"
            _log.warning(said, extra={"at": self._endpoint})
        self._loop.call_after(HELLO_INTERVAL_MS, self._say_hello)

    def _on_message(self, frames: list[bytes]) -> None:
        try:
            # Requests begin with a return address and the asker; a reply to our own call begins with its header.
            if len(frames) >= 3 and len(frames[1]) == 12:
                self._on_request(frames)
                return
            header = unpack_header(frames[0])
            body = frames[1] if len(frames) > 1 else b""
            if header.kind == REPLY:
                self._take_reply(header, body)
        except BrokerError as error:
            _log.warning("a message that cannot be read", extra={"error": error})

    def _take_reply(self, header: Header, body: bytes) -> None:
        if header.api == Api.PROCESS_HELLO:
            # One that answers a hello through an older connection says nothing of this one.
            if header.error == 0 and header.correlation == self._connection_number:
                self._welcome(decode(ProcessWelcome, body).router_incarnation)
            return
        call = self._calls.pop(header.correlation, None)
        if call is None:
            return
        if header.error:
            call.on_reply(error_for(header.error, body.decode("utf-8", "replace")), b"")
        else:
            call.on_reply(None, body)

    def _expire(self, correlation: int) -> None:
        call = self._calls.pop(correlation, None)
        if call is not None and not self._is_closed:
            call.on_reply(RequestTimedOutError("no reply from the other process"), b"")

    def _welcome(self, router_incarnation: int) -> None:
        if router_incarnation == self.router_incarnation:
            return
        self._forget_router()
        pidfd = ids.open_pidfd(router_incarnation)
        if pidfd is None:
            self._loop.call_after(HELLO_INTERVAL_MS, self._say_hello)
            return
        if router_incarnation == self._last_router_incarnation:
            _log.warning("the connection to the router broke, and there is another", extra={"at": self._endpoint})
        self.router_incarnation = self._last_router_incarnation = router_incarnation
        self._hellos = 0
        self._router_pidfd = pidfd
        self._loop.add_reader(pidfd, self._begin_again)
        if self._has_lost_calls:
            self._has_lost_calls = False
            for correlation in list(self._calls):
                self._expire(correlation)
        self._on_welcome()

    def _look_at_connection(self) -> None:
        if self._socket.has_lost_connection():
            self._connection_number += 1
            if self.is_welcome:
                self._begin_again()

    def _begin_again(self) -> None:
        self._has_lost_calls = True
        self._forget_router()
        self._say_hello()

    def _forget_router(self) -> None:
        self.router_incarnation = 0
        if self._router_pidfd >= 0:
            self._loop.remove_reader(self._router_pidfd)
            os.close(self._router_pidfd)
            self._router_pidfd = -1
