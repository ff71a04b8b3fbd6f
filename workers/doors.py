"""The router's sockets: for clients by ipc and perhaps tcp, for the broker's own processes by ipc.

Guarantees: every socket file is private to the user; `stop_listening` leaves standing ipc connections alone; `replace`
frees all that a socket holds, its connections included; nothing blocks but `close`, and that for at most LINGER_MS a
socket.

An ipc socket is bound under a name of its own and then renamed to the one that clients know, and to stop listening it
is renamed back. `unbind` would not do: libzmq makes the accepted connections children of the listener, and ends them
with it. And libzmq removes, some time after a close, the name under which a socket was bound, which by then may be its
successor's; a name used once is nobody's. tcp has no names: to stop there is to unbind, its clients are cut off and
connect again by themselves.

The caller holds the router's lock: a second bind of an ipc path takes it from the first without an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from itertools import count
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
        """Open and listen. Raises ConfigError when the tcp port cannot be had, OSError for other failures."""
        self._loop = loop
        self._limits = config.limits
        self._on_message = on_message
        self._context = Context(config.network.io_threads)
        self._numbers = count()
        self._public = {FRONT: front, BACK: back}
        self.endpoints = {origin: f"ipc://{path}" for origin, path in self._public.items()}
        if config.network.tcp_listen:
            self.endpoints[TCP] = config.network.tcp_listen
        self._sockets: dict[bytes, RouterSocket] = {}
        self._private: dict[bytes, Path] = {}  # under which name an ipc socket is bound
        self._listening: set[bytes] = set()
        try:
            self._remove_private_names()
            for origin in self.endpoints:
                self._open(origin)
                self._listen(origin)
        except BaseException:
            self.close()
            raise

    @property
    def client_origins(self) -> list[bytes]:
        """The sockets that clients connect to."""
        return [origin for origin in self.endpoints if origin != BACK]

    @property
    def origins(self) -> list[bytes]:
        """All sockets."""
        return list(self.endpoints)

    def send(self, origin: bytes, message: list[Frame]) -> bool:
        """Queue a message, its first frame a routing id. False: that peer's queue is full. Raises UnroutableError."""
        return self._sockets[origin].send(message)

    def has(self, origin: bytes) -> bool:
        """Whether there is a socket of this origin."""
        return origin in self._sockets

    def listen(self) -> bool:
        """Accept connections again. False: not everywhere yet, try again (the kernel has not let go of a tcp port)."""
        for origin in self.origins:
            try:
                self._listen(origin)
            except (OSError, ConfigError):
                return False
        return True

    def stop_listening(self, origins: Iterable[bytes]) -> None:
        """Accept no further connections. Those of ipc stay, those of tcp end."""
        for origin in origins:
            if origin not in self._listening:
                continue
            self._listening.discard(origin)
            if origin == TCP:
                self._sockets[TCP].unbind(self.endpoints[TCP])
            elif self._public[origin].exists():
                os.rename(self._public[origin], self._private[origin])

    def replace(self, origin: bytes) -> None:
        """Close a socket with all its connections and messages, and open another, which does not listen yet."""
        self.stop_listening([origin])
        self._shut(origin, linger_ms=0)
        self._open(origin)

    def close(self) -> None:
        """Close everything; messages that are queued are given LINGER_MS to leave."""
        for origin in list(self._sockets):
            self._shut(origin, linger_ms=LINGER_MS)
        self._context.close()
        for path in self._public.values():
            path.unlink(missing_ok=True)
        self._remove_private_names()

    def _open(self, origin: bytes) -> None:
        socket = RouterSocket(
            self._context,
            message_max_bytes=INNER_FRAME_BYTES_MAX if origin == BACK else self._limits.message_max_bytes,
            frames_max=self._limits.frames_per_message_max + (1 if origin == BACK else 0),  # a return address
        )
        self._sockets[origin] = socket
        if origin != TCP:
            public = self._public[origin]
            self._private[origin] = public.with_name(f"{public.stem}-{next(self._numbers)}{public.suffix}")
            socket.bind(f"ipc://{self._private[origin]}")
        self._loop.add_socket(socket, lambda frames: self._on_message(origin, frames))

    def _listen(self, origin: bytes) -> None:
        if origin in self._listening:
            return
        if origin == TCP:
            try:
                self._sockets[TCP].bind(self.endpoints[TCP])
            except OSError as error:
                raise ConfigError(f"network.tcp_listen: {error.strerror}") from error
        else:
            os.rename(self._private[origin], self._public[origin])
        self._listening.add(origin)

    def _shut(self, origin: bytes, *, linger_ms: int) -> None:
        socket = self._sockets.pop(origin)
        self._listening.discard(origin)
        self._loop.remove_socket(socket)
        socket.close(linger_ms)

    def _remove_private_names(self) -> None:
        for public in self._public.values():
            for path in public.parent.glob(f"{public.stem}-*{public.suffix}"):
                path.unlink(missing_ok=True)
