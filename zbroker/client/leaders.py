"""To whom a producer's batches go: each partition's leader, found again when it is lost.

A leader that failed a batch is forgotten, and the coordinator is asked until it names one that can be reached. One
question serves all partitions of a topic that look for their leader at the same time.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from zbroker import ids
from zbroker.client.cluster_view import ClusterView
from zbroker.client.connection import Connection
from zbroker.client.settings import ProducerSettings
from zbroker.clock import NS_PER_MS
from zbroker.errors import BrokerError, LeaderNotAvailableError, UnknownTopicOrPartitionError
from zbroker.wire.messages import TopicInfo

METADATA_ATTEMPT_MS: Final = 1_000


class Route(NamedTuple):
    """Where a partition's batches go."""

    process: int
    topic_id: int
    leader_epoch: int


class Leaders:
    """See the module. `forget` and `route` may be called from any thread, the rest from one at a time."""

    def __init__(self, connection: Connection, settings: ProducerSettings) -> None:
        self._connection = connection
        self._settings = settings
        self._routes: dict[tuple[str, int], Route] = {}
        self._failed: set[tuple[str, int]] = set()
        self._asked: set[str] = set()  # in this round
        self.route = self._routes.get
        """`route((topic, partition))`: the leader, or None while it is not known."""

    def forget(self, topic: str, partition: int) -> None:
        """This leader has failed a batch: what is known of it may be old."""
        if self._routes.pop((topic, partition), None) is not None:
            self._failed.add((topic, partition))

    def begin_round(self) -> None:
        """What was asked before this moment may be old."""
        self._asked.clear()

    def find_topic(self, topic: str) -> TopicInfo:
        """A topic's metadata; it is created if the broker allows it. Raises the coordinator's error, one that may pass
        only after max_block_ms."""
        deadline_ns = time.monotonic_ns() + max(1, self._settings.max_block_ms) * NS_PER_MS
        while True:
            left_ms = max(1, (deadline_ns - time.monotonic_ns()) // NS_PER_MS)
            view = self._connection.metadata([topic], auto_create=True, timeout_ms=left_ms)
            try:
                return view.topic(topic)
            except UnknownTopicOrPartitionError:
                raise  # the broker creates none: waiting would not help
            except BrokerError as error:
                if not error.retriable or time.monotonic_ns() >= deadline_ns:
                    raise
            self._connection.wait_for(lambda: False, min(left_ms, self._settings.retry_backoff_ms))

    def find(self, topic: str, partition: int) -> None:
        """Have a route to the partition's leader. Waits for round trips. Raises BrokerError while there is none."""
        if (topic, partition) in self._routes:
            return
        found, info = self._look_up(topic, partition).leader(topic, partition)
        connection = self._connection
        # What is known from before a death names the dead, and so does a coordinator that has not seen it yet.
        sees_processes = connection.shared_memory and ids.is_alive(connection.welcome.router_incarnation)
        if sees_processes and not ids.is_alive(info.leader_incarnation):
            self._failed.add((topic, partition))
            raise LeaderNotAvailableError(f"{ids.process_name(info.leader)} has ended")
        if connection.lane(info.leader) is None:
            connection.watch(info.leader, info.leader_incarnation)
        self._routes[topic, partition] = Route(info.leader, found.topic_id, info.leader_epoch)
        self._failed.discard((topic, partition))

    def _look_up(self, topic: str, partition: int) -> ClusterView:
        """The metadata, asked anew when it names no leader or when the one it names has failed."""
        view = self._connection.view
        found = view.topics.get(topic)
        if topic not in self._asked and (
            (topic, partition) in self._failed
            or found is None
            or found.error
            or partition >= len(found.partitions)
            or found.partitions[partition].leader < 0
        ):
            view = self._connection.metadata([topic], refresh=True, timeout_ms=METADATA_ATTEMPT_MS)
            self._asked.add(topic)
        return view
