"""The router's sockets: for clients by ipc and perhaps tcp, for the broker's own processes by ipc.

Guarantees: every socket file is private to the user, and made anew after what a dead router left; `stop_listening`
leaves standing connections alone; `replace` frees all that a socket holds, its connections included; nothing blocks
but `close`, and that for at most LINGER_MS a socket.

The caller holds the router's lock: a second bind of an ipc path would take it from the first without an error.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

from zbroker.config.schema import ServerConfig
from zbroker.errors import ConfigError
from zbroker.transport.loop import Loop
from zbroker.transport.sockets import INNER_FRAME_BYTES_MAX, Context, Frame, RouterSocket

FRONT: Final = b"f"
TCP: Final = b"t"
BACK: Final = b"b"
LINGER_MS: Final = 500

OnMessage: TypeAlias = Callable[[bytes, list[Any]], None]


class Doors:
    """Up to three ROUTER sockets by their origin, the byte that a return address begins with."""

    def __init__(self, loop: Loop, config: ServerConfig, front: Path, back: Path, on_message: OnMessage) -> None:
        """Open and bind. Raises ConfigError when the tcp port cannot be had, OSError for other failures."""
        self._loop = loop
        self._config = config
        self._on_message = on_message
        self._context = Context(config.network.io_threads)
        self.endpoints = {FRONT: f"ipc://{front}", BACK: f"ipc://{back}"}
        if config.network.tcp_listen:
            self.endpoints[TCP] = config.network.tcp_listen
        self._files = {FRONT: front, BACK: back}
        self._sockets: dict[bytes, RouterSocket] = {}
        self._bound: set[bytes] = set()
        try:
            for origin in self.endpoints:
                self._open(origin)
                self._bind(origin)
        except BaseException:
            self.close()
            raise

    @property
    def client_origins(self) -> list[bytes]:
        """The sockets that clients connect to."""
        return [origin for origin in self.endpoints if origin != BACK]

    def send(self, origin: bytes, message: list[Frame]) -> bool:
        """Queue a message, its first frame a routing id. False: that peer's queue is full. Raises UnroutableError."""
        return self._sockets[origin].send(message)

    def has(self, origin: bytes) -> bool:
        """Whether there is a socket of this origin."""
        return origin in self._sockets

    def listen(self) -> bool:
        """Accept clients again. False: an ended listener has not let go of its address yet, try again."""
        for origin in self.client_origins:
            if origin in self._bound:
                continue
            # libzmq removes the socket file some time after it was told to stop: a new one must not be there by then.
            if origin in self._files and self._files[origin].exists():
                return False
            try:
                self._bind(origin)
            except (OSError, ConfigError):
                return False
        return True

    def stop_listening(self) -> None:
        """Accept no further clients; those that are connected stay."""
        for origin in self.client_origins:
            if origin in self._bound:
                self._bound.discard(origin)
                self._sockets[origin].unbind(self.endpoints[origin])

    def replace(self, origin: bytes) -> None:
        """Close a socket with all its connections and messages, and open another, which does not listen yet."""
        self._shut(origin, linger_ms=0)
        self._open(origin)

    def close(self) -> None:
        """Close everything; messages that are queued are given LINGER_MS to leave."""
        for origin in list(self._sockets):
            self._shut(origin, linger_ms=LINGER_MS)
        self._context.close()
        for path in self._files.values():
            path.unlink(missing_ok=True)

    def _open(self, origin: bytes) -> None:
        limits = self._config.limits
        socket = RouterSocket(
            self._context,
            message_max_bytes=INNER_FRAME_BYTES_MAX if origin == BACK else limits.message_max_bytes,
            frames_max=limits.frames_per_message_max + (1 if origin == BACK else 0),  # a return address
        )
        self._sockets[origin] = socket
        self._loop.add_socket(socket, lambda frames: self._on_message(origin, frames))

    def _bind(self, origin: bytes) -> None:
        if origin in self._files:
            self._files[origin].unlink(missing_ok=True)  # a dead router's
        try:
            self._sockets[origin].bind(self.endpoints[origin])
        except OSError as error:
            if origin == TCP:
                raise ConfigError(f"network.tcp_listen: {error.strerror}") from error
            raise
        self._bound.add(origin)

    def _shut(self, origin: bytes, *, linger_ms: int) -> None:
        socket = self._sockets.pop(origin)
        self._bound.discard(origin)
        self._loop.remove_socket(socket)
        socket.close(linger_ms)
