"""Keeps a producer's topics up to date without making a send wait: partitions that were added are used.

Once in `metadata_max_age_ms` the thread that opens a batch sends a question and goes on; the answer, when it comes,
adds queues. No answer, or an error, changes nothing: the question is asked again after the next interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from zbroker import ids
from zbroker.client.connection import Connection
from zbroker.clock import NS_PER_MS
from zbroker.errors import BrokerError
from zbroker.wire.codec import decode, encode
from zbroker.wire.layout import Api
from zbroker.wire.messages import MetadataReply, MetadataRequest, TopicInfo


class TopicRefresh:
    """See the module. `on_topic` is called, by a pump, for each topic of an answer that has no error."""

    def __init__(self, connection: Connection, interval_ms: int, on_topic: Callable[[TopicInfo], None]) -> None:
        self._connection = connection
        self._interval_ns = interval_ms * NS_PER_MS
        self._on_topic = on_topic
        self.due_ns = time.monotonic_ns() + self._interval_ns

    def ask(self, topics: Iterable[str]) -> None:
        """Ask for these topics. Never waits."""
        self.due_ns = time.monotonic_ns() + self._interval_ns
        body = encode(MetadataRequest(list(topics), False))
        self._connection.submit(ids.COORDINATOR, Api.METADATA, [body], self._take)

    def _take(self, error: int, body: list[Any]) -> None:
        if error:
            return
        try:
            reply = decode(MetadataReply, body[0])
        except BrokerError:
            return  # An answer that cannot be read is as good as none.
        for topic in reply.topics:
            if not topic.error:
                self._on_topic(topic)
