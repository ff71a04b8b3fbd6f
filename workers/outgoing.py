"""One direction of a stream's connection: entries become numbered messages, and wait while nobody can take them.

Guarantees: entries leave in the order given; those of one kind that were given together share a message. Every message
has the next number, so that the other side sees when one was lost. At most `ENTRIES_WAITING_MAX` entries and
`BYTES_WAITING_MAX` bytes wait; nothing here blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from zbroker.wire.stream import ENTRIES_MAX, INLINE_FRAMES_MAX, KIND_OF, Appended, Entry, Kind, pack

ENTRIES_WAITING_MAX: Final = 16_384
BYTES_WAITING_MAX: Final = 16 << 20
_ENTRIES_A_MESSAGE: Final = ENTRIES_MAX // 2

Send = Callable[[list[bytes]], bool]


class Outgoing:
    """See the module. `send(frames)` says False when the socket has no room now."""

    __slots__ = ("_entries", "_inline", "_inline_bytes", "_kind", "_messages", "_send", "_sender", "sequence")

    def __init__(self, send: Send, number: int, incarnation: int) -> None:
        """`number` and `incarnation` are those of this process."""
        self._send = send
        self._sender = (number, incarnation)
        self._kind = Kind.PING
        self._entries: list[Entry] = []
        self._inline: list[bytes] = []
        self._inline_bytes = 0
        self._messages: deque[list[bytes]] = deque()
        self.sequence = 0

    @property
    def is_waiting(self) -> bool:
        """Whether there is anything that was not handed over yet."""
        return bool(self._entries or self._messages)

    def add(self, entry: Entry, inline: bytes | None = None) -> bool:
        """Have an entry sent at the next `flush`. False: too much waits already, and this is not sent."""
        waiting = len(self._messages) * _ENTRIES_A_MESSAGE + len(self._entries)
        if waiting >= ENTRIES_WAITING_MAX or self._inline_bytes >= BYTES_WAITING_MAX:
            return False
        kind = KIND_OF[type(entry)]
        is_full = len(self._entries) >= _ENTRIES_A_MESSAGE or len(self._inline) >= INLINE_FRAMES_MAX
        if kind != self._kind or is_full:
            self._close_message()
            self._kind = kind
        if inline is not None:
            assert isinstance(entry, Appended)
            self._inline.append(inline)
            self._inline_bytes += len(inline)
            entry = entry._replace(frame=len(self._inline))
        self._entries.append(entry)
        return True

    def say(self, kind: Kind) -> None:
        """Have a message without entries sent at the next `flush`."""
        self._close_message()
        self._messages.append([pack(kind, *self._sender, self._next())])

    def flush(self) -> bool:
        """Hand over what there is. False: some of it waits for room."""
        self._close_message()
        messages = self._messages
        while messages:
            if not self._send(messages[0]):
                return False
            self._inline_bytes -= sum(map(len, messages.popleft()[1:]))
        return True

    def clear(self) -> None:
        """Forget what waits, and count from the beginning: a new connection."""
        self._entries, self._inline = [], []
        self._inline_bytes = self.sequence = 0
        self._messages.clear()

    def _close_message(self) -> None:
        if self._entries:
            head = pack(self._kind, *self._sender, self._next(), self._entries)
            self._messages.append([head, *self._inline])
            self._entries, self._inline = [], []

    def _next(self) -> int:
        self.sequence += 1
        return self.sequence - 1
