"""The worker: leads partitions, takes what their clients ask, by lane and by socket alike.

One loop, one thread; fdatasync and deletion are waited for in another. It opens nothing before the coordinator
grants it. Whatever happens to one client or one partition ends there; the process ends by SIGTERM (drained, every copy
closed with its clean mark) or by death (nothing acknowledged is lost: the page cache outlives a process).

SLEEP AND SPIN. While requests come, the loop turns and nobody has to ring. When none is there it may watch the lanes'
heads for at most `workers.spin_us` before it sleeps: only while the waits before were short enough for that to have
paid, and only when there are more cores than busy processes, since on a shared core it keeps the very client from
running that it waits for. Then it says that it sleeps, looks at every lane again, and blocks for at most 100 ms.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections.abc import Sequence
from typing import Final

from zbroker import ids
from zbroker.clock import NS_PER_MS
from zbroker.config.schema import ServerConfig
from zbroker.core.replication import ENTRY_BYTES_MAX
from zbroker.errors import BrokerError, InvalidRequestError, StaleIncarnationError
from zbroker.shm.board import BoardWriter
from zbroker.shm.layout import Counter
from zbroker.storage.files import Files
from zbroker.storage.handles import Handles
from zbroker.transport.loop import IDLE_MS
from zbroker.wire.codec import decode, encode
from zbroker.wire.inner_messages import AlterIsr, CopySuspect, Register, Registered
from zbroker.wire.layout import INNER_APIS, PEER, Api, unpack_header
from zbroker.wire.messages import Done, Message, OpenLane
from zbroker.workers.allocator import keep_freed_memory
from zbroker.workers.compactor import Compactor
from zbroker.workers.disk_thread import DiskThread, IoClock
from zbroker.workers.feed import Feed
from zbroker.workers.grants import Grants
from zbroker.workers.host import Attention, Counts, Host, OnAnswer
from zbroker.workers.housekeeping import Housekeeping
from zbroker.workers.lanes import Lanes, ServedLane
from zbroker.workers.leaders_files import ReadBuffer
from zbroker.workers.link import RouterLink
from zbroker.workers.open_copy import Key
from zbroker.workers.request import Frame, Request
from zbroker.workers.runtime import Reload, Role, exit_code_of
from zbroker.workers.scrubber import Scrubber
from zbroker.workers.serving import RequestHandler, Serving, not_here
from zbroker.workers.spin import Spin
from zbroker.workers.streams import Streams
from zbroker.workers.subscriptions import Subscriptions
from zbroker.workers.waits import Waits

REGISTER_INTERVAL_MS: Final = 100
CLOSE_TIMEOUT_MS: Final = 3_000
TURN_INTERVAL_NS: Final = 200_000
BACKLOG_MS: Final = 1
SWITCH_INTERVAL_S: Final = 0.0005
GC_THRESHOLDS: Final = (10_000, 20, 50)  # A request makes containers and no cycles: collecting more often finds none.
REQUEST_OVERHEAD_BYTES: Final = 64 << 10  # what the headers of a request, and of the allocator, take at the most
_PRODUCE: Final = int(Api.PRODUCE)
_COORDINATOR_APIS: Final[dict[type[Message], Api]] = {AlterIsr: Api.ALTER_ISR, CopySuspect: Api.COPY_SUSPECT}


class SocketRoute:
    """The way back to a client that asked through the router."""

    __slots__ = ("_link", "_return_address")

    def __init__(self, link: RouterLink, return_address: bytes) -> None:
        self._link = link
        self._return_address = return_address

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SocketRoute) and other._return_address == self._return_address

    def __hash__(self) -> int:
        return hash(self._return_address)

    def send(self, frames: Sequence[Frame]) -> None:
        """Send through the router."""
        self._link.send((self._return_address, *frames))

    def rouse(self) -> bool:
        """See Route: nothing can ring at the other end of a socket."""
        return False


class Worker:
    """See the module."""

    def __init__(self, role: Role) -> None:
        limits = role.config.limits
        self._role = role
        self._clock = role.clock
        self.board: BoardWriter = role.make_board(limits.partitions_per_process_max)
        io_clock = IoClock(role.clock, self.board.io_begin, self.board.io_end)
        self._disk = DiskThread(role.loop, io_clock, "disk")
        core_count = len(os.sched_getaffinity(0))
        self._waits = Waits(rouse_max=core_count - 1)
        self._counts = Counts()
        message_max_bytes = max(limits.message_max_bytes, ENTRY_BYTES_MAX)
        self._streams = Streams(
            role.loop,
            role.clock,
            role.paths.stream_socket(role.name),
            self._feed_of,
            number=role.number,
            incarnation=role.incarnation,
            message_max_bytes=message_max_bytes,
            credit_bytes=role.config.replicas.stream_credit_bytes,
            once=role.once,
        )
        self._subscriptions = Subscriptions(
            role.loop,
            role.clock,
            role.paths,
            number=role.number,
            incarnation=role.incarnation,
            message_max_bytes=message_max_bytes,
        )
        host = self._make_host(io_clock)
        self._grants = Grants(host, role.config)
        self._leaders = leaders = self._grants.leaders
        self._serving = Serving(leaders, self._waits, self.board, role.clock, limits)
        storage = role.config.storage
        self._housekeeping = Housekeeping(leaders, self._grants.copies, host, storage, limits.message_max_bytes)
        self._scrubber = Scrubber(self._grants.copies, self._grants.copy, host, role.config.storage)
        self._compactor = Compactor(self._grants.copies, host, role.config.storage)
        self._lanes = Lanes(
            loop=role.loop,
            clock=role.clock,
            board=self.board,
            limits=limits,
            socket_path=role.paths.lane_socket(role.name),
            incarnation=role.incarnation,
            handle=self.handle,
            forget=self._forget_lane,
        )
        self._spin = Spin(role.config.workers.spin_us, core_count, self._lanes)
        self._is_awaiting = True  # no request was taken since the last sleep
        self._sleeper = self.board.sleeper()
        role.loop.before_sleep = self._before_sleep
        role.loop.after_sleep = self._sleeper.awake
        self._name_handlers()
        self._is_registered = False
        self._is_registering = False
        self._replaced_by: StaleIncarnationError | None = None
        self._link = RouterLink(
            role.loop,
            role.clock,
            f"ipc://{role.paths.back}",
            number=role.number,
            incarnation=role.incarnation,
            message_max_bytes=limits.message_max_bytes,
            on_request=self._from_router,
            on_welcome=self._register,
        )

    def _name_handlers(self) -> None:
        self._client_apis: dict[int, RequestHandler] = {
            Api.FETCH: self._serving.fetch,
            Api.LIST_OFFSETS: self._serving.list_offsets,
            Api.DELETE_RECORDS: self._serving.delete_records,
            Api.OPEN_LANE: self._open_lane,
            Api.PARTITION_STATE: self._serving.partition_state,
        }
        self._lane_apis: dict[int, RequestHandler] = {**self._client_apis, Api.WAIT: self._serving.wait}
        self._inner_apis: dict[int, RequestHandler] = {
            Api.GRANT: self._grants.grant,
            Api.REVOKE: self._grants.revoke,
            Api.RECONFIGURE: self._grants.reconfigure,
            Api.ANNOUNCE: self._announced,
        }

    def _make_host(self, io_clock: IoClock) -> Host:
        role, limits, files = self._role, self._role.config.limits, Files()
        # Half of what the process may open: lanes, sockets and directories' locks need descriptors too.
        descriptors_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return Host(
            number=role.number,
            incarnation=role.incarnation,
            board=self.board,
            clock=role.clock,
            loop=role.loop,
            files=files,
            handles=Handles(files, max(2, min(limits.open_segments_max, descriptors_max // 2))),
            read_buffer=ReadBuffer(),
            disk=self._disk,
            io_clock=io_clock,
            streams=self._streams,
            subscriptions=self._subscriptions,
            ask_coordinator=self._ask_coordinator,
            wake=self._waits.wake,
            rouse=self._waits.rouse,
            message_max_bytes=limits.message_max_bytes,
            records_max=limits.records_per_batch_max,
            lag_max_ms=role.config.replicas.lag_max_ms,
            once=role.once,
            counts=self._counts,
            attention=Attention(),
        )

    def run(self) -> None:
        """Serve until the role is asked to end. Raises StaleIncarnationError when another process took its place."""
        role, lanes = self._role, self._lanes
        role.set_running()
        next_turn_ns = 0
        while not role.is_stopping and self._replaced_by is None:
            if lanes.visit():
                self._is_awaiting = False
                self._send_streams()
                self._spin.note_work()
                now_ns = self._clock.now_ns()
                if now_ns < next_turn_ns:
                    continue
                next_turn_ns = now_ns + TURN_INTERVAL_NS
                self._counts.publish(self.board)
                role.turn(0)
                self._end_turn()
            else:
                self._end_turn()
                role.turn(self._sleep_ms())
                # The sockets and descriptors were looked at just now: what woke this process has the first turn.
                next_turn_ns = self._clock.now_ns() + TURN_INTERVAL_NS
        if self._replaced_by is not None:
            raise self._replaced_by

    def close(self) -> None:
        """Answer what was asked, let the disk finish, close every copy, give back lanes and sockets."""
        deadline_ns = self._clock.now_ns() + CLOSE_TIMEOUT_MS * NS_PER_MS
        self._drain(deadline_ns)
        self._disk.close(timeout_s=CLOSE_TIMEOUT_MS / 1_000)
        self._grants.close(deadline_ns)
        self._streams.close()
        self._subscriptions.close()
        self._lanes.close()
        self._link.close()

    def _drain(self, deadline_ns: int) -> None:
        """Take what the lanes hold, and wait for the flushes that producers wait for."""
        role = self._role
        while not role.must_stop_now and self._clock.now_ns() < deadline_ns:
            if not self._lanes.visit():
                if not any(leader.is_flushing for leader in self._leaders.values()):
                    return
                role.turn(BACKLOG_MS)

    def _end_turn(self) -> None:
        """What must not wait for a sleep to end: news for other copies, and the waits whose time is over."""
        self._send_streams()
        if len(self._waits):
            self._waits.expire(self._clock.now_ns())

    def _send_streams(self) -> None:
        """What leaders have for followers, and followers for leaders."""
        if self._streams.has_work:
            self._streams.flush()
        if self._subscriptions.ready:
            self._subscriptions.flush()

    def _feed_of(self, key: Key) -> Feed | None:
        leader = self._leaders.get(key)
        return None if leader is None else leader.others.feed

    def _ask_coordinator(self, message: Message, on_answer: OnAnswer) -> None:
        self._link.call(ids.COORDINATOR, _COORDINATOR_APIS[type(message)], message, on_answer)

    def handle(self, request: Request) -> None:
        """Take a request, whichever way it came; it is answered now or later. Only its asker hears of an error."""
        self._counts.requests += 1
        header = request.header
        try:
            if header.api == _PRODUCE:
                leader = self._leaders.get((header.topic_id, header.partition))
                if leader is None:
                    raise not_here(header.topic_id, header.partition)
                leader.produce(request)
                return
            apis = self._lane_apis if isinstance(request.route, ServedLane) else self._client_apis
            handler = apis.get(header.api)
            if handler is None:
                raise InvalidRequestError(f"a worker does not serve api {header.api} this way")
            handler(request)
        except BrokerError as error:
            self.board.count(Counter.ERRORS)
            if not request.is_answered:
                request.refuse(error)

    def _open_lane(self, request: Request) -> None:
        if len(request.body) != 1:
            raise InvalidRequestError(f"one body frame, not {len(request.body)}")
        wanted = decode(OpenLane, request.body[0])
        request.reply(encode(self._lanes.offer(wanted.request_bytes, wanted.reply_bytes, request.uid)))

    def _from_router(self, frames: list[bytes]) -> None:
        header = unpack_header(frames[2])
        uid = PEER.unpack(frames[1])[0]
        request = Request(header, frames[3:], SocketRoute(self._link, frames[0]), uid)
        if header.api not in INNER_APIS:
            self.handle(request)
            return
        try:
            handler = self._inner_apis.get(header.api)
            if handler is None or len(request.body) != 1:
                raise InvalidRequestError(f"a worker does not serve api {header.api}")
            handler(request)
        except BrokerError as error:
            self._role.log.error("the coordinator asked for what cannot be", extra={"error": error})
            request.refuse(error)

    def _forget_lane(self, served: ServedLane) -> None:
        self._serving.forget(served)

    def _announced(self, request: Request) -> None:
        request.reply(encode(Done()))
        self._is_registered = False
        self._register()

    def _register(self) -> None:
        if self._is_registering:
            return
        self._is_registering = True
        role = self._role
        register = Register(
            number=role.number,
            incarnation=role.incarnation,
            board=str(self.board.path),
            lane_socket=str(role.paths.lane_socket(role.name)),
            holding=self._grants.holding(),
        )
        self._link.call(ids.COORDINATOR, Api.REGISTER, register, self._registered)

    def _registered(self, error: BrokerError | None, body: bytes) -> None:
        self._is_registering = False
        if isinstance(error, StaleIncarnationError):
            self._replaced_by = error
        elif error is not None:
            self._role.loop.call_after(REGISTER_INTERVAL_MS, self._register)
        else:
            registered = decode(Registered, body)
            coordinator = registered.coordinator_incarnation
            if registered.are_elections_durable:
                self._grants.elections_are_durable()
            if not self._is_registered:
                self._role.log.info("registered", extra={"coordinator": f"{coordinator:x}"})
            self._is_registered = True

    def _sleep_ms(self) -> float:
        if self._lanes.has_backlog:
            return BACKLOG_MS
        deadline_ns = self._waits.nearest_deadline_ns
        if deadline_ns is None:
            return IDLE_MS
        # A deadline that is due already still gets a timeout: zero would turn the loop without ever sleeping.
        return min(float(IDLE_MS), max(0.05, (deadline_ns - self._clock.now_ns()) / NS_PER_MS))

    def _before_sleep(self) -> bool:
        is_announced = self._is_awaiting and self._lanes.doorbell.has_rung
        self._is_awaiting = True
        if self._spin.until_input(is_announced=is_announced):
            return False
        self._counts.publish(self.board)
        self._lanes.doorbell.forget_rings()  # which lanes rang is of no use: all are looked at
        self._sleeper.prepare()
        return not self._lanes.has_input()


def main(config: ServerConfig, index: int, *, is_replica: bool = False, reload: Reload | None = None) -> int:
    """Run worker (or replica) `index` until SIGTERM. Returns the exit code."""

    def run() -> None:
        number = ids.replica_number(index) if is_replica else ids.worker_number(index)
        with Role.start(config, number, reload=reload) as role:
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            keep_freed_memory(config.limits.message_max_bytes + REQUEST_OVERHEAD_BYTES)
            if config.workers.pin:
                cores = sorted(os.sched_getaffinity(0))
                os.sched_setaffinity(0, {cores[index % len(cores)]})
            worker = Worker(role)
            try:
                worker.run()
            finally:
                worker.close()

    return exit_code_of(run)
