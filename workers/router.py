"""The router: the front door. It forwards whole messages by their fixed header, and knows nothing else.

    client  -> front   [header, body...]                    front -> client   [header, body...]
    router  -> process [return address, peer, header, body...]
    process -> router  [return address, header, body...]    a reply; [b"", header, body...]: a request of its own

A return address is one byte that names the socket and the routing id there; only the router looks into it. `peer` is
what the kernel says of the sender. It decodes no body but the two hellos that are meant for it, touches no disk on the
way of a message, and never blocks: a process whose queue is full has a bounded outbox, and beyond it the sender is told
to slow down.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Any, Final

from zbroker import __version__, ids
from zbroker.config.paths import Paths
from zbroker.config.schema import ServerConfig
from zbroker.errors import (
    BrokerError,
    ClusterAuthorizationFailedError,
    CoordinatorNotAvailableError,
    InvalidRequestError,
    LeaderNotAvailableError,
    ThrottlingQuotaExceededError,
    UnsupportedVersionError,
)
from zbroker.shm.layout import Counter
from zbroker.transport.sockets import Context, RouterSocket, UnroutableError, peer_of
from zbroker.wire.codec import decode, encode
from zbroker.wire.layout import (
    INNER_APIS,
    NO_PEER,
    PEER,
    REQUEST,
    VERSION,
    Api,
    Header,
    pack_reply,
    unpack_header,
)
from zbroker.wire.messages import Hello, ProcessHello, ProcessWelcome, Welcome
from zbroker.workers.guard import Guard, open_files, resident_bytes
from zbroker.workers.runtime import Reload, Role, exit_code_of, raise_descriptor_limit

GUARD_INTERVAL_MS: Final = 20
OUTBOX_MESSAGES_MAX: Final = 1024
FRONT, TCP, BACK = b"f", b"t", b"b"


class Router:
    """See the module."""

    def __init__(self, role: Role) -> None:
        config, paths = role.config, role.paths
        self._role = role
        self._uid = os.getuid()
        self._frames_max = config.limits.frames_per_message_max
        self._context = Context(config.network.io_threads)
        self._board = role.make_board(cells=0)
        self._endpoints = {FRONT: f"ipc://{paths.front}", BACK: f"ipc://{paths.back}"}
        if config.network.tcp_listen:
            self._endpoints[TCP] = config.network.tcp_listen
        self._sockets = {
            origin: RouterSocket(self._context, message_max_bytes=config.limits.message_max_bytes, linger_ms=500)
            for origin in self._endpoints
        }
        self._processes: dict[int, tuple[bytes, int]] = {}  # process number -> (routing id, incarnation)
        self._outbox: dict[int, deque[list[Any]]] = {}
        for origin, socket in self._sockets.items():
            for stale in (paths.front, paths.back):
                if self._endpoints[origin] == f"ipc://{stale}":
                    stale.unlink(missing_ok=True)
            socket.bind(self._endpoints[origin])
        role.loop.add_socket(self._sockets[FRONT], lambda frames: self._from_client(FRONT, frames))
        if TCP in self._sockets:
            role.loop.add_socket(self._sockets[TCP], lambda frames: self._from_client(TCP, frames))
        role.loop.add_socket(self._sockets[BACK], self._from_process)
        self._guard = Guard(raise_descriptor_limit(), self._stop_listening, self._resume_listening)
        role.loop.call_every(GUARD_INTERVAL_MS, self._look_around)

    def run(self) -> None:
        """Forward until told to stop; what is queued then is still sent."""
        self._role.set_running()
        self._role.log.info("listening", extra={"at": " ".join(self._endpoints.values())})
        self._role.run()

    def close(self) -> None:
        """Close the sockets, with what they hold given half a second."""
        for origin, socket in self._sockets.items():
            self._role.loop.remove_socket(socket)
            socket.close()
            if self._endpoints[origin].startswith("ipc://"):
                Path(self._endpoints[origin][len("ipc://") :]).unlink(missing_ok=True)
        self._context.close()

    def _from_client(self, origin: bytes, frames: list[Any]) -> None:
        routing_id = frames[0].bytes
        if len(frames) < 2 or len(frames) > self._frames_max + 1:
            self._board.count(Counter.ERRORS)
            return
        peer = peer_of(frames[1]) if origin == FRONT else PEER.pack(NO_PEER, NO_PEER, NO_PEER)
        try:
            header = unpack_header(frames[1].buffer)
        except UnsupportedVersionError as error:
            self._refuse_version(origin, routing_id, frames[1].bytes, error)
            return
        except BrokerError as error:
            self._note(f"client {PEER.unpack(peer)[2]}", error)
            return
        try:
            uid = PEER.unpack(peer)[0]
            if origin == FRONT and uid != self._uid:
                raise ClusterAuthorizationFailedError(f"uid {uid} may not use the broker of uid {self._uid}")
            if header.kind != REQUEST or header.api in INNER_APIS:
                raise InvalidRequestError(f"api {header.api} is not for clients")
            if header.target == ids.ROUTER:
                self._welcome(origin, routing_id, header, frames[2].buffer if len(frames) > 2 else b"")
                return
            self._forward(header, origin + routing_id, peer, frames[1:])
        except BrokerError as error:
            self._note(f"client {PEER.unpack(peer)[2]}", error)
            self._deliver(origin, [routing_id, pack_reply(header, error.code), error.message.encode()])

    def _refuse_version(self, origin: bytes, routing_id: bytes, frame: bytes, error: UnsupportedVersionError) -> None:
        """Answer in the one part of the header that all versions share: its first sixteen bytes."""
        reply = bytearray(frame)
        reply[3] = 1
        reply[6:8] = error.code.to_bytes(2, "little", signed=True)
        self._deliver(origin, [routing_id, bytes(reply), error.message.encode()])

    def _welcome(self, origin: bytes, routing_id: bytes, header: Header, body: Any) -> None:
        if header.api != Api.HELLO:
            raise InvalidRequestError(f"the router does not answer api {header.api}")
        hello = decode(Hello, body)
        if not hello.protocol_min <= VERSION <= hello.protocol_max:
            raise UnsupportedVersionError(
                f"the client speaks protocol {hello.protocol_min} to {hello.protocol_max}, this broker {VERSION}"
            )
        config, paths = self._role.config, self._role.paths
        welcome = Welcome(
            protocol=VERSION,
            cluster_id=_cluster_id(paths),
            software=f"zbroker {__version__}",
            run_dir=str(paths.run_dir),
            boards_dir=str(paths.boards_dir),
            router_incarnation=self._role.incarnation,
            owner_uid=self._uid,
            shared_memory=origin == FRONT,
            message_max_bytes=config.limits.message_max_bytes,
            in_flight_bytes_max=config.limits.in_flight_bytes_max,
        )
        self._deliver(origin, [routing_id, pack_reply(header), encode(welcome)])

    def _from_process(self, frames: list[Any]) -> None:
        routing_id = frames[0].bytes
        if len(frames) < 3:
            return
        return_address = frames[1].bytes
        if return_address:
            self._deliver(return_address[:1], [return_address[1:], *frames[2:]])
            return
        try:
            header = unpack_header(frames[2].buffer)
        except BrokerError as error:
            self._note("a process", error)
            return
        peer = peer_of(frames[2])
        try:
            if PEER.unpack(peer)[0] != self._uid:
                raise ClusterAuthorizationFailedError("a process of another user")
            if header.target == ids.ROUTER and header.api == Api.PROCESS_HELLO:
                self._meet(routing_id, header, decode(ProcessHello, frames[3].buffer if len(frames) > 3 else b""))
                return
            self._forward(header, BACK + routing_id, peer, frames[2:])
        except BrokerError as error:
            self._deliver(BACK, [routing_id, pack_reply(header, error.code), error.message.encode()])

    def _meet(self, routing_id: bytes, header: Header, hello: ProcessHello) -> None:
        known = self._processes.get(hello.number)
        if known is not None and known[1] != hello.incarnation and not ids.is_alive(hello.incarnation):
            return  # a late message of a process that is gone
        self._processes[hello.number] = (routing_id, hello.incarnation)
        self._outbox.pop(hello.number, None)
        self._deliver(BACK, [routing_id, pack_reply(header), encode(ProcessWelcome(self._role.incarnation))])
        self._role.log.info("connected", extra={"peer": ids.process_name(hello.number)})

    def _forward(self, header: Header, return_address: bytes, peer: bytes, frames: list[Any]) -> None:
        known = self._processes.get(header.target)
        if known is None:
            raise _absent(header.target)
        message = [known[0], return_address, peer, *frames]
        queue = self._outbox.get(header.target)
        if queue is None:
            try:
                if self._sockets[BACK].send(message):
                    self._count(frames)
                    return
            except UnroutableError:
                del self._processes[header.target]
                raise _absent(header.target) from None
            queue = self._outbox[header.target] = deque()
            self._role.loop.call_after(1, self._flush_outbox)
        if len(queue) >= OUTBOX_MESSAGES_MAX:
            raise ThrottlingQuotaExceededError(f"{ids.process_name(header.target)} has {len(queue)} messages to read")
        queue.append(message)

    def _flush_outbox(self) -> None:
        for number, queue in list(self._outbox.items()):
            try:
                while queue and self._sockets[BACK].send(queue[0]):
                    self._count(queue.popleft())
            except UnroutableError:
                queue.clear()
                self._processes.pop(number, None)
            if not queue:
                del self._outbox[number]
        if self._outbox:
            self._role.loop.call_after(1, self._flush_outbox)

    def _deliver(self, origin: bytes, message: list[Any]) -> None:
        socket = self._sockets.get(origin)
        try:
            if socket is not None and socket.send(message):
                self._count(message)
                return
        except UnroutableError:
            pass  # whoever asked is gone
        self._board.count(Counter.MESSAGES_DROPPED)

    def _count(self, frames: list[Any]) -> None:
        self._board.count(Counter.MESSAGES_FORWARDED)
        self._board.count(Counter.BYTES_FORWARDED, sum(map(len, frames)))

    def _note(self, who: str, error: BrokerError) -> None:
        self._board.count(Counter.ERRORS)
        if self._role.once.allows(type(error).__name__, self._role.clock.now_ns()):
            self._role.log.warning("refused a message", extra={"of": who, "error": error})

    def _look_around(self) -> None:
        self._guard.check(open_files(), resident_bytes())

    def _stop_listening(self) -> None:
        self._role.log.warning("too many connections or too much memory: no new connections for now")
        self._sockets[FRONT].unbind(self._endpoints[FRONT])

    def _resume_listening(self) -> None:
        self._role.log.info("accepting connections again")
        self._sockets[FRONT].bind(self._endpoints[FRONT])


def _absent(target: int) -> BrokerError:
    if target == ids.COORDINATOR:
        return CoordinatorNotAvailableError("the coordinator is not connected")
    try:
        return LeaderNotAvailableError(f"{ids.process_name(target)} is not connected")
    except AssertionError:
        return InvalidRequestError(f"{target} names no process")


def _cluster_id(paths: Paths) -> str:
    try:
        return (paths.metadata_dir / "cluster-id").read_text().strip()
    except FileNotFoundError:
        return ""


def main(config: ServerConfig, *, reload: Reload | None = None) -> int:
    """Run the router until SIGTERM. Returns the exit code."""

    def run() -> None:
        with Role.start(config, ids.ROUTER, reload=reload) as role:
            router = Router(role)
            role.at_close(router.close)
            router.run()

    return exit_code_of(run)
