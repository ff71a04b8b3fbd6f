"""ROUTER and DEALER sockets with the options that keep a broker alive, and never a blocking call.

What each option prevents was found by experiment or in libzmq's issues:

    ROUTER_MANDATORY, NOBLOCK      without it a message to a full or absent peer is dropped and called sent
    IMMEDIATE                      without it messages are queued for a peer that is not there
    no identity, no HANDOVER       two peers of one name: the second is never read, or gets the first one's replies
    MAXMSGSIZE                     a length from outside is refused before anything is allocated
    RCVHWM, SNDHWM 64              queues are counted per peer, and kept after its death
    HANDSHAKE_IVL 1 s              a half-open connection holds a descriptor
    no ZMTP heartbeats             they have aborted processes with full queues; liveness is by pidfd
    LINGER                         the default waits for ever at exit

Sockets are not thread-safe: the caller serialises their use.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Final, TypeAlias

import zmq
from zmq.backend import Socket as _PlainSocket

from zbroker.errors import BrokerError, ForkError, TooManyOpenFilesError
from zbroker.wire.layout import BODY_HEADROOM_BYTES, FRAMES_MAX, NO_PEER, PEER

LIBZMQ_NEEDED: Final = (4, 3, 5)
HIGH_WATER_MARK: Final = 64
HANDSHAKE_MS: Final = 1_000
CONTEXT_FILES: Final = 14  # of a context with its sockets: signals, polls, one connection and what watches it
INNER_FRAME_BYTES_MAX: Final = 64 << 20  # what the broker's own processes may send: a large cluster's metadata
RECONNECT_MS: Final = 5
RECONNECT_MAX_MS: Final = 100
DEALER_FRAMES_MAX: Final = 64 + 2  # the largest frames_per_message_max, a return address and a peer
DISCARD_SLICE_FRAMES: Final = 1_000

Frame: TypeAlias = bytes | bytearray | memoryview | zmq.Frame

if zmq.zmq_version_info() < LIBZMQ_NEEDED:
    raise ImportError(f"zbroker needs libzmq 4.3.5 or later, this is {zmq.zmq_version()}: pip install -U pyzmq")


def libzmq_version() -> tuple[int, int, int]:
    """The version of the library that is loaded."""
    return zmq.zmq_version_info()


# Enum members are ten times slower to compare and to combine.
_POLLIN: Final = int(zmq.POLLIN)
_EVENTS: Final = int(zmq.EVENTS)
_NOBLOCK: Final = int(zmq.NOBLOCK)
_MORE_FOLLOWS: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
_PEERS_REMEMBERED: Final = 4_096


class Context:
    """A zmq context that knows its process: one made before a fork must not be touched after it."""

    def __init__(self, io_threads: int = 1) -> None:
        """Raises TooManyOpenFilesError where libzmq would end the process: it takes no missing descriptor for an
        answer."""
        _check_descriptors(CONTEXT_FILES + 4 * io_threads)
        self._context = _OwningContext(io_threads)
        self._pid = os.getpid()

    def socket(self, kind: int) -> zmq.Socket[bytes]:
        """A new socket. Raises ForkError in another process than the one that made the context."""
        if os.getpid() != self._pid:
            raise ForkError(f"a socket context made in pid {self._pid} was used in pid {os.getpid()}")
        return self._context.socket(kind)

    def close(self) -> None:
        """End the context. All its sockets must be closed. In a forked child it does nothing."""
        if os.getpid() == self._pid:
            self._context.term()


class _OwningContext(zmq.Context[zmq.Socket[bytes]]):
    """Holds its sockets. pyzmq's own knows them by weak references, which are gone when the collector ends a client
    that nobody closed: it closes none of them then, and waits for ever until somebody does."""

    _held: set[Any]

    def __init__(self, io_threads: int) -> None:
        super().__init__(io_threads)
        self._held = set()

    def _add_socket(self, socket: Any) -> None:
        super()._add_socket(socket)
        self._held.add(socket)

    def _rm_socket(self, socket: Any) -> None:
        super()._rm_socket(socket)
        self._held.discard(socket)

    def destroy(self, linger: int | None = None) -> None:
        """Close the sockets and end."""
        for socket in list(self._held):
            socket.close(linger)
        super().destroy(linger)


def _check_descriptors(count: int) -> None:
    """Raise TooManyOpenFilesError unless that many can be opened."""
    opened: list[int] = []
    try:
        for _ in range(count):
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise TooManyOpenFilesError(f"{count} descriptors are needed to connect, {len(opened)} are left") from error
    finally:
        for fd in opened:
            os.close(fd)


class _Socket:
    def __init__(self, context: Context, kind: int, message_max_bytes: int, linger_ms: int) -> None:
        socket = context.socket(kind)
        socket.setsockopt(zmq.LINGER, linger_ms)
        socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
        socket.setsockopt(zmq.MAXMSGSIZE, message_max_bytes + BODY_HEADROOM_BYTES)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 0)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket = socket
        self._file = int(socket.getsockopt(zmq.FD))
        # What pyzmq's Python layer adds to these three takes longer than they do, and is of no use here.
        self._get: Callable[[int], Any] = partial(_PlainSocket.get, socket)
        self._receive_frame: Callable[[int, bool], Any] = partial(_PlainSocket.recv, socket)
        self._send_frame: Callable[[Frame, int, bool], object] = partial(_PlainSocket.send, socket)
        self._is_discarding = False
        self.needs_look = True
        """Whether there may be input that the descriptor does not show: sending and receiving swallow what the I/O
        thread has signalled. When it is clear, and the descriptor was not readable since, nothing has come."""

    def fileno(self) -> int:
        """A descriptor that becomes readable when the socket's state may have changed. It is edge-triggered: after
        each wake, and before a sleep while `needs_look` is set, receive until `has_input` says no."""
        return self._file

    def has_input(self) -> bool:
        """Whether a message can be received now. It costs a tenth of a `receive` that finds nothing."""
        self.needs_look = not self._socket.closed and bool(self._get(_EVENTS) & _POLLIN)
        return self.needs_look

    def _receive(self, frames_max: int) -> list[zmq.Frame] | None:
        """A message; None: there is none; empty: one of too many frames, or a part of one, was thrown away.

        pyzmq's `recv_multipart` asks for a socket option after each frame, which takes as long as the frame itself.
        """
        receive = self._receive_frame
        try:
            frame = receive(_NOBLOCK, False)
        except zmq.Again:
            return None
        self.needs_look = True
        if self._is_discarding:
            return self._discard(frame)
        frames = [frame]
        while frame.more:
            frame = receive(_NOBLOCK, False)
            if len(frames) == frames_max:
                return self._discard(frame)
            frames.append(frame)
        return frames

    def _discard(self, frame: zmq.Frame) -> list[zmq.Frame]:
        """Throw the rest of a message away, a slice of it: a peer may send a million frames, and others wait."""
        count = 1
        while frame.more and count < DISCARD_SLICE_FRAMES:
            frame = self._receive_frame(_NOBLOCK, False)
            count += 1
        self._is_discarding = frame.more
        return []

    def _send(self, frames: Sequence[Frame], *, copy: bool) -> None:
        """Queue a message, or nothing of it: libzmq decides at its first frame. Raises what libzmq says."""
        self.needs_look = True
        send = self._send_frame
        for frame in frames[:-1]:
            send(frame, _MORE_FOLLOWS, copy)
        send(frames[-1], _NOBLOCK, copy)

    def close(self, linger_ms: int | None = None) -> None:
        """Close the socket. `linger_ms` is how long `Context.close` then waits for unsent messages; None: as it was
        made. Closing twice is closing once."""
        self._socket.close(linger_ms)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return bool(self._socket.closed)


class DealerSocket(_Socket):
    """One side of a conversation with a router."""

    def __init__(
        self,
        context: Context,
        endpoint: str,
        *,
        message_max_bytes: int,
        linger_ms: int = 0,
        is_watched: bool = False,
    ) -> None:
        """`is_watched`: `has_lost_connection` will be asked again and again; libzmq's thread waits for who does not."""
        super().__init__(context, zmq.DEALER, message_max_bytes, linger_ms)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        self._monitor: zmq.Socket[bytes] | None = None
        try:
            if is_watched:
                self._monitor = self._socket.get_monitor_socket(int(zmq.EVENT_DISCONNECTED))
                self.has_lost_connection()  # libzmq signals only to those who have found nothing before
            self._socket.connect(endpoint)
        except zmq.ZMQError:
            self.close()
            raise

    def send(self, frames: Sequence[Frame]) -> bool:
        """Queue a message. False when nobody is connected or the queue is full; then nothing was queued."""
        try:
            self._send(frames, copy=True)
        except zmq.Again:
            return False
        return True

    def receive(self) -> list[bytes] | None:
        """The next message, or None when there is none now."""
        frames = self._receive(DEALER_FRAMES_MAX)
        while frames is not None and not frames:
            frames = self._receive(DEALER_FRAMES_MAX)
        return None if frames is None else [frame.bytes for frame in frames]

    def has_lost_connection(self) -> bool:
        """Whether a connection that is watched has ended since the last call: what was sent and is not answered may be
        lost."""
        has_lost = False
        while self._monitor is not None:
            try:
                self._monitor.recv_multipart(_NOBLOCK)
            except zmq.Again:
                break
            has_lost = True
        return has_lost

    def monitor_fileno(self) -> int:
        """A descriptor that becomes readable when `has_lost_connection` may have something to say, and stays so until
        it was asked."""
        assert self._monitor is not None, "the connection is not watched"
        return int(self._monitor.getsockopt(zmq.FD))

    def close(self, linger_ms: int | None = None) -> None:
        """See _Socket."""
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._monitor = None
        super().close(linger_ms)


class UnroutableError(BrokerError):
    """No peer is connected at this return address."""


class RouterSocket(_Socket):
    """Many conversations. Frames stay zmq's own: a payload goes through without a copy."""

    def __init__(
        self, context: Context, *, message_max_bytes: int, frames_max: int = FRAMES_MAX, linger_ms: int = 0
    ) -> None:
        """`message_max_bytes` bounds one frame; `frames_max` counts what a peer sends, without the routing id."""
        super().__init__(context, zmq.ROUTER, message_max_bytes, linger_ms)
        self._frames_max = frames_max + 1
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 0)

    def bind(self, endpoint: str) -> None:
        """Listen at an endpoint. Raises OSError."""
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"cannot listen at {endpoint}: {error}") from error

    def unbind(self, endpoint: str) -> None:
        """Accept no further connections at an endpoint; those that are stay."""
        self._socket.unbind(endpoint)

    def send(self, frames: Sequence[Frame]) -> bool:
        """Queue a message; frame 0 is the peer's routing id. False when its queue is full. Raises UnroutableError."""
        try:
            self._send(frames, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                raise UnroutableError("no such peer") from error
            raise
        return True

    def receive(self) -> list[zmq.Frame] | None:
        """The next message, frame 0 the sender's routing id, or None when there is none now.

        An empty list: a message of too many frames, or a part of one, was thrown away.
        """
        return self._receive(self._frames_max)


def peer_of(frame: zmq.Frame) -> bytes:
    """Who sent a received frame: a `PEER` of uid, gid, pid at connect time, made by the kernel; NO_PEER for tcp."""
    try:
        return _peer_at(str(frame.get("Peer-Address")))
    except zmq.ZMQError:
        return _STRANGER


@lru_cache(_PEERS_REMEMBERED)
def _peer_at(address: str) -> bytes:
    try:
        parts = address.rsplit(":", 3)
        return PEER.pack(int(parts[-3]), int(parts[-2]), int(parts[-1])) if len(parts) == 4 else _STRANGER
    except (ValueError, IndexError):
        return _STRANGER


_STRANGER = PEER.pack(NO_PEER, NO_PEER, NO_PEER)
