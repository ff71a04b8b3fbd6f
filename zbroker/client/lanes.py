"""A client's side of a lane: send requests to one worker, take its replies, sleep until it rings.

The caller serialises `send` by its lock and `receive` by its pump: the ring has one word for each.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from zbroker.errors import BrokerError
from zbroker.shm import layout
from zbroker.shm.board_reader import BoardReader
from zbroker.shm.doorbell import Bell, Sleeper
from zbroker.shm.handover import open_lane
from zbroker.wire.layout import HEADER_BYTES
from zbroker.wire.messages import LaneOffer

Frame = bytes | bytearray | memoryview
OUTBOX_MESSAGES_MAX: Final = 10_000
FRAMES_OVERHEAD_BYTES: Final = 512  # above a request's header and what a ring adds to its frames


class ClientLane:
    """An open lane to one incarnation of a worker."""

    def __init__(self, offer: LaneOffer, doorbell_write_fd: int, worker_uid: int) -> None:
        """Take the lane that a worker offered. Raises BrokerError when it cannot be had."""
        try:
            self._board = BoardReader.open(Path(offer.board))
        except FileNotFoundError as error:
            raise BrokerError(f"the worker of {offer.board} is gone") from error
        try:
            lane, self._bell_fd = open_lane(Path(offer.socket), offer.token, doorbell_write_fd, worker_uid=worker_uid)
        except BaseException:
            self._board.close()
            raise
        self._lane = lane
        self._bell = Bell(self._bell_fd, lane.number, self._board.words, layout.H_SLEEP_SEQ)
        self._sleeper = Sleeper(lane.words, layout.L_CLIENT_SLEEP_SEQ)
        self.outbox: deque[tuple[int, tuple[Frame, ...]]] = deque()
        """Requests that wait for room."""
        self.worker_incarnation = lane.worker_incarnation
        self.request_bytes_max = lane.requests.message_bytes_max
        self.body_bytes_safe = self.request_bytes_max - FRAMES_OVERHEAD_BYTES
        """Body frames of so many bytes fit, however many they are; for more, ask `fits`."""
        self._write = lane.requests.try_write
        self.readable = lane.replies.readable
        self.receive = lane.replies.take
        self.rouse = self._bell.ring_if_asleep
        """Wake the worker if it sleeps: a request comes at once. See "ringing ahead" in `doorbell`."""
        self.awake = self._sleeper.awake
        """Say that this client runs."""

    def fits(self, body_sizes_bytes: Sequence[int]) -> bool:
        """Whether a request with body frames of these sizes can ever go through this lane."""
        return self._lane.requests.fits(HEADER_BYTES + sum(body_sizes_bytes), 1 + len(body_sizes_bytes))

    def send(self, frames: tuple[Frame, ...], correlation: int) -> bool:
        """Write a request and wake the worker if it sleeps. Without room it waits in order, and `flush` sends it.

        False when too many wait already: it is not sent then.
        """
        if self.outbox or not self._write(frames):
            if len(self.outbox) >= OUTBOX_MESSAGES_MAX:
                return False
            self.outbox.append((correlation, frames))
        self._bell.ring_if_asleep()
        return True

    def flush(self, is_wanted: Callable[[int], bool]) -> None:
        """Send what waits for room, but for requests that were given up meanwhile."""
        outbox = self.outbox
        wrote = False
        while outbox:
            correlation, frames = outbox[0]
            if is_wanted(correlation):
                if not self._write(frames):
                    break
                wrote = True
            outbox.popleft()
        if wrote:
            self._bell.ring_if_asleep()

    @property
    def is_backed_up(self) -> bool:
        """Whether requests wait for room."""
        return bool(self.outbox)

    @property
    def is_closed_by_worker(self) -> bool:
        """Whether the worker serves this lane no more."""
        return self._lane.is_closed_by_peer

    def prepare_sleep(self) -> bool:
        """Say that this client sleeps. Returns False when a reply is there after all."""
        self._sleeper.prepare()
        return not self.readable()

    def close(self) -> None:
        """Give the lane back."""
        self._lane.close()
        os.close(self._bell_fd)
        self._board.close()
