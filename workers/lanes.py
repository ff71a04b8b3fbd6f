"""The worker's side of all lanes: hand-over, requests in, replies out, and the end of each.

Guarantees: a lane is read only as fast as its replies are taken: while replies wait for room in its ring, its requests
stay in theirs, so what a client can make this process hold is bounded by its rings. Bytes that contradict themselves
close that lane and touch nothing else. When a client dies or says goodbye, what it had written before is still handled,
then the lane's memory is given back. All lanes together take at most `lane_bytes_total_max`; beyond it, clients are
told to use messages.

One visit handles at most `VISIT_BYTES_MAX` of a lane before the others have their turn, and its client is rung once.
"""

from __future__ import annotations

import logging
import os
import select
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from zbroker.clock import Clock
from zbroker.config.schema import LimitsSection
from zbroker.errors import (
    BrokerError,
    ClusterAuthorizationFailedError,
    InvalidRequestError,
    LaneRefusedError,
    MessageSizeTooLargeError,
)
from zbroker.shm import layout
from zbroker.shm.board import BoardWriter
from zbroker.shm.doorbell import Bell, Doorbell
from zbroker.shm.handover import LaneListener, OpenedLane
from zbroker.shm.lane import Lane
from zbroker.shm.layout import Counter
from zbroker.shm.region import PAGE_BYTES
from zbroker.transport.loop import Loop
from zbroker.wire.layout import REQUEST, pack_reply, unpack_header
from zbroker.wire.messages import LaneOffer
from zbroker.workers.logs import OncePerMinute
from zbroker.workers.request import Frame, Request

VISIT_MESSAGES_MAX: Final = 16
VISIT_BYTES_MAX: Final = 256 << 10
OUTBOX_REPLIES_MAX: Final = 65_536
CLEAR_INTERVAL_MS: Final = 1_000

_log = logging.getLogger(__name__)


class ServedLane:
    """A lane in use, and the way back for requests that came through it.

    `send` never raises, since it is also called while another lane is being visited: what goes wrong is kept in
    `broken`, and the lane is closed at its next turn.
    """

    __slots__ = (
        "_bell",
        "_lane",
        "_needs_bell",
        "broken",
        "client_pid",
        "client_uid",
        "is_mute",
        "is_open",
        "is_visited",
        "outbox",
        "pidfd",
        "requests",
        "visited_ns",
    )

    def __init__(self, opened: OpenedLane, pidfd: int | None) -> None:
        self._lane = opened.lane
        self.outbox: deque[Sequence[Frame]] = deque()
        self._bell = Bell(opened.client_bell_fd, opened.lane.number, opened.lane.words, layout.L_CLIENT_SLEEP_SEQ)
        self._needs_bell = False
        self.requests = opened.lane.requests
        self.client_pid = opened.client_pid
        self.client_uid = opened.client_uid
        self.pidfd = pidfd
        self.is_open = True
        self.is_mute = False
        self.is_visited = False
        self.visited_ns = 0
        self.broken: BrokerError | None = None

    @property
    def number(self) -> int:
        """The lane's number in this process."""
        return self._lane.number

    @property
    def size_bytes(self) -> int:
        """What the lane takes of the budget."""
        return self._lane.size_bytes

    @property
    def is_backed_up(self) -> bool:
        """Whether replies wait for the client to read its ring."""
        return bool(self.outbox)

    @property
    def is_closed_by_peer(self) -> bool:
        """Whether the client said goodbye."""
        return self._lane.is_closed_by_peer

    def send(self, frames: Sequence[Frame]) -> None:
        """Write a reply, or keep it until there is room. Outside a visit a client that sleeps is woken at once."""
        if not self.is_open or self.is_mute:
            return
        if not self.outbox:
            self._needs_bell = True
            try:
                if not self._lane.replies.try_write(frames):
                    self.outbox.append(frames)
            except BrokerError as error:
                self._not_written(frames, error)
        elif len(self.outbox) < OUTBOX_REPLIES_MAX:
            self.outbox.append(frames)
        else:
            self.broken = InvalidRequestError(f"{OUTBOX_REPLIES_MAX} replies wait for a client that does not read them")
        if not self.is_visited:
            self.ring()

    def rouse(self) -> bool:
        """Wake the client ahead of the answer, if it sleeps: see "ringing ahead" in `doorbell`."""
        return self.is_open and not self.is_mute and self._bell.seems_asleep() and self._bell.ring_if_asleep()

    def ring_sleeper(self) -> bool:
        """Wake the client, without an answer, if it sleeps. Returns whether it does."""
        return self.is_open and not self.is_mute and self._bell.ring_sleeper()

    def ring(self) -> None:
        """Wake the client if it sleeps and a reply was written since the last ring."""
        if self._needs_bell:
            self._needs_bell = False
            self._bell.ring_if_asleep()

    def flush(self) -> bool:
        """Write replies that waited. Returns whether all are out."""
        try:
            while self.outbox:
                if not self._lane.replies.try_write(self.outbox[0]):
                    return False
                self.outbox.popleft()
                self._needs_bell = True
        except BrokerError as error:
            self.broken = error
            return False
        finally:
            self.ring()
        return True

    def mute(self) -> None:
        """Nobody reads any more: drop replies, those that wait too."""
        self.is_mute = True
        self.outbox.clear()

    def close(self) -> None:
        """Give back memory and descriptors; later replies are dropped."""
        self.is_open = False
        self.outbox.clear()
        self._lane.close()
        os.close(self._bell.write_fd)
        if self.pidfd is not None:
            os.close(self.pidfd)

    def _not_written(self, frames: Sequence[Frame], error: BrokerError) -> None:
        if isinstance(error, MessageSizeTooLargeError):
            refusal = (pack_reply(unpack_header(frames[0]), error.code), error.wire_text.encode())
            self.outbox.append(refusal)
            self.flush()
        else:
            self.broken = error


class Lanes:
    """All lanes of this worker. `handle` takes each request; `forget` is told of a lane that ends."""

    def __init__(
        self,
        *,
        loop: Loop,
        clock: Clock,
        board: BoardWriter,
        limits: LimitsSection,
        socket_path: Path,
        incarnation: int,
        handle: Callable[[Request], None],
        forget: Callable[[ServedLane], None],
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._board = board
        self._limits = limits
        self._socket_path = socket_path
        self._incarnation = incarnation
        self._handle = handle
        self._forget = forget
        self._once = OncePerMinute()
        self._next_number = 1
        self._offered: dict[int, Lane] = {}
        self._bytes_in_use = 0
        self.served: dict[int, ServedLane] = {}
        self.doorbell = Doorbell()
        self._listener = LaneListener(socket_path, self.doorbell.write_fd, incarnation)
        loop.add_reader(self.doorbell.fileno(), self.doorbell.note_ring)
        loop.add_reader(self._listener.fileno(), self._accept)
        loop.call_every(CLEAR_INTERVAL_MS, self.clear)

    @property
    def bytes_in_use(self) -> int:
        """Bytes of all lanes, offered or taken."""
        return self._bytes_in_use

    def offer(self, request_bytes: int, reply_bytes: int, uid: int) -> LaneOffer:
        """Make a lane for a client of this user. Raises LaneRefusedError, or InvalidRequestError for foolish sizes."""
        if uid != os.getuid():
            raise ClusterAuthorizationFailedError(f"lanes are for uid {os.getuid()}; uid {uid} uses messages")
        for size_bytes in (request_bytes, reply_bytes):
            if size_bytes < layout.RING_BYTES_MIN or size_bytes % PAGE_BYTES:
                raise InvalidRequestError(f"a ring of {size_bytes} bytes: whole pages of {PAGE_BYTES} are needed")
        wanted_bytes = layout.LANE_HEADER_BYTES + request_bytes + reply_bytes
        if wanted_bytes > self._limits.lane_bytes_max:
            hint = "[limits] lane_bytes_max"
            raise LaneRefusedError(f"a lane of {wanted_bytes} bytes; {self._limits.lane_bytes_max} at most", hint=hint)
        if self._bytes_in_use + wanted_bytes > self._limits.lane_bytes_total_max:
            raise LaneRefusedError(f"all lanes of this worker take {self._bytes_in_use} bytes already")
        lane = Lane.create(self._next_number, self._incarnation, request_bytes, reply_bytes)
        token = self._listener.offer(lane, uid, self._clock.now_ns())
        self._offered[lane.number] = lane
        self._next_number += 1
        self._add_bytes(lane.size_bytes)
        return LaneOffer(token=token, socket=str(self._socket_path), board=str(self._board.path))

    @property
    def has_backlog(self) -> bool:
        """Whether replies wait for room in some lane: nobody rings when there is."""
        return any(served.is_backed_up for served in self.served.values())

    def busy_count(self, since_ns: int) -> int:
        """How many lanes brought a request since then."""
        return sum(served.visited_ns >= since_ns for served in self.served.values())

    def has_input(self) -> bool:
        """Whether any lane that may be read has a request: one load for each lane."""
        for served in self.served.values():  # noqa: SIM110  # `any` takes twice as long, and this is watched in a loop
            if served.requests.readable() and not served.outbox:
                return True
        return False

    def visit(self) -> int:
        """Handle requests of all lanes, each for a while. Returns how many requests were taken."""
        work = 0
        for served in list(self.served.values()):
            if served.outbox and not served.flush():
                self._drop_if_broken(served)
            elif served.requests.readable():
                work += self._visit_one(served)
        return work

    def clear(self) -> None:
        """Withdraw offers that nobody took, and close the lanes of clients that said goodbye."""
        self._listener.expire(self._clock.now_ns())
        for number, lane in list(self._offered.items()):
            if lane.fd < 0:  # The listener closed it: nobody came in time, or the exchange failed.
                del self._offered[number]
                self._add_bytes(-lane.size_bytes)
        for served in list(self.served.values()):
            if served.is_closed_by_peer:
                self._finish(served)
            else:
                self._drop_if_broken(served)

    def close(self) -> None:
        """Close every lane and the socket."""
        for served in list(self.served.values()):
            self._drop(served)
        self._loop.remove_reader(self._listener.fileno())
        self._loop.remove_reader(self.doorbell.fileno())
        self._listener.close()
        self.doorbell.close()

    def _visit_one(self, served: ServedLane) -> int:
        count = 0
        room_bytes = VISIT_BYTES_MAX
        take, outbox = served.requests.take, served.outbox
        handle, uid = self._handle, served.client_uid
        served.is_visited = True
        served.visited_ns = self._clock.now_ns()
        try:
            while count < VISIT_MESSAGES_MAX and room_bytes > 0 and not outbox:
                frames = take()
                if frames is None:
                    break
                count += 1
                if not frames:
                    raise InvalidRequestError("a message without a header")
                room_bytes -= len(frames[-1])
                header = unpack_header(frames[0])
                if header.kind != REQUEST:
                    raise InvalidRequestError("a client sent a reply")
                handle(Request(header, frames[1:], served, uid))
        except BrokerError as error:
            served.broken = error
        served.is_visited = False
        served.ring()
        if served.broken is not None:
            self._drop_if_broken(served)
        return count

    def _drop_if_broken(self, served: ServedLane) -> None:
        if served.broken is not None:
            self._note(served, served.broken)
            self._drop(served)

    def _accept(self) -> None:
        for opened in self._listener.accept(self._clock.now_ns()):
            del self._offered[opened.lane.number]
            served = ServedLane(opened, _watchable(opened.client_pid))
            self.served[served.number] = served
            self._board.count(Counter.LANES_OPENED)
            if served.pidfd is None:
                self._finish(served)  # It wrote and died before it could be watched, or it never can be.
            else:
                self._loop.add_reader(served.pidfd, partial(self._finish, served))

    def _finish(self, served: ServedLane) -> None:
        """The client is gone: take what it left, without answers, and close."""
        served.mute()
        while served.is_open and served.requests.readable():
            self._visit_one(served)
        if served.is_open:
            self._drop(served)

    def _drop(self, served: ServedLane) -> None:
        if not served.is_open:
            return
        del self.served[served.number]
        self._forget(served)
        if served.pidfd is not None:
            self._loop.remove_reader(served.pidfd)
        self._add_bytes(-served.size_bytes)
        served.close()
        self._board.count(Counter.LANES_CLOSED)

    def _add_bytes(self, size_bytes: int) -> None:
        self._bytes_in_use += size_bytes
        assert self._bytes_in_use >= 0
        self._board.set_counter(Counter.LANE_BYTES, self._bytes_in_use)

    def _note(self, served: ServedLane, error: BrokerError) -> None:
        self._board.count(Counter.ERRORS)
        if self._once.allows(type(error).__name__, self._clock.now_ns()):
            where = {"client_pid": served.client_pid, "lane": served.number, "error": error}
            _log.warning("lane closed: its bytes follow no protocol", extra=where)


def _watchable(pid: int) -> int | None:
    """A pidfd of a live client; None when it is gone, or lives in a pid namespace that this process cannot see.

    Opening the pidfd of a zombie succeeds, so it is polled once.
    """
    if pid <= 0:
        return None
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return None
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if poll.poll(0):
        os.close(fd)
        return None
    return fd
