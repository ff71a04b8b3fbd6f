"""The router: the front door. It forwards whole messages by their fixed header, and knows nothing else.

    client  -> front   [header, body...]                    front -> client   [header, body...]
    router  -> process [return address, peer, header, body...]
    process -> router  [return address, header, body...]    a reply; [b"", header, body...]: a request of its own

A return address is one byte that names the socket and the routing id there; only the router looks into it. `peer` is
what the kernel says of the sender. It decodes no body but the two hellos that are meant for it, touches no disk on the
way of a message, and never blocks: who does not read has a bounded outbox, and beyond it the asker is told to slow
down. It keeps nothing that a new router would miss: processes say hello again, clients ask again, and what a process
was asked (`forwarded`) matters only as long as the router that asked lives.

THE END OF A PROCESS. zmq drops what it holds for a peer that is gone, and says nothing. So when a process ends (its
pidfd says so), later requests for it are refused, what it had answered before is delivered, and then every other
request that it was given is answered with an error: one that says so where the request surely never arrived, else one
after which it may have been done. A living process whose connection has ended says hello through another: what it was
given through the first is answered in the same way.
"""

from __future__ import annotations

import logging
import os
from typing import Any, Final, NamedTuple

from zbroker import __version__, ids
from zbroker.clock import NS_PER_MS
from zbroker.config.schema import ServerConfig
from zbroker.errors import (
    BrokerError,
    ClusterAuthorizationFailedError,
    InvalidRequestError,
    MessageSizeTooLargeError,
    ThrottlingQuotaExceededError,
    UnsupportedVersionError,
)
from zbroker.shm.layout import Counter
from zbroker.transport.sockets import UnroutableError, peer_of
from zbroker.wire.codec import decode, encode
from zbroker.wire.layout import (
    BODY_HEADROOM_BYTES,
    CORRELATION_AT,
    HEADER_BYTES,
    INNER_APIS,
    NO_PEER,
    PEER,
    REQUEST,
    VERSION,
    Api,
    Header,
    pack_reply,
    pack_version_refusal,
    unpack_header,
)
from zbroker.wire.messages import Hello, ProcessHello, ProcessWelcome, Welcome
from zbroker.workers.absence import absent, ended, may_be_process
from zbroker.workers.departures import Departures
from zbroker.workers.doors import BACK, FRONT, Doors
from zbroker.workers.forwarded import Forwarded
from zbroker.workers.guard import Guard, bounds_for, has_unread_bytes, open_files, resident_bytes
from zbroker.workers.outbox import Outbox, OutboxBounds, Peer
from zbroker.workers.runtime import Reload, Role, exit_code_of, raise_descriptor_limit

DRAIN_QUIET_MS: Final = 30
DRAIN_TURN_MS: Final = 10
DRAIN_MAX_MS: Final = 1_000
_TCP_PEER: Final = PEER.pack(NO_PEER, NO_PEER, NO_PEER)


class _Process(NamedTuple):
    """Where a process is reached."""

    peer: Peer
    incarnation: int
    connection_number: int


class Router:
    """See the module."""

    def __init__(self, role: Role) -> None:
        limits, paths = role.config.limits, role.paths
        self._role = role
        self._clock = role.clock
        self._uid = os.getuid()
        self._message_bytes_max = limits.message_max_bytes + BODY_HEADROOM_BYTES
        self._connections_max = limits.connections_per_user_max
        self._cluster_id = ""
        self._processes: dict[int, _Process] = {}
        self._forwarded = Forwarded()
        self._board = role.make_board(cells=0)
        self._outbox = Outbox(role.loop, self._send, self._on_lost, OutboxBounds())
        self._forwarded_count = 0
        self.doors = Doors(role.loop, role.config, paths.front, paths.back, self._on_message)
        role.at_close(self.doors.close)
        self._departures = Departures(
            role.loop,
            role.clock,
            is_routable=self._is_routable,
            on_end=self._process_ended,
            on_silence=self._process_is_silent,
        )
        role.at_close(self._departures.close)
        self._files_at_start = open_files()
        bounds = bounds_for(raise_descriptor_limit(), self._connections_max)
        self.guard = Guard(
            bounds,
            stop=lambda why: self._stop_listening(self.doors.client_origins, why),
            stop_all=lambda why: self._stop_listening(self.doors.origins, why),
            resume=self._listen_again,
            reset=self._reset,
        )
        role.loop.call_after(bounds.interval_ms, self._look_around)

    def run(self) -> None:
        """Forward until told to stop; then what is under way is still delivered, for at most DRAIN_MAX_MS."""
        self._role.set_running()
        self._role.log.info("listening", extra={"at": " ".join(self.doors.endpoints.values())})
        self._role.run()
        self.doors.stop_listening([FRONT])
        self._drain()

    def _drain(self) -> None:
        now_ns = self._clock.now_ns()
        end_ns, quiet_since_ns = now_ns + DRAIN_MAX_MS * NS_PER_MS, now_ns
        while not self._role.must_stop_now and now_ns < end_ns:
            forwarded = self._forwarded_count
            self._role.turn(DRAIN_TURN_MS)
            now_ns = self._clock.now_ns()
            if forwarded != self._forwarded_count or not self._outbox.is_empty or has_unread_bytes():
                quiet_since_ns = now_ns
            elif now_ns - quiet_since_ns >= DRAIN_QUIET_MS * NS_PER_MS:
                return

    def _on_message(self, origin: bytes, frames: list[Any]) -> None:
        if len(frames) < 2:
            self._board.count(Counter.ERRORS)
        elif origin == BACK:
            self._from_process(Peer(BACK, frames[0].bytes), frames)
        else:
            self._from_client(Peer(origin, frames[0].bytes), frames)

    def _from_client(self, sender: Peer, frames: list[Any]) -> None:
        peer = peer_of(frames[1]) if sender.origin == FRONT else _TCP_PEER
        try:
            header = unpack_header(frames[1].buffer)
        except BrokerError as error:
            self._refuse_unread(sender, frames[1], error)
            return
        if header.kind != REQUEST:
            self._board.count(Counter.ERRORS)
            return
        try:
            uid = PEER.unpack(peer)[0]
            if sender.origin == FRONT and uid != self._uid:
                raise ClusterAuthorizationFailedError(f"uid {uid} may not use the broker of uid {self._uid}")
            if header.api in INNER_APIS:
                raise InvalidRequestError(f"api {header.api} is not for clients")
            if header.target == ids.ROUTER:
                self._welcome(sender, header, frames[2].buffer if len(frames) > 2 else b"")
            else:
                self._forward(header, sender, peer, frames[1:])
        except BrokerError as error:
            self._note(f"client {PEER.unpack(peer)[2]}", error)
            self._deliver(sender, [sender.routing_id, pack_reply(header, error.code), error.wire_text.encode()])

    def _refuse_unread(self, sender: Peer, frame: Any, error: BrokerError) -> None:
        """Another version is answered in what all versions share; bytes that are no header are answered by nothing."""
        self._note("a client", error)
        if isinstance(error, UnsupportedVersionError):
            reply = pack_version_refusal(frame.buffer[:HEADER_BYTES], error.code)
            if reply is not None:
                self._deliver(sender, [sender.routing_id, reply, error.wire_text.encode()])

    def _welcome(self, sender: Peer, header: Header, body: Any) -> None:
        if header.api != Api.HELLO:
            raise InvalidRequestError(f"the router does not answer api {header.api}")
        hello = decode(Hello, body)
        if not hello.protocol_min <= VERSION <= hello.protocol_max:
            raise UnsupportedVersionError(
                f"the client speaks protocol {hello.protocol_min} to {hello.protocol_max}, this broker {VERSION}"
            )
        connections = self.guard.files - self._files_at_start - len(self._processes) - len(self._departures)
        if connections > self._connections_max:
            raise ThrottlingQuotaExceededError(
                f"{connections} connections are open, {self._connections_max} are allowed",
                hint="[limits] connections_per_user_max; one Producer or Consumer is one connection: reuse them",
            )
        config, paths = self._role.config, self._role.paths
        welcome = Welcome(
            protocol=VERSION,
            cluster_id=self._known_cluster_id(),
            software=f"zbroker {__version__}",
            run_dir=str(paths.run_dir),
            boards_dir=str(paths.boards_dir),
            router_incarnation=self._role.incarnation,
            owner_uid=self._uid,
            shared_memory=sender.origin == FRONT,
            message_max_bytes=config.limits.message_max_bytes,
            batch_max_bytes=config.topics.max_message_bytes,
        )
        self._deliver(sender, [sender.routing_id, pack_reply(header), encode(welcome)])

    def _known_cluster_id(self) -> str:
        """What the coordinator wrote once for ever; read until it is there, which is before most hellos come."""
        if not self._cluster_id:
            try:
                self._cluster_id = (self._role.paths.metadata_dir / "cluster-id").read_text("ascii").strip()
            except (OSError, ValueError):
                pass  # the coordinator has not begun yet, and will say its id with the metadata
        return self._cluster_id

    def _from_process(self, sender: Peer, frames: list[Any]) -> None:
        if len(frames) < 3:
            self._board.count(Counter.ERRORS)
            return
        return_address = frames[1].bytes
        if return_address:
            correlation = int.from_bytes(frames[2].buffer[CORRELATION_AT], "little")
            self._forwarded.answered(sender.routing_id, return_address, correlation)
            asker = Peer(return_address[:1], return_address[1:])
            self._deliver(asker, [asker.routing_id, *frames[2:]])
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
            if header.kind != REQUEST:
                raise InvalidRequestError("a reply without a return address")
            if header.target == ids.ROUTER and header.api == Api.PROCESS_HELLO:
                self._meet(sender, peer, header, decode(ProcessHello, frames[3].buffer if len(frames) > 3 else b""))
            else:
                self._forward(header, sender, peer, frames[2:])
        except BrokerError as error:
            self._note(f"process {PEER.unpack(peer)[2]}", error)
            if header.kind == REQUEST:
                self._deliver(sender, [sender.routing_id, pack_reply(header, error.code), error.wire_text.encode()])

    def _meet(self, sender: Peer, peer: bytes, header: Header, hello: ProcessHello) -> None:
        if not may_be_process(hello.number):
            raise InvalidRequestError(f"{hello.number} names no process")
        # One pid and start time belong to one process for ever; who else sends them speaks of somebody else.
        if hello.incarnation >> 64 or ids.pid_of(hello.incarnation) != PEER.unpack(peer)[2]:
            raise InvalidRequestError(f"incarnation {hello.incarnation:#x} is not the sender's")
        known = self._processes.get(hello.number)
        is_same = known is not None and known.incarnation == hello.incarnation
        if known is not None and is_same and header.correlation < known.connection_number:
            return  # a late message through a connection that the process has lost
        if not self._departures.watch(hello.number, hello.incarnation):
            return  # a late message of a process that is gone
        if known is not None and is_same and known.peer != sender:
            self._departures.lost(known.peer.routing_id)
        self._forwarded.meet(sender.routing_id, hello.incarnation)
        self._processes[hello.number] = _Process(sender, hello.incarnation, header.correlation)
        reply = [sender.routing_id, pack_reply(header), encode(ProcessWelcome(self._role.incarnation))]
        self._deliver(sender, reply)
        if known is None or known.peer != sender:
            self._role.log.info("connected", extra={"peer": ids.process_name(hello.number)})

    def _forward(self, header: Header, asker: Peer, peer: bytes, frames: list[Any]) -> None:
        known = self._processes.get(header.target)
        if known is None:
            raise absent(header.target)
        size_bytes = sum(map(len, frames))
        if size_bytes > self._message_bytes_max and asker.origin != BACK:
            raise MessageSizeTooLargeError(f"a message of {size_bytes} bytes; {self._message_bytes_max} are allowed")
        connection, return_address = known.peer.routing_id, asker.origin + asker.routing_id
        message = [connection, return_address, peer, *frames]
        try:
            if not self._outbox.offer(known.peer, message, size_bytes):
                raise ThrottlingQuotaExceededError(f"{ids.process_name(header.target)} does not keep up")
        except UnroutableError:
            del self._processes[header.target]
            self._departures.lost(connection)
            raise absent(header.target) from None
        self._forwarded.note(connection, return_address, header)
        self._count(size_bytes)

    def _deliver(self, asker: Peer, message: list[Any]) -> None:
        """Send an answer; without anybody to take it, or room to keep it, the asker's own deadline has to do."""
        size_bytes = sum(map(len, message))
        try:
            if self.doors.has(asker.origin) and self._outbox.offer(asker, message, size_bytes):
                self._count(size_bytes)
                return
        except UnroutableError:
            pass  # whoever asked is gone
        self._board.count(Counter.MESSAGES_DROPPED)

    def _send(self, peer: Peer, message: list[Any]) -> bool:
        return self.doors.send(peer.origin, message)

    def _on_lost(self, peer: Peer, message: list[Any]) -> None:
        """A message in the outbox whose reader is gone: a request's asker is told, an answer needs nobody any more."""
        self._board.count(Counter.MESSAGES_DROPPED)
        if peer.origin != BACK or len(message) < 4:
            return
        return_address = message[1]
        try:
            header = unpack_header(memoryview(message[3]))
        except BrokerError:
            return
        if self._forwarded.answered(peer.routing_id, return_address, header.correlation):
            self._answer(return_address, header, absent(header.target))

    def _answer(self, return_address: bytes, header: Header, error: BrokerError) -> None:
        asker = Peer(return_address[:1], return_address[1:])
        self._deliver(asker, [asker.routing_id, pack_reply(header, error.code), error.wire_text.encode()])

    def _process_ended(self, incarnation: int) -> list[bytes]:
        self._processes = {n: known for n, known in self._processes.items() if known.incarnation != incarnation}
        return self._forwarded.connections_of(incarnation)

    def _process_is_silent(self, connection: bytes) -> None:
        self._outbox.forget(Peer(BACK, connection))
        self._processes = {n: known for n, known in self._processes.items() if known.peer.routing_id != connection}
        incarnation, owed = self._forwarded.of_dead(connection)
        what = "has lost its connection" if ids.is_alive(incarnation) else "has ended"
        for return_address, header in owed:
            self._answer(return_address, header, ended(header, what))

    def _is_routable(self, connection: bytes) -> bool:
        try:
            self.doors.send(BACK, [connection, b""])
        except UnroutableError:
            return False
        return True

    def _count(self, size_bytes: int) -> None:
        self._forwarded_count += 1
        self._board.set_counter(Counter.MESSAGES_FORWARDED, self._forwarded_count)
        self._board.count(Counter.BYTES_FORWARDED, size_bytes)

    def _note(self, who: str, error: BrokerError) -> None:
        self._board.count(Counter.ERRORS)
        if self._role.once.allows(type(error).__name__, self._clock.now_ns()):
            # What passes by itself, as a process that is about to connect, need not be looked at by anybody.
            level = logging.INFO if error.retriable else logging.WARNING
            self._role.log.log(level, "refused a message", extra={"of": who, "error": error})

    def _look_around(self) -> None:
        if not self._role.is_stopping:
            now_ns = self._clock.now_ns()
            self.guard.check(open_files(), resident_bytes(), now_ns)
            self._role.loop.call_after(self.guard.next_look_ms(now_ns), self._look_around)

    def _stop_listening(self, origins: list[bytes], why: str) -> None:
        self._role.log.warning("no new connections for now", extra={"because": why})
        self.doors.stop_listening(origins)

    def _listen_again(self) -> bool:
        is_listening = self.doors.listen()
        if is_listening:
            self._role.log.info("accepting connections again")
        return is_listening

    def _reset(self, why: str) -> None:
        self._role.log.error("closing all clients' connections", extra={"because": why})
        for origin in self.doors.client_origins:
            self._outbox.forget_socket(origin)
            self.doors.replace(origin)


def main(config: ServerConfig, *, reload: Reload | None = None) -> int:
    """Run the router until SIGTERM. Returns the exit code."""

    def run() -> None:
        with Role.start(config, ids.ROUTER, reload=reload) as role:
            Router(role).run()

    return exit_code_of(run)
