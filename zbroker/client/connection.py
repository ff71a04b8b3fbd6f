"""A client's connection to a broker: welcome, blocking requests, metadata, lanes.

How requests and replies travel stands in `exchange`. When the router is replaced, the connection finds the new one by
itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from zbroker import __version__, ids
from zbroker.client.cluster_view import ClusterView
from zbroker.client.exchange import ATTEMPT_TIMEOUT_MS, SLEEP_MS, Exchange
from zbroker.client.lanes import ClientLane, Frame
from zbroker.client.settings import ConnectionSettings
from zbroker.clock import NS_PER_MS
from zbroker.errors import (
    BrokerError,
    BrokerNotAvailableError,
    CoordinatorNotAvailableError,
    LaneRefusedError,
    LeaderNotAvailableError,
    RequestTimedOutError,
    ThrottlingQuotaExceededError,
    error_for,
)
from zbroker.shm.lane import ring_bytes_for
from zbroker.transport.endpoints import parse
from zbroker.wire.codec import decode, encode
from zbroker.wire.layout import VERSION, Api
from zbroker.wire.messages import Hello, LaneOffer, MetadataReply, MetadataRequest, OpenLane, Welcome

CONNECT_TIMEOUT_MS: Final = 5_000
HELLO_ATTEMPT_MS: Final = 200
LOOK_MS: Final = 50
ATTEMPT_MAX_MS: Final = 2_000
LANE_TIMEOUT_MS: Final = 2_000
LANE_RETRY_NS: Final = 5_000 * NS_PER_MS
_NOT_DELIVERED: Final = (CoordinatorNotAvailableError, ThrottlingQuotaExceededError)  # the router's refusals


class Connection(Exchange):
    """One for each client object."""

    is_replayed = False
    """Whether a call that waits is made again from its start, and so must not wait once it has done something."""

    def __init__(
        self, settings: ConnectionSettings, *, request_bytes: int = 32 << 10, reply_bytes: int = 32 << 10
    ) -> None:
        """Connect and be welcomed. `request_bytes` and `reply_bytes` are the largest messages that lanes shall take.

        Raises BrokerNotAvailableError when nothing answers, ConfigError for an address that is none.
        """
        self.settings = settings
        self._endpoint = parse(settings.bootstrap_servers)
        self._request_bytes, self._reply_bytes = request_bytes, reply_bytes
        self._lane_refused_ns: dict[int, int] = {}
        self.view = ClusterView()
        self._look = 0
        self._seen_ns: dict[str, int] = {}  # topic -> when the coordinator last said something of it
        if self._endpoint.run_dir is not None:
            _check_run_dir(self._endpoint.run_dir, self._endpoint.address)
        super().__init__(self._endpoint.address)
        try:
            self.welcome = self._say_hello()
        except BaseException:
            self.close()
            raise
        self._watch_router()

    @property
    def shared_memory(self) -> bool:
        """Whether this broker's files and boards can be mapped by this process, and the settings allow it."""
        return self.settings.transport != "zmq" and self.welcome.shared_memory and self._endpoint.is_local

    def _say_hello(self) -> Welcome:
        hello = self._hello()
        timeout_ms = min(CONNECT_TIMEOUT_MS, self.settings.request_timeout_ms)
        try:
            frames = self.request(ids.ROUTER, Api.HELLO, [hello], timeout_ms=timeout_ms, attempt_ms=HELLO_ATTEMPT_MS)
        except RequestTimedOutError as error:
            raise BrokerNotAvailableError(f"no broker answers at {self._endpoint.address}") from error
        return self._checked_welcome(frames)

    def _checked_welcome(self, frames: Sequence[Any]) -> Welcome:
        welcome = decode(Welcome, frames[0])
        if self.settings.transport == "shm" and not (welcome.shared_memory and self._endpoint.is_local):
            raise LaneRefusedError(
                f"{self._endpoint.address} cannot share memory with this client", hint="transport='auto'"
            )
        return welcome

    def _hello(self) -> bytes:
        name = self.settings.client_id or f"python-{self._pid}"
        return encode(Hello(name, VERSION, VERSION, f"zbroker {__version__}"))

    def _watch_router(self) -> bool:
        """Notice the end of the router that has answered. False: it has ended, or cannot be seen from here."""
        if not self._endpoint.is_local:
            return False
        with self._lock:
            return not self.is_closed and self._watch.watch(ids.ROUTER, self.welcome.router_incarnation)

    def process_ended(self, target: int) -> None:
        """See Exchange."""
        self._lane_refused_ns.pop(target, None)
        if target == ids.ROUTER:
            self._look_for_router()

    def _look_for_router(self, attempt_ms: int = LOOK_MS) -> None:
        """Ask for the incarnation of the router that now listens, until one answers that is there to be watched. Only
        where one could be watched before."""

        def answered(error: int, body: list[Any]) -> None:
            if error or not body:
                self._look_for_router(min(2 * attempt_ms, ATTEMPT_MAX_MS))
                return
            self.welcome = decode(Welcome, body[0])
            if self._watch_router():
                with self._lock:
                    self._router_way.release()
            else:  # it answered, and ended before anybody would have noticed
                self._look_for_router()

        with self._lock:
            if not self.is_closed:
                self.forget(self._look)
                self._look = self.submit(ids.ROUTER, Api.HELLO, [self._hello()], answered, timeout_ms=attempt_ms)

    def request(
        self,
        target: int,
        api: int,
        frames: Sequence[Frame] = (),
        *,
        topic_id: int = 0,
        partition: int = 0,
        leader_epoch: int = -1,
        timeout_ms: int | None = None,
        attempt_ms: int = ATTEMPT_TIMEOUT_MS,
        repeats: bool = True,
    ) -> list[Any]:
        """Ask and wait for the reply's body frames. Raises the reply's error.

        With `repeats` the request is sent again after each `attempt_ms` without an answer and after each retriable
        error, until `timeout_ms`; without, only while it has certainly not reached its target. Each attempt that nobody
        answered makes the next one longer: an answer that takes longer than an attempt comes at last.
        """
        total_ms = self.settings.request_timeout_ms if timeout_ms is None else timeout_ms
        deadline_ns = time.monotonic_ns() + total_ms * NS_PER_MS
        backoff_ms = 1.0
        while True:
            left_ms = max(1, (deadline_ns - time.monotonic_ns()) // NS_PER_MS)
            answer: list[tuple[int, list[Any]]] = []
            once_ms = min(left_ms, attempt_ms) if repeats else left_ms
            correlation = self.submit(
                target, api, frames, lambda error, body, answer=answer: answer.append((error, body)),  # type: ignore[misc]
                topic_id=topic_id, partition=partition, leader_epoch=leader_epoch, timeout_ms=once_ms,
            )  # fmt: skip
            try:
                self.wait_for(lambda answer=answer: bool(answer), once_ms + SLEEP_MS)  # type: ignore[misc]
            finally:
                self.forget(correlation)
            number, body = answer[0] if answer else (RequestTimedOutError.code, [])
            if number == 0:
                return body
            error = error_for(number, _text(body))
            may_repeat = error.retriable if repeats else isinstance(error, _NOT_DELIVERED)
            if not may_repeat or time.monotonic_ns() >= deadline_ns:
                raise error
            if number == RequestTimedOutError.code:
                attempt_ms = min(2 * attempt_ms, ATTEMPT_MAX_MS)
            else:
                self.wait_for(lambda: False, min(backoff_ms, left_ms))
                backoff_ms = min(backoff_ms * 2, self.settings.retry_backoff_ms)

    def metadata(
        self,
        topics: Iterable[str] | None,
        *,
        auto_create: bool = False,
        refresh: bool = False,
        timeout_ms: int | None = None,
    ) -> ClusterView:
        """The cluster, with these topics (None: all) as fresh as `metadata_max_age_ms` allows. Absent topics are in it
        with their error."""
        asked = None if topics is None else list(topics)
        if not refresh and asked is not None and all(map(self._is_fresh, asked)):
            return self.view
        body = encode(MetadataRequest(asked, auto_create))
        frames = self.request(ids.COORDINATOR, Api.METADATA, [body], timeout_ms=timeout_ms)
        newer = ClusterView(decode(MetadataReply, frames[0]))
        with self._lock:
            if asked is None:
                self._seen_ns.clear()
            self.view = self.view.merged(newer, asked)
            self._seen_ns.update(dict.fromkeys(newer.topics, time.monotonic_ns()))
        return self.view

    def _is_fresh(self, name: str) -> bool:
        topic = self.view.topics.get(name)
        if topic is None or topic.error:
            return False
        return time.monotonic_ns() - self._seen_ns.get(name, 0) < self.settings.metadata_max_age_ms * NS_PER_MS

    def watch(self, target: int, incarnation: int) -> bool:
        """Notice the end of a process that is asked by messages, as it is of one that has a lane: what it was asked is
        then lost at once. False: it has ended, or cannot be seen from here."""
        if self._endpoint.is_local and self.welcome.shared_memory:
            with self._lock:
                return not self.is_closed and self._watch.watch(target, incarnation)
        return False

    @property
    def may_wait(self) -> bool:
        """Whether this thread may wait for answers in the middle of a call: not in a callback."""
        return not self.is_replayed and self._pumping_thread != threading.get_ident()

    @property
    def is_backed_up(self) -> bool:
        """Whether messages wait for room in a lane or in the socket: somebody has to receive until they are gone."""
        return self._router_way.is_backed_up or any(lane.outbox for _, lane in self._lane_list)

    def rouse(self, target: int) -> None:
        """Wake a worker that sleeps, if there is a lane to it: a request for it is being made."""
        with self._lock:
            lane = self._lanes.get(target)
            if lane is not None:
                lane.rouse()

    def lane(self, target: int) -> ClientLane | None:
        """The lane to a worker, opened now if need be; None when messages have to do. Blocks for a round trip.

        Raises LaneRefusedError with transport='shm'.
        """
        lane = self._lanes.get(target)
        if lane is not None and not lane.is_closed_by_worker:
            return lane
        if not self.shared_memory:
            return None
        if time.monotonic_ns() < self._lane_refused_ns.get(target, 0):
            return None
        try:
            return self._open_lane(target)
        except BrokerError as error:
            if self.settings.transport == "shm" and isinstance(error, LaneRefusedError):
                raise
            if not isinstance(error, LeaderNotAvailableError):  # it is not there yet: ask again when it is
                self._lane_refused_ns[target] = time.monotonic_ns() + LANE_RETRY_NS
            return None

    def _open_lane(self, target: int) -> ClientLane | None:
        with self._lock:
            self._drop_lane(target, "the worker has closed the lane")
        sizes = OpenLane(ring_bytes_for(self._request_bytes), ring_bytes_for(self._reply_bytes))
        frames = self.request(target, Api.OPEN_LANE, [encode(sizes)], timeout_ms=LANE_TIMEOUT_MS, repeats=False)
        lane = ClientLane(decode(LaneOffer, frames[0]), self._doorbell.write_fd, self.welcome.owner_uid)
        return self._add_lane(target, lane)


def _check_run_dir(run_dir: Path, address: str) -> None:
    try:
        run_dir.stat()
    except FileNotFoundError as error:
        raise BrokerNotAvailableError(f"no broker at {address}: {run_dir} does not exist") from error
    except OSError as error:
        raise BrokerNotAvailableError(f"no broker at {address}: {run_dir}: {error.strerror}") from error


def _text(body: Sequence[Any]) -> str:
    return bytes(body[0]).decode("utf-8", "replace") if body else ""
