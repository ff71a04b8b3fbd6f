"""The leader's side of the streams: one ROUTER socket, on which the processes that follow subscribe.

Guarantees: only processes of this broker's own user are heard, as the kernel names them, and the incarnation that one
claims must be its own. A follower's death is seen by its pidfd, and ends its sessions at once. A gap in what a process
sends, or a message that cannot be read, ends them too, with RESET: it subscribes again. Sending never blocks: what the
socket does not take waits here, in queues that are bounded, and is tried again every millisecond.

Everything goes out at the end of the loop's turn (`flush`), so that what many producers wrote in one turn is one entry.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from zbroker import ids
from zbroker.clock import Clock
from zbroker.core import replication_events as rv
from zbroker.errors import BrokerError, InvalidRequestError, NotLeaderForPartitionError
from zbroker.transport.loop import Loop
from zbroker.transport.sockets import Context, RouterSocket, UnroutableError, peer_of
from zbroker.wire import stream
from zbroker.wire.layout import PEER
from zbroker.wire.stream import Kind, Message
from zbroker.workers.feed import Feed
from zbroker.workers.logs import OncePerMinute
from zbroker.workers.outgoing import Outgoing

RETRY_MS: Final = 1
NEWS_DELAY_MS: Final = 5
PEERS_MAX: Final = 1_024
TURNS_MAX: Final = 100

_log = logging.getLogger(__name__)

Key = tuple[int, int]
FeedOf = Callable[[Key], Feed | None]


class Peer:
    """One connection of a process that follows: the session of its subscriptions."""

    def __init__(self, streams: Streams, routing_id: bytes, number: int, incarnation: int, pidfd: int) -> None:
        self.routing_id = routing_id
        self.number = number
        self.incarnation = incarnation
        self.pidfd = pidfd
        self.expected = 0
        self.feeds: dict[tuple[Key, int], Feed] = {}  # (partition, copy) -> where it subscribed
        self.outgoing = Outgoing(lambda frames: streams.send(routing_id, frames), streams.number, streams.incarnation)
        self.news: dict[tuple[Key, int], stream.Appended] = {}
        self._streams = streams

    def post(self, entry: stream.Entry, inline: bytes | None = None) -> bool:
        """Have an entry sent at the end of the turn. False: too much waits for this process already."""
        if self.news and isinstance(entry, stream.Appended):
            self.news.pop(((entry.topic_id, entry.partition), entry.copy_id), None)
        is_taken = self.outgoing.add(entry, inline)
        self._streams.ready.add(self)
        return is_taken

    def post_later(self, entry: stream.Appended) -> None:
        """Have news sent within some milliseconds; newer ones, or anything for that partition, replace them."""
        self.news[(entry.topic_id, entry.partition), entry.copy_id] = entry
        self._streams.news_waits()


class Streams:
    """See the module."""

    def __init__(
        self,
        loop: Loop,
        clock: Clock,
        path: Path,
        feed_of: FeedOf,
        *,
        number: int,
        incarnation: int,
        message_max_bytes: int,
        credit_bytes: int,
        once: OncePerMinute,
    ) -> None:
        """Listen at `path`, which this process alone may do: it holds the lock of its name. Raises OSError."""
        self.clock = clock
        self.number = number
        self.incarnation = incarnation
        self.credit_bytes = credit_bytes
        self.told: list[Feed] = []
        self.ready: set[Peer] = set()
        self._loop = loop
        self._path = path
        self._feed_of = feed_of
        self._once = once
        self._peers: dict[bytes, Peer] = {}
        self._is_retrying = False
        self._has_news = False
        self._is_closed = False
        self._context = Context()
        self._socket = RouterSocket(
            self._context, message_max_bytes=message_max_bytes, frames_max=stream.INLINE_FRAMES_MAX + 1
        )
        path.unlink(missing_ok=True)
        self._socket.bind(f"ipc://{path}")
        loop.add_socket(self._socket, self._on_message)

    @property
    def peer_count(self) -> int:
        """Connections that have said something sound."""
        return len(self._peers)

    @property
    def has_work(self) -> bool:
        """Whether `flush` has anything to do."""
        return bool(self.told or self.ready)

    def flush(self) -> None:
        """The end of a turn: tell followers what is new, and hand over what there is for them."""
        for _ in range(TURNS_MAX):
            if not self.told:
                break
            told, self.told = self.told, []
            for feed in told:
                feed.send_what_was_told()
        if self.ready:
            ready, self.ready = self.ready, set()
            for peer in ready:
                self._flush_peer(peer)

    def send(self, routing_id: bytes, frames: list[bytes]) -> bool:
        """Hand a message to the socket. False: there is no room now. Raises UnroutableError."""
        return self._socket.send([routing_id, *frames])

    def news_waits(self) -> None:
        """See to it that delayed news leave."""
        if not self._has_news:
            self._has_news = True
            self._loop.call_after(NEWS_DELAY_MS, self._send_news)

    def close(self) -> None:
        """Close the socket and remove its file."""
        if self._is_closed:
            return
        self._is_closed = True
        for peer in list(self._peers.values()):
            self._forget(peer, tell_feeds=False)
        self._loop.remove_socket(self._socket)
        self._socket.close()
        self._context.close()
        self._path.unlink(missing_ok=True)

    # --- sending -----------------------------------------------------------------------------------------------------

    def _flush_peer(self, peer: Peer) -> None:
        if peer.routing_id not in self._peers:
            return
        try:
            is_done = peer.outgoing.flush()
        except UnroutableError:
            self._forget(peer)
            return
        if not is_done:
            self.ready.add(peer)
            if not self._is_retrying:
                self._is_retrying = True
                self._loop.call_after(RETRY_MS, self._retry)

    def _retry(self) -> None:
        self._is_retrying = False
        if not self._is_closed:
            self.flush()

    def _send_news(self) -> None:
        self._has_news = False
        if self._is_closed:
            return
        for peer in list(self._peers.values()):
            if peer.news:
                news, peer.news = peer.news, {}
                for entry in news.values():
                    peer.post(entry)
        self.flush()

    # --- receiving ---------------------------------------------------------------------------------------------------

    def _on_message(self, frames: list[Any]) -> None:
        try:
            message = Message.read([bytes(frame.bytes) for frame in frames[1:]])
            self._check_sender(frames[0], message.head)
        except BrokerError as error:
            if self._once.allows("stream message", self.clock.now_ns()):
                _log.warning("a stream message was refused", extra={"error": error})
            return
        peer = self._peer_of(frames[0].bytes, message.head)
        if peer is None:
            return
        is_next = message.head.sequence == peer.expected
        peer.expected = message.head.sequence + 1
        if is_next:
            self._take(peer, message)
        else:
            self._end_sessions(peer)
            peer.outgoing.say(Kind.RESET)
            self.ready.add(peer)

    def _check_sender(self, frame: Any, head: stream.Head) -> None:
        uid, _, pid = PEER.unpack(peer_of(frame))
        if uid != os.getuid():
            raise InvalidRequestError(f"uid {uid} may not follow")
        if pid != ids.pid_of(head.incarnation):
            raise InvalidRequestError(f"process {pid} says that it is incarnation {head.incarnation:x}")

    def _peer_of(self, routing_id: bytes, head: stream.Head) -> Peer | None:
        known = self._peers.get(routing_id)
        if known is not None:
            return known if known.incarnation == head.incarnation else None
        for older in [one for one in self._peers.values() if one.number == head.number]:
            # A process has one connection: this is what it has opened since, or another run of it.
            self._forget(older)
        pidfd = ids.open_pidfd(head.incarnation) if len(self._peers) < PEERS_MAX else None
        if pidfd is None:
            return None
        peer = Peer(self, routing_id, head.number, head.incarnation, pidfd)
        self._peers[routing_id] = peer
        self._loop.add_reader(pidfd, lambda: self._forget(peer))
        return peer

    def _take(self, peer: Peer, message: Message) -> None:
        kind = message.head.kind
        if kind == Kind.COPIED:
            for entry in message.entries:
                self._copied(peer, entry)
        elif kind == Kind.SUBSCRIBE:
            for entry in message.entries:
                self._subscribe(peer, entry)
        elif kind == Kind.UNSUBSCRIBE:
            for entry in message.entries:
                feed = peer.feeds.pop(((entry.topic_id, entry.partition), entry.copy_id), None)
                if feed is not None:
                    feed.handle(rv.SessionLost(peer, entry.copy_id))
        elif kind == Kind.PING:
            peer.outgoing.say(Kind.PONG)
            self.ready.add(peer)

    def _copied(self, peer: Peer, entry: stream.Copied) -> None:
        feed = peer.feeds.get(((entry.topic_id, entry.partition), entry.copy_id))
        if feed is None or feed is not self._feed_of((entry.topic_id, entry.partition)):
            self._reject(peer, entry)
            return
        feed.handle(
            rv.Copied(
                session=peer,
                copy_id=entry.copy_id,
                subscription=entry.subscription,
                leader_epoch=entry.leader_epoch,
                log_end=entry.log_end,
                durable=entry.durable,
            )
        )

    def _subscribe(self, peer: Peer, entry: stream.Subscribe) -> None:
        key = (entry.topic_id, entry.partition)
        feed = self._feed_of(key)
        if feed is None:
            self._reject(peer, entry)
            return
        peer.feeds[key, entry.copy_id] = feed
        feed.subscribe(peer, entry, peer.incarnation)

    def _reject(self, peer: Peer, entry: stream.Subscribe | stream.Copied) -> None:
        peer.post(stream.Rejected(*entry[:5], NotLeaderForPartitionError.code, 0))

    def _end_sessions(self, peer: Peer) -> None:
        feeds, peer.feeds = peer.feeds, {}
        peer.news.clear()
        for (key, copy_id), feed in feeds.items():
            if feed is self._feed_of(key):
                feed.handle(rv.SessionLost(peer, copy_id))

    def _forget(self, peer: Peer, *, tell_feeds: bool = True) -> None:
        if self._peers.pop(peer.routing_id, None) is None:
            return
        self._loop.remove_reader(peer.pidfd)
        os.close(peer.pidfd)
        self.ready.discard(peer)
        if tell_feeds:
            self._end_sessions(peer)
