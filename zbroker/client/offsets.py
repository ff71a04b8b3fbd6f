"""Ask the leaders for offsets: where logs begin and end, and what was written when.

Guarantees: every partition's own leader is asked, again after a change of leaders and after a second without an
answer (a leader that hangs is replaced by then), until `request_timeout_ms` are over;
a topic that does not exist is an error at once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from zbroker.client.connection import Connection
from zbroker.clock import NS_PER_MS
from zbroker.errors import (
    BrokerError,
    LeaderNotAvailableError,
    NotLeaderForPartitionError,
    RequestTimedOutError,
    error_for,
)
from zbroker.ids import TopicPartition
from zbroker.wire.codec import decode, encode
from zbroker.wire.layout import Api
from zbroker.wire.messages import ListOffsetsReply, ListOffsetsRequest, OffsetAnswer, OffsetQuery

QUERIES_MAX: Final = 500  # of one request: it fits into a lane
_ATTEMPT_MS: Final = 1_000
_BACKOFF_MS: Final = (1, 2, 5, 10, 20, 50, 100)


def ask_offsets(connection: Connection, queries: Mapping[TopicPartition, int]) -> dict[TopicPartition, OffsetAnswer]:
    """Answers to `{partition: time in ms, EARLIEST, LATEST or LOG_END}`. Raises the error of the first that has one."""
    found: dict[TopicPartition, OffsetAnswer] = {}
    left = dict(queries)
    deadline_ns = time.monotonic_ns() + connection.settings.request_timeout_ms * NS_PER_MS
    tries = 0
    while left:
        try:
            found.update(_ask_once(connection, left, refresh=tries > 0))
            left = {tp: what for tp, what in left.items() if tp not in found}
        except (LeaderNotAvailableError, NotLeaderForPartitionError, RequestTimedOutError):
            if time.monotonic_ns() > deadline_ns:
                raise
            connection.wait_for(lambda: False, _BACKOFF_MS[min(tries, len(_BACKOFF_MS) - 1)])
        tries += 1
    return found


def _ask_once(
    connection: Connection, queries: Mapping[TopicPartition, int], *, refresh: bool
) -> dict[TopicPartition, OffsetAnswer]:
    view = connection.metadata(sorted({tp.topic for tp in queries}), refresh=refresh)
    by_leader: dict[int, list[tuple[TopicPartition, OffsetQuery]]] = {}
    for tp, timestamp_ms in queries.items():
        topic, info = view.leader(*tp)
        query = OffsetQuery(topic.topic_id, tp.partition, timestamp_ms)
        by_leader.setdefault(info.leader, []).append((tp, query))
    found: dict[TopicPartition, OffsetAnswer] = {}
    for leader, entries in by_leader.items():
        for first in range(0, len(entries), QUERIES_MAX):
            part = entries[first : first + QUERIES_MAX]
            body = encode(ListOffsetsRequest([query for _, query in part]))
            frames = connection.request(leader, Api.LIST_OFFSETS, [body], timeout_ms=_ATTEMPT_MS, repeats=False)
            for (tp, _), answer in zip(part, decode(ListOffsetsReply, frames[0]).partitions, strict=True):
                if answer.error:
                    raise _error(tp, answer)
                found[tp] = answer
    return found


def _error(tp: TopicPartition, answer: OffsetAnswer) -> BrokerError:
    return error_for(answer.error, f"{tp}: its leader gives no offset")
