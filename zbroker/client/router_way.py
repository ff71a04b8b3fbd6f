"""The way of requests by messages: the socket to the router, and what waits to go through it.

Guarantees: messages leave in the order they were given, and at most OUTBOX_MESSAGES_MAX of them wait. While no router
is known to listen, from the death of one until the next has answered a hello, only hellos leave: what was given to a
socket whose other end has gone is lost without a sign, and so it would be with a router that died before anybody knew
it. The caller holds its lock.
"""

from __future__ import annotations

from collections import deque

from zbroker.client.lanes import OUTBOX_MESSAGES_MAX, Frame
from zbroker.client.unanswered import Unanswered
from zbroker.transport.sockets import DealerSocket

Message = tuple[Frame, ...]


class RouterWay:
    """See the module."""

    def __init__(self, socket: DealerSocket, unanswered: Unanswered) -> None:
        self._socket = socket
        self._unanswered = unanswered
        self._outbox: deque[tuple[int, Message]] = deque()
        self._hello: tuple[int, Message] | None = None
        self._is_held = False

    @property
    def is_backed_up(self) -> bool:
        """Whether something waits for room, or for a connection, and has to be tried again."""
        return self._hello is not None or (bool(self._outbox) and not self._is_held)

    def hold(self) -> None:
        """The router has ended: from now on only hellos leave."""
        self._is_held = True

    def release(self) -> None:
        """A router has answered, and its end will be noticed: what waits may leave."""
        self._is_held, self._hello = False, None
        self.flush()

    def send(self, message: Message, correlation: int, *, is_hello: bool = False) -> None:
        """Send a message now or later; `correlation` is that of a request whose sender waits, else 0."""
        if is_hello and self._is_held:
            self._hello = None if self._socket.send(message) else (correlation, message)
        elif (self._is_held or self._outbox or not self._socket.send(message)) and (
            len(self._outbox) < OUTBOX_MESSAGES_MAX
        ):
            self._outbox.append((correlation, message))

    def flush(self) -> None:
        """Send what waits and is still of use, as far as there is room."""
        if self._hello is not None and (
            not self._unanswered.wants(self._hello[0]) or self._socket.send(self._hello[1])
        ):
            self._hello = None
        while self._outbox and not self._is_held:
            correlation, message = self._outbox[0]
            if self._unanswered.wants(correlation) and not self._socket.send(message):
                return
            self._outbox.popleft()

    def clear(self) -> None:
        """Give up what waits."""
        self._outbox.clear()
        self._hello = None
