"""Messages for peers that do not keep up: a bounded queue for each, tried again until the peer reads or is gone.

Guarantees: messages to one peer leave in the order they were given, whether they had to wait or not; what cannot be
kept is refused to the caller, never dropped in silence; a peer that is gone gives its messages back to `on_lost`.
A peer that does not read for long is tried less and less often, so that a thousand of them cost little.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from zbroker.transport.loop import Loop
from zbroker.transport.sockets import UnroutableError

RETRY_MS: Final = 1
RETRY_MAX_MS: Final = 64
SENT_AT_ONCE_MAX: Final = 64
_OVERHEAD_BYTES: Final = 512  # of Python and libzmq for a message that waits


class Peer(NamedTuple):
    """A socket, and a routing id there."""

    origin: bytes
    routing_id: bytes


class OutboxBounds(NamedTuple):
    """How much may wait."""

    peer_messages: int = 1024
    peer_bytes: int = 32 << 20
    all_bytes: int = 96 << 20


class _Queue:
    __slots__ = ("messages", "retry_ms", "size_bytes")

    def __init__(self) -> None:
        self.messages: deque[tuple[list[Any], int]] = deque()
        self.size_bytes = 0
        self.retry_ms = RETRY_MS


class Outbox:
    """See the module. `send(peer, message)` shall return False for a full peer and raise UnroutableError."""

    def __init__(
        self,
        loop: Loop,
        send: Callable[[Peer, list[Any]], bool],
        on_lost: Callable[[Peer, list[Any]], None],
        bounds: OutboxBounds,
    ) -> None:
        self._loop = loop
        self._send = send
        self._on_lost = on_lost
        self._bounds = bounds
        self._queues: dict[Peer, _Queue] = {}
        self.size_bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._queues

    def offer(self, peer: Peer, message: list[Any], size_bytes: int) -> bool:
        """Send a message now or later; False: there is no room for it. Raises UnroutableError for an unknown peer."""
        queue = self._queues.get(peer)
        if queue is None and self._send(peer, message):
            return True
        size_bytes += _OVERHEAD_BYTES
        if self.size_bytes + size_bytes > self._bounds.all_bytes:
            return False
        if queue is None:
            queue = self._queues[peer] = _Queue()
            self._loop.call_after(RETRY_MS, lambda: self._retry(peer))
        elif (
            len(queue.messages) >= self._bounds.peer_messages or queue.size_bytes + size_bytes > self._bounds.peer_bytes
        ):
            return False
        queue.messages.append((message, size_bytes))
        queue.size_bytes += size_bytes
        self.size_bytes += size_bytes
        return True

    def forget_socket(self, origin: bytes) -> None:
        """Give up what waits for peers of a socket that is replaced."""
        for peer in [peer for peer in self._queues if peer.origin == origin]:
            self._lose(peer)

    def forget(self, peer: Peer) -> None:
        """Give up what waits for one peer, which is gone."""
        if peer in self._queues:
            self._lose(peer)

    def _retry(self, peer: Peer) -> None:
        queue = self._queues.get(peer)
        if queue is None:
            return
        sent = 0
        try:
            while queue.messages and sent < SENT_AT_ONCE_MAX and self._send(peer, queue.messages[0][0]):
                size_bytes = queue.messages.popleft()[1]
                queue.size_bytes -= size_bytes
                self.size_bytes -= size_bytes
                sent += 1
        except UnroutableError:
            self._lose(peer)
            return
        if not queue.messages:
            del self._queues[peer]
            return
        queue.retry_ms = RETRY_MS if sent else min(2 * queue.retry_ms, RETRY_MAX_MS)
        self._loop.call_after(queue.retry_ms, lambda: self._retry(peer))

    def _lose(self, peer: Peer) -> None:
        queue = self._queues.pop(peer)
        self.size_bytes -= queue.size_bytes
        for message, _ in queue.messages:
            self._on_lost(peer, message)
