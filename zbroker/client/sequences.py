"""Under which identity a partition's batches go, and their numbers: the producer's half of KIP-98.

The leader appends a producer's batch only when its number follows the one before, and answers a repeat with the place
of the first. So a batch keeps identity and number over retries and leader changes, and is stored once.

WHAT FAILS LEAVES A GAP, which the leader would never pass:
  - A batch that was certainly not appended (refused, never on its way again) gives its number back: when nothing is on
    its way any more, what follows is numbered anew from the newest acknowledged batch.
  - A batch that was given up without knowing keeps its number. If the leader takes the next one, it was appended. If
    the leader misses something before the oldest batch that is left, nothing that is left was appended (a log has no
    holes): it is numbered anew, from 0, under a new identity. The same when the leader lost what it acknowledged.
  - A batch that may have been appended is never numbered anew unless the leader has said so.

The caller holds the producer's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Final, NamedTuple

from zbroker.client.batches import Batch
from zbroker.errors import (
    BrokerNotAvailableError,
    NotEnoughReplicasAfterAppendError,
    NotLeaderForPartitionError,
    OutOfOrderSequenceNumberError,
    RequestTimedOutError,
    StorageError,
    UnknownError,
    UnknownProducerIdError,
)
from zbroker.record.batch import stamp_producer

SEQUENCE_MAX: Final = 2**31 - 1

# After these a batch may be in the log all the same.
_DOUBTFUL: Final = frozenset(
    {
        BrokerNotAvailableError.code,
        NotEnoughReplicasAfterAppendError.code,
        NotLeaderForPartitionError.code,
        RequestTimedOutError.code,
        StorageError.code,
        UnknownError.code,
    }
)
_MISSING: Final = (OutOfOrderSequenceNumberError.code, UnknownProducerIdError.code)


class Identity(NamedTuple):
    """A producer's id and epoch. The first of a producer is generation 0."""

    producer_id: int
    producer_epoch: int
    generation: int


class Stamp(NamedTuple):
    """What a batch's header says of its producer."""

    producer_id: int
    producer_epoch: int
    base_sequence: int


# Not `Stamp(...)`, which is a call in Python.
_make_stamp: Callable[[tuple[int, int, int]], Stamp] = partial(tuple.__new__, Stamp)
NO_STAMP: Final = Stamp(-1, -1, -1)


def after(sequence: int, count: int) -> int:
    """The number that follows `count` records from `sequence`: after 2^31 - 1 comes 0."""
    return (sequence + count) & SEQUENCE_MAX


class Sequences:
    """See the module. One for each partition of an idempotent producer."""

    __slots__ = ("_acknowledged", "_doubtful", "_has_gap", "_newest", "_next", "generation", "identity", "is_new")

    def __init__(self) -> None:
        self.identity: Identity | None = None
        self.generation = 0
        """Which of the producer's identities is wanted while there is none."""
        self.is_new = True
        """Nothing is acknowledged under this identity: a leader that does not know it might take any number first, so
        the first batch goes alone."""
        self._next = 0
        self._acknowledged = 0  # what follows the newest acknowledged batch
        self._newest = 0  # its number in the order of closing
        self._has_gap = False  # a number was given to a batch that is certainly not in the log
        self._doubtful = 0  # the newest batch, by its number, of which that is not known

    def begin(self, identity: Identity) -> None:
        """Number from 0 under this identity."""
        self.identity = identity
        self.generation = identity.generation
        self.is_new = True
        self._next = self._acknowledged = self._newest = self._doubtful = 0
        self._has_gap = False

    def expected(self, last_waiting: Batch | None) -> Stamp:
        """What the next batch to be closed will be stamped with, if nothing fails before its turn."""
        if self.identity is None:
            return NO_STAMP
        if last_waiting is None:
            return _make_stamp((self.identity[0], self.identity[1], self._next))
        found = last_waiting.stamp
        if found[2] < 0 or last_waiting.name_id:
            return NO_STAMP
        return Stamp(found[0], found[1], after(found[2], last_waiting.count))

    def stamp(self, batch: Batch) -> bool:
        """Give a batch that is about to be sent its number, if it has none. False: there is no identity yet."""
        if batch.sequence < 0:
            identity = self.identity
            if identity is None:
                return False
            sequence = batch.sequence = self._next
            self._next = (sequence + batch.count) & SEQUENCE_MAX
            if batch.stamp != (identity[0], identity[1], sequence):
                write_stamp(batch, _make_stamp((identity[0], identity[1], sequence)))
        return True

    def was_acknowledged(self, batch: Batch) -> None:
        """The batch is in the log, and so is what was sent before it and not refused."""
        if batch.sequence < 0:
            return
        if batch.number > self._newest:  # an older one is acknowledged late when its first answer was lost
            self._newest = batch.number
            self._acknowledged = (batch.sequence + batch.count) & SEQUENCE_MAX
        self.is_new = False

    def was_refused(self, batch: Batch, error_number: int) -> None:
        """The batch was answered with an error. It may be sent again."""
        batch.refused_with = error_number
        if error_number in _DOUBTFUL:
            batch.is_doubtful = True
        elif error_number in _MISSING:
            batch.is_doubtful = False

    def was_given_up(self, batch: Batch) -> None:
        """The batch will not be sent again."""
        if batch.sequence < 0:
            return
        if batch.is_doubtful:
            self._doubtful = max(self._doubtful, batch.number)
        else:
            self._has_gap = True

    def settle(self, waiting: Collection[Batch]) -> None:
        """Nothing is on its way: number anew what must be, before it is sent again. `waiting`: all that is left."""
        if not waiting and not self._has_gap:
            return
        left = [batch for batch in waiting if batch.sequence >= 0]
        # What is acknowledged behind a batch shows that the batch is there: there are no holes.
        is_clear = self._doubtful <= self._newest and not any(batch.is_doubtful for batch in left)
        if self._has_gap and is_clear:
            self._next = self._acknowledged
            self._has_gap = False
        elif left and left[0].refused_with in _MISSING:
            self.identity = None
            self.generation += 1
        else:
            return
        for batch in left:
            batch.sequence = -1
            batch.is_doubtful = False


def write_stamp(batch: Batch, wanted: Stamp) -> None:
    """Have a closed batch's header say this."""
    if batch.stamp != wanted:
        assert batch.encoded is not None
        stamp_producer(batch.encoded, *wanted)
        batch.stamp = wanted
