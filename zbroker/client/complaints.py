"""Why nothing is acknowledged: a refusal that the next try may cure is otherwise told only when it was the last try.

Guarantees: one warning a minute for each partition at most, and none for what a death or a move brings with it.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from zbroker.clock import NS_PER_MS
from zbroker.errors import (
    BrokerNotAvailableError,
    FencedLeaderEpochError,
    LeaderNotAvailableError,
    NotLeaderForPartitionError,
    OutOfOrderSequenceNumberError,
    RequestTimedOutError,
    UnknownLeaderEpochError,
    UnknownProducerIdError,
    UnknownTopicOrPartitionError,
    error_for,
)

INTERVAL_NS: Final = 60_000 * NS_PER_MS

# What a death or a move brings with it, and passes by itself.
_USUAL: Final = frozenset(
    error.code
    for error in (
        BrokerNotAvailableError,
        FencedLeaderEpochError,
        LeaderNotAvailableError,
        NotLeaderForPartitionError,
        OutOfOrderSequenceNumberError,
        RequestTimedOutError,
        UnknownLeaderEpochError,
        UnknownProducerIdError,
        UnknownTopicOrPartitionError,
    )
)

_log = logging.getLogger(__name__)


class Complaints:
    """See the module."""

    def __init__(self) -> None:
        self._silent_until_ns: dict[tuple[str, int], int] = {}

    def note(self, place: tuple[str, int], number: int, body: list[Any]) -> None:
        """A batch of this partition was refused with an error of this number; `body`: what its answer says."""
        if number in _USUAL:
            return
        error = error_for(number, bytes(body[0]).decode("utf-8", "replace") if body else "")
        now_ns = time.monotonic_ns()
        if error.retriable and now_ns >= self._silent_until_ns.get(place, 0):
            self._silent_until_ns[place] = now_ns + INTERVAL_NS
            _log.warning("%s:%d: %s; the producer tries again", *place, error)
