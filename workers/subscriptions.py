"""The follower's side of the streams: one DEALER socket for each process that leads something which is followed here.

Guarantees: a leader is one incarnation of its process, watched by its pidfd; what another one says is not heard. Its
followers are told when messages can be sent (`connected`), and again whenever some may have been lost: after a gap in
the numbers, a RESET, or when the connection is made anew: because it has ended, or a living leader has said nothing for
`SILENCE_MAX_MS` although it was asked. Time in which this process did not look does not count. A dead leader is never
called again: the coordinator names the next one.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

from zbroker import ids
from zbroker.clock import NS_PER_MS, Clock
from zbroker.config.paths import Paths
from zbroker.errors import BrokerError
from zbroker.transport.loop import Loop
from zbroker.transport.sockets import Context, DealerSocket
from zbroker.wire import stream
from zbroker.wire.stream import Kind, Message
from zbroker.workers.outgoing import Outgoing

if TYPE_CHECKING:
    from zbroker.workers.follower import Follower

CONNECT_FIRST_MS: Final = 0.2
CONNECT_SLOWER: Final = 1.2  # a leader that is up answers within a millisecond or two: look often at first
CONNECT_MAX_MS: Final = 50.0
RETRY_MS: Final = 1
PING_AFTER_MS: Final = 500
SILENCE_MAX_MS: Final = 2_000
TICK_MS: Final = 100
STEP_MAX_MS: Final = 200  # what counts as silence between two looks

_log = logging.getLogger(__name__)

Key = tuple[int, int]
LeaderName = tuple[int, int]  # process number, incarnation


class Connection:
    """The connection to one incarnation of a leading process."""

    def __init__(self, subscriptions: Subscriptions, leader: LeaderName, pidfd: int) -> None:
        self.leader = leader
        self.pidfd = pidfd
        self.followers: dict[Key, Follower] = {}
        self.confirmed: dict[Key, stream.Copied] = {}
        self.expected = 0
        self.is_connected = False
        self.is_closed = False
        self.heard_ns = 0
        self.asked_ns = 0
        self._subscriptions = subscriptions
        self.socket = subscriptions.open_socket(self)
        self.outgoing = Outgoing(lambda frames: self.socket.send(frames), *subscriptions.own)

    def post(self, entry: stream.Entry) -> bool:
        """Have an entry sent at the end of the turn. False: it is not, for want of a connection or of room."""
        if not self.is_connected:
            return False
        self._subscriptions.ready.add(self)
        return self.outgoing.add(entry)

    def unsubscribe(self, follower: Follower) -> None:
        """Tell the leader, if it can be told, that the follower wants nothing any more."""
        key = (follower.topic_id, follower.partition, follower.leader_epoch, follower.copy_id, 0)
        if self.post(stream.Key(*key)):
            self._subscriptions.flush()

    def confirm(self, entry: stream.Copied) -> None:
        """Have this sent at the end of the turn, in place of what was to be said about the same partition."""
        if self.is_connected:
            self.confirmed[entry.topic_id, entry.partition] = entry
            self._subscriptions.ready.add(self)


class Subscriptions:
    """See the module. The loop's thread alone calls it."""

    def __init__(
        self, loop: Loop, clock: Clock, paths: Paths, *, number: int, incarnation: int, message_max_bytes: int
    ) -> None:
        """Nothing is connected before the first `follow`."""
        self.own = (number, incarnation)
        self.ready: set[Connection] = set()
        self._loop = loop
        self._clock = clock
        self._paths = paths
        self._message_max_bytes = message_max_bytes
        self._connections: dict[LeaderName, Connection] = {}
        self._context: Context | None = None
        self._is_retrying = False
        self._is_ticking = False
        self._looked_ns = 0

    def follow(self, follower: Follower, number: int, incarnation: int) -> Connection | None:
        """Connect a follower to the leader's process; `follower.connected` is called when it can send, unless it can
        already. None: that incarnation is dead."""
        leader = (number, incarnation)
        connection = self._connections.get(leader)
        if connection is None:
            pidfd = ids.open_pidfd(incarnation)
            if pidfd is None:
                return None
            connection = self._connections[leader] = Connection(self, leader, pidfd)
            self._loop.add_reader(pidfd, lambda: self._died(connection))
            self._begin(connection)
            if not self._is_ticking:
                self._is_ticking = True
                self._looked_ns = self._clock.now_ns()
                self._loop.call_every(TICK_MS, self._tick)
        connection.followers[follower.key] = follower
        return connection

    def unfollow(self, follower: Follower, connection: Connection) -> None:
        """The follower wants nothing of that leader any more. The last one closes the connection."""
        if connection.followers.get(follower.key) is not follower:
            return
        del connection.followers[follower.key]
        connection.confirmed.pop(follower.key, None)
        if not connection.followers:
            self._close(connection)

    def flush(self) -> None:
        """The end of a turn: hand over what there is for the leaders."""
        if not self.ready:
            return
        ready, self.ready = self.ready, set()
        for connection in ready:
            if connection.is_closed:
                continue
            if connection.confirmed:
                confirmed, connection.confirmed = connection.confirmed, {}
                for entry in confirmed.values():
                    connection.outgoing.add(entry)
            if not connection.outgoing.flush():
                self.ready.add(connection)
                if not self._is_retrying:
                    self._is_retrying = True
                    self._loop.call_after(RETRY_MS, self._retry)

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self._connections.values()):
            self._close(connection)
        if self._context is not None:
            self._context.close()
            self._context = None

    def open_socket(self, connection: Connection) -> DealerSocket:
        """A socket to the connection's leader, in the loop."""
        if self._context is None:
            self._context = Context()
        path = self._paths.stream_socket(ids.process_name(connection.leader[0]))
        socket = DealerSocket(
            self._context, f"ipc://{path}", message_max_bytes=self._message_max_bytes, is_watched=True
        )
        self._loop.add_reader(socket.monitor_fileno(), lambda: self._look_at(connection, socket))
        self._loop.add_socket(socket, lambda frames: self._on_message(connection, frames))
        return socket

    # --- connecting --------------------------------------------------------------------------------------------------

    def _begin(self, connection: Connection) -> None:
        connection.is_connected = False
        connection.expected = 0
        connection.confirmed.clear()
        connection.outgoing.clear()
        connection.outgoing.say(Kind.PING)
        self._try_to_begin(connection, connection.socket, CONNECT_FIRST_MS)

    def _try_to_begin(self, connection: Connection, socket: DealerSocket, delay_ms: float) -> None:
        if connection.is_closed or connection.is_connected or connection.socket is not socket:
            return
        if not connection.outgoing.flush():
            after_ms = min(CONNECT_SLOWER * delay_ms, CONNECT_MAX_MS)
            self._loop.call_after(delay_ms, lambda: self._try_to_begin(connection, socket, after_ms))
            return
        connection.is_connected = True
        connection.heard_ns = connection.asked_ns = self._clock.now_ns()
        self._tell_connected(connection)
        self.flush()

    def _tell_connected(self, connection: Connection) -> None:
        for follower in list(connection.followers.values()):
            follower.connected()

    def _look_at(self, connection: Connection, socket: DealerSocket) -> None:
        # libzmq would connect again by itself, but until then takes messages for the connection that has ended.
        if socket.has_lost_connection():
            self._connect_again(connection)

    def _close_socket(self, socket: DealerSocket) -> None:
        self._loop.remove_reader(socket.monitor_fileno())
        self._loop.remove_socket(socket)
        socket.close()

    def _connect_again(self, connection: Connection) -> None:
        self._close_socket(connection.socket)
        connection.socket = self.open_socket(connection)
        self._begin(connection)

    def _tick(self) -> None:
        now_ns = self._clock.now_ns()
        stood_still_ns = max(0, now_ns - self._looked_ns - STEP_MAX_MS * NS_PER_MS)
        self._looked_ns = now_ns
        for connection in list(self._connections.values()):
            if not connection.is_connected:
                continue
            connection.heard_ns = min(now_ns, connection.heard_ns + stood_still_ns)
            silence_ns = now_ns - connection.heard_ns
            if silence_ns > SILENCE_MAX_MS * NS_PER_MS:
                _log.warning("no answer from a leader", extra={"leader": ids.process_name(connection.leader[0])})
                self._connect_again(connection)
            elif silence_ns > PING_AFTER_MS * NS_PER_MS and now_ns - connection.asked_ns > PING_AFTER_MS * NS_PER_MS:
                connection.asked_ns = now_ns
                connection.outgoing.say(Kind.PING)
                self.ready.add(connection)
        self.flush()

    def _retry(self) -> None:
        self._is_retrying = False
        self.flush()

    def _died(self, connection: Connection) -> None:
        _log.info("a leader is gone", extra={"leader": ids.process_name(connection.leader[0])})
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        if connection.is_closed:
            return
        connection.is_closed = True
        connection.is_connected = False
        if self._connections.get(connection.leader) is connection:
            del self._connections[connection.leader]
        self.ready.discard(connection)
        self._loop.remove_reader(connection.pidfd)
        os.close(connection.pidfd)
        self._close_socket(connection.socket)

    # --- receiving ---------------------------------------------------------------------------------------------------

    def _on_message(self, connection: Connection, frames: list[bytes]) -> None:
        if connection.is_closed:
            return
        try:
            message = Message.read(frames)
        except BrokerError as error:
            _log.warning("a stream message was refused", extra={"error": error})
            return
        head = message.head
        if (head.number, head.incarnation) != connection.leader:
            # The path belongs to the next run of that process already; the pidfd tells the rest.
            return
        connection.heard_ns = self._clock.now_ns()
        has_gap = head.sequence != connection.expected
        connection.expected = head.sequence + 1
        if has_gap or head.kind == Kind.RESET:
            self._tell_connected(connection)
        for entry in message.entries:
            follower = connection.followers.get((entry.topic_id, entry.partition))
            if follower is not None and follower.copy_id == entry.copy_id:
                follower.take(head.kind, entry, message.inline)
