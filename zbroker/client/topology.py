"""What a consumer knows of topics and leaders, asked for without waiting.

A consumer goes on reading while the coordinator is away, so the metadata is asked for by a message whose answer comes
when it comes. `view` is the newest answer, `count` how many came. Questions that follow each other quickly are spaced
by 1, 2, 5, 10... up to `retry_backoff_ms`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from zbroker import ids
from zbroker.client.cluster_view import ClusterView
from zbroker.client.connection import Connection
from zbroker.clock import NS_PER_MS
from zbroker.errors import BrokerError
from zbroker.wire.codec import decode, encode
from zbroker.wire.layout import Api
from zbroker.wire.messages import MetadataReply, MetadataRequest

ASK_TIMEOUT_MS: Final = 1_000
FIRST_TIMEOUT_MS: Final = 250  # of the first question that is not answered; the next ones wait longer
LOST_MAX: Final = 2  # questions in a row
BACKOFF_MS: Final = (1, 2, 5, 10, 20, 50, 100)


class Topology:
    """See the module. Used by the consumer's thread, and by its pump."""

    def __init__(self, connection: Connection, on_event: Callable[[], None]) -> None:
        """`on_event` is called when an answer came, or none in time."""
        self._connection = connection
        self._on_event = on_event
        self._max_age_ns = connection.settings.metadata_max_age_ms * NS_PER_MS
        self._correlation: int | None = None
        self._answered_ns = 0
        self._next_ns = 0
        self._tries = 0
        self._lost = 0
        self._is_expired = False
        self._asked: tuple[str, ...] | None = ()
        self.view = ClusterView()
        self.covered: frozenset[str] | None = frozenset()
        self.count = 0

    @property
    def is_old(self) -> bool:
        """Whether `metadata_max_age_ms` has passed since the last answer, or it was declared too old."""
        return self._is_expired or time.monotonic_ns() - self._answered_ns > self._max_age_ns

    @property
    def wait_ms(self) -> float:
        """How long until `ask` would ask again."""
        if self._correlation is not None:
            return float(ASK_TIMEOUT_MS)
        return max(0.1, (self._next_ns - time.monotonic_ns()) / NS_PER_MS)

    def calm(self) -> None:
        """Everything is as it should be: the next question need not wait."""
        self._tries = 0
        self._next_ns = 0

    def expire(self) -> int:
        """What is known is too old. Returns the `count` of the first answer that is not."""
        if self._correlation is not None:
            self._connection.forget(self._correlation)
            self._correlation = None
        self._is_expired = True
        self._next_ns = 0
        return self.count + 1

    def ask(self, topics: Iterable[str] | None) -> None:
        """Ask for these topics (None: all), unless a question is under way or the last one was a moment ago."""
        asked = None if topics is None else tuple(sorted(topics))
        if self._correlation is not None:
            if asked == self._asked:
                return
            self._connection.forget(self._correlation)
            self._correlation = None
        elif asked == self._asked and time.monotonic_ns() < self._next_ns:
            return
        self._asked = asked
        body = encode(MetadataRequest(None if asked is None else list(asked), False))
        timeout_ms = min(ASK_TIMEOUT_MS, FIRST_TIMEOUT_MS << self._lost)
        self._correlation = self._connection.submit(
            ids.COORDINATOR, Api.METADATA, [body], self._take, timeout_ms=timeout_ms
        )

    def _take(self, error: int, body: list[Any]) -> None:
        self._correlation = None
        self._on_event()
        backoff_ms = min(BACKOFF_MS[min(self._tries, len(BACKOFF_MS) - 1)], self._connection.settings.retry_backoff_ms)
        self._tries += 1
        self._next_ns = time.monotonic_ns() + backoff_ms * NS_PER_MS
        if error:
            self._lost = min(self._lost + 1, LOST_MAX)
            return
        self._lost = 0
        try:
            view = ClusterView(decode(MetadataReply, body[0]))
        except BrokerError:
            return
        self.view = view
        self.covered = None if self._asked is None else frozenset(self._asked)
        self._answered_ns = time.monotonic_ns()
        self._is_expired = False
        self.count += 1
