"""How a client gets a lane: one exchange over the worker's Unix socket, then the socket is closed.

    client -> worker   "zBLn" | version u16 | 0 u16 | token 16 bytes
                       + SCM_RIGHTS: write end of the client's doorbell
    worker -> client   "zBLr" | version u16 | error i16 | lane u32 | 0 u32 | worker incarnation u64
                       + SCM_RIGHTS: the lane's memfd, write end of the worker's doorbell

Guarantees: a token is random, works once, and expires; both sides check the other's uid (SO_PEERCRED, made by the
kernel) before they believe a byte; the worker never blocks here, and keeps at most `PENDING_MAX` half-open exchanges;
descriptors that nobody took are closed. Nothing is left in the file system but the socket, which belongs to the worker.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import secrets
import select
import socket
import struct
from pathlib import Path
from typing import Final, NamedTuple

from zbroker.clock import NS_PER_MS
from zbroker.errors import (
    BrokerNotAvailableError,
    ClusterAuthorizationFailedError,
    InvalidRequestError,
    LaneRefusedError,
    RequestTimedOutError,
    TooManyOpenFilesError,
    UnsupportedVersionError,
    error_for,
)
from zbroker.shm.lane import Lane

TOKEN_BYTES: Final = 16
OFFER_TIMEOUT_MS: Final = 5_000
EXCHANGE_TIMEOUT_MS: Final = 1_000
PENDING_MAX: Final = 64
OFFERS_MAX: Final = 1_024
_VERSION: Final = 1
_REQUEST: Final = struct.Struct("<4sHH16s")
_REPLY: Final = struct.Struct("<4sHhIIQ")
_REQUEST_MAGIC: Final = b"zBLn"
_REPLY_MAGIC: Final = b"zBLr"
_CREDENTIALS: Final = struct.Struct("=3i")
_FD_BYTES: Final = array.array("i").itemsize
assert _REQUEST.size == 24
assert _REPLY.size == 24


class OpenedLane(NamedTuple):
    """A lane that a client has taken. The worker owns `client_bell_fd` and closes it with the lane."""

    lane: Lane
    client_bell_fd: int
    client_pid: int
    client_uid: int


class _Offer(NamedTuple):
    lane: Lane
    uid: int
    deadline_ns: int


class _Pending(NamedTuple):
    connection: socket.socket
    pid: int
    uid: int
    deadline_ns: int


def _credentials(connection: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the other side when it connected."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid


def _receive(connection: socket.socket, size_bytes: int) -> tuple[bytes, list[int], bool]:
    """One packet, its descriptors, which are close-on-exec, and whether some were left out because this process has no
    room for them. More than two descriptors never arrive."""
    room = socket.CMSG_SPACE(2 * _FD_BYTES)
    data, control, flags, _ = connection.recvmsg(size_bytes + 1, room, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, payload in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % _FD_BYTES])
    return data, list(descriptors), bool(flags & socket.MSG_CTRUNC)


def _send(connection: socket.socket, data: bytes, descriptors: list[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([data], rights)


class LaneListener:
    """The worker's side. Poll `fileno()` for reading; call `accept` when it is readable, `expire` now and then."""

    def __init__(self, path: Path, doorbell_write_fd: int, worker_incarnation: int) -> None:
        """Bind. The caller holds the process's lock, so a socket that is there is a dead one's and is replaced."""
        path.unlink(missing_ok=True)
        self._path = path
        self._bell_fd = doorbell_write_fd
        self._incarnation = worker_incarnation
        self._offers: dict[bytes, _Offer] = {}
        self._pending: dict[int, _Pending] = {}
        self._spare_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._epoll = select.epoll()
        try:
            self._listener.bind(os.fspath(path))
            os.chmod(path, 0o600)
            self._listener.listen(PENDING_MAX)
            self._epoll.register(self._listener, select.EPOLLIN)
        except OSError:
            self._listener.close()
            self._epoll.close()
            os.close(self._spare_fd)
            raise

    def fileno(self) -> int:
        """Readable when `accept` has something to do."""
        return self._epoll.fileno()

    def offer(self, lane: Lane, uid: int, now_ns: int, *, timeout_ms: int = OFFER_TIMEOUT_MS) -> bytes:
        """Promise a lane to whoever shows the returned token and has this uid. The listener owns the lane until then.

        Raises LaneRefusedError, with the lane closed, when too many offers wait.
        """
        if len(self._offers) >= OFFERS_MAX:
            lane.close()
            raise LaneRefusedError(f"{OFFERS_MAX} lanes are offered and not yet taken")
        token = secrets.token_bytes(TOKEN_BYTES)
        self._offers[token] = _Offer(lane, uid, now_ns + timeout_ms * NS_PER_MS)
        return token

    def accept(self, now_ns: int) -> list[OpenedLane]:
        """Take new connections and finish those whose packet has come. Never blocks."""
        opened = []
        for fd, _ in self._epoll.poll(0):
            if fd == self._listener.fileno():
                self._take_connections(now_ns)
                continue
            pending = self._pending.get(fd)
            if pending is not None and (lane := self._finish(pending)) is not None:
                opened.append(lane)
        return opened

    def expire(self, now_ns: int) -> int:
        """Close the offers and half-open connections whose time is over. Returns how many offers were withdrawn."""
        late = [token for token, offer in self._offers.items() if offer.deadline_ns <= now_ns]
        for token in late:
            self._offers.pop(token).lane.close()
        for pending in [one for one in self._pending.values() if one.deadline_ns <= now_ns]:
            self._drop(pending)
        return len(late)

    def close(self) -> None:
        """Close the socket and remove its file; withdraw every offer."""
        for pending in list(self._pending.values()):
            self._drop(pending)
        for offer in self._offers.values():
            offer.lane.close()
        self._offers.clear()
        self._epoll.close()
        self._listener.close()
        if self._spare_fd >= 0:
            os.close(self._spare_fd)
        self._path.unlink(missing_ok=True)

    def _take_connections(self, now_ns: int) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE) and self._turn_one_away():
                    continue
                return  # The client left already.
            connection.setblocking(False)
            pid, uid = _credentials(connection)
            if len(self._pending) >= PENDING_MAX:
                self._turn_away(connection)
                continue
            deadline_ns = now_ns + EXCHANGE_TIMEOUT_MS * NS_PER_MS
            self._pending[connection.fileno()] = _Pending(connection, pid, uid, deadline_ns)
            self._epoll.register(connection, select.EPOLLIN)

    def _turn_one_away(self) -> bool:
        """No descriptor is left: take the first in the queue by the spare one and turn it away. Otherwise the listener
        would stay readable, and the loop never sleep. Whoever is turned away uses messages."""
        if self._spare_fd >= 0:
            os.close(self._spare_fd)
            self._spare_fd = -1
        try:
            connection, _ = self._listener.accept()
            self._turn_away(connection)
            self._spare_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        return True

    def _turn_away(self, connection: socket.socket) -> None:
        """Say so and hang up: to whom nobody says anything, this process has ended."""
        with contextlib.suppress(OSError):
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                connection.recv(_REQUEST.size)
            _send(connection, self._refusal(LaneRefusedError.code), [])
        connection.close()

    def _refusal(self, error: int) -> bytes:
        return _REPLY.pack(_REPLY_MAGIC, _VERSION, error, 0, 0, self._incarnation)

    def _drop(self, pending: _Pending) -> None:
        del self._pending[pending.connection.fileno()]
        self._epoll.unregister(pending.connection)
        pending.connection.close()

    def _finish(self, pending: _Pending) -> OpenedLane | None:
        descriptors: list[int] = []
        kept = -1
        try:
            data, descriptors, is_cut = _receive(pending.connection, _REQUEST.size)
            lane, error = self._match(data, descriptors, pending.uid)
            if lane is None and is_cut and not descriptors:
                error = TooManyOpenFilesError.code
            if lane is None:
                _send(pending.connection, self._refusal(error), [])
                return None
            reply = _REPLY.pack(_REPLY_MAGIC, _VERSION, 0, lane.number, 0, self._incarnation)
            try:
                _send(pending.connection, reply, [lane.fd, self._bell_fd])
            except OSError:
                lane.close()
                return None
            lane.close_fd()
            kept = descriptors[0]
            return OpenedLane(lane, kept, pending.pid, pending.uid)
        except OSError:
            return None
        finally:
            for fd in descriptors:
                if fd != kept:
                    os.close(fd)
            self._drop(pending)

    def _match(self, data: bytes, descriptors: list[int], uid: int) -> tuple[Lane | None, int]:
        if len(data) != _REQUEST.size or len(descriptors) != 1:
            return None, InvalidRequestError.code
        magic, version, _, token = _REQUEST.unpack(data)
        if magic != _REQUEST_MAGIC:
            return None, InvalidRequestError.code
        if version != _VERSION:
            return None, UnsupportedVersionError.code
        offer = self._offers.get(token)
        if offer is None:
            return None, LaneRefusedError.code
        if offer.uid != uid:
            return None, ClusterAuthorizationFailedError.code
        del self._offers[token]
        return offer.lane, 0


def open_lane(
    path: Path,
    token: bytes,
    doorbell_write_fd: int,
    *,
    timeout_ms: int = EXCHANGE_TIMEOUT_MS,
    worker_uid: int | None = None,
) -> tuple[Lane, int]:
    """The client's side: exchange the token for (lane, write end of the worker's doorbell). The caller closes both.

    Raises BrokerNotAvailableError when nobody listens or the worker ends meanwhile, RequestTimedOutError,
    LaneRefusedError for a token that is used or expired or from a worker that has no room,
    ClusterAuthorizationFailedError when the worker runs as another user than `worker_uid` (default: ours).
    """
    expected_uid = os.getuid() if worker_uid is None else worker_uid
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(timeout_ms / 1000)
        try:
            connection.connect(os.fspath(path))
            _, uid = _credentials(connection)
            if uid != expected_uid:
                raise ClusterAuthorizationFailedError(f"{path} is served by uid {uid}, not {expected_uid}")
            data, descriptors = _exchange(
                connection, _REQUEST.pack(_REQUEST_MAGIC, _VERSION, 0, token), doorbell_write_fd
            )
        except TimeoutError as error:
            raise RequestTimedOutError(f"{path} handed over no lane within {timeout_ms} ms") from error
        except OSError as error:
            raise BrokerNotAvailableError(f"{path}: {error.strerror}") from error
    try:
        _check_reply(data, descriptors)
        lane_fd, bell_fd = descriptors
    except BaseException:
        for fd in descriptors:
            os.close(fd)
        raise
    try:
        return Lane.attach(lane_fd), bell_fd
    except BaseException:
        os.close(bell_fd)
        raise


def _exchange(connection: socket.socket, request: bytes, descriptor: int) -> tuple[bytes, list[int]]:
    """The reply, with its descriptors, also of a worker that had hung up before it got all of this."""
    with contextlib.suppress(BrokenPipeError):
        _send(connection, request, [descriptor])
    try:
        data, descriptors, _ = _receive(connection, _REPLY.size)
    except ConnectionResetError:  # says that the request was not read; the reply lies behind it, if there is one
        data, descriptors, _ = _receive(connection, _REPLY.size)
    return data, descriptors


def _check_reply(data: bytes, descriptors: list[int]) -> None:
    if not data:
        raise BrokerNotAvailableError("the worker has ended")
    if len(data) != _REPLY.size:
        raise InvalidRequestError(f"a lane reply of {len(data)} bytes")
    magic, version, error, _, _, _ = _REPLY.unpack(data)
    if magic != _REPLY_MAGIC:
        raise InvalidRequestError("a lane reply that is none")
    if error:
        raise error_for(error, "the worker refused the lane")
    if version != _VERSION:
        raise UnsupportedVersionError(f"the worker hands over lanes of version {version}")
    if len(descriptors) != 2:
        raise TooManyOpenFilesError("the lane's descriptors did not arrive: no room for more open files?")
