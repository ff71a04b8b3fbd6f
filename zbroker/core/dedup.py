"""Which batches a partition has already: the leader's half of the idempotent producer (KIP-98, KIP-360).

For each producer id: the newest epoch, and the last `BATCHES_KEPT` batches with their sequences and places. A batch is

  - new, when its first sequence follows the last one, or when it is the first of a producer or of a new epoch and has
    sequence 0;
  - a repeat, when its sequences were appended before: acknowledged with its place, or, when that is forgotten, with
    place -1. Since only what follows is ever appended, everything at or before the last sequence was appended;
  - early, when something before it is missing: OutOfOrderSequenceNumberError, and UnknownProducerIdError when nothing
    is known of the producer: it sends what is missing, or takes a new id;
  - of a fenced producer, when a newer epoch was seen: InvalidProducerEpochError.

A name that an application gave to a batch (`zbroker.record.producers`) is known for the topic's window of time, and as
long as there are not more of them than the window holds.

Invariant: the state is a function of the batches of the log in their order, but for what expired. So leader, followers
and a restarted process come to the same one. What is judged is not noted: whoever appends notes it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

from zbroker.errors import (
    BrokerError,
    InvalidProducerEpochError,
    OutOfOrderSequenceNumberError,
    UnknownProducerIdError,
)
from zbroker.record.layout import BatchHeader
from zbroker.record.producers import APPLICATION_IDS, SEQUENCES, last_sequence, steps_between

BATCHES_KEPT: Final = 16
PRODUCERS_MAX: Final = 100_000
FORGOTTEN: Final = -1
FOREVER_MS: Final = 1 << 63


class Appended(NamedTuple):
    """A batch of a producer in the log: its first and last sequence, its place, and the offset behind it."""

    first_sequence: int
    last_sequence: int
    base_offset: int
    next_offset: int


_make_appended: Callable[[tuple[int, int, int, int]], Appended] = partial(tuple.__new__, Appended)


class Producer:
    """What is known of one producer id. `used_ms` is wall time."""

    __slots__ = ("batches", "epoch", "used_ms")

    def __init__(self, epoch: int, batches: list[Appended], used_ms: int) -> None:
        self.epoch = epoch
        self.batches = batches
        self.used_ms = used_ms

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Producer) and (self.epoch, self.batches) == (other.epoch, other.batches)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Producer(epoch={self.epoch}, batches={self.batches})"


class Sequences:
    """See the module. Ids in the order of their last use, the longest unused first."""

    def __init__(
        self,
        *,
        expiration_ms: int,
        window_ms: int,
        window_entries_max: int,
        producers_max: int = PRODUCERS_MAX,
    ) -> None:
        self._expiration_ms = expiration_ms
        self._window_ms = window_ms
        self._window_entries_max = window_entries_max
        self._producers_max = producers_max
        self._producers: dict[int, Producer] = {}
        self._newest = -1  # the id that was used last, which is the last of `_producers`
        self._names: dict[int, tuple[int, int, int]] = {}  # id of a name -> base offset, next offset, wall time in ms
        self.now_ms = 0  # what `judge` takes for the time: the last one that was noted or ticked
        self.version = 0

    def configure(self, *, expiration_ms: int, window_ms: int, window_entries_max: int) -> None:
        """Take changed settings."""
        self._expiration_ms = expiration_ms
        self._window_ms = window_ms
        self._window_entries_max = window_entries_max

    def __len__(self) -> int:
        return len(self._producers) + len(self._names)

    def producers(self) -> Iterator[tuple[int, Producer]]:
        """(id, what is known of it), the longest unused first; names of batches come as producers of one batch."""
        yield from self._producers.items()
        for name, (base_offset, next_offset, at_ms) in self._names.items():
            yield name, Producer(0, [Appended(0, 0, base_offset, next_offset)], at_ms)

    def is_newest(self, producer_id: int, next_offset: int) -> bool:
        """Whether the newest batch of an id, as far as it is known, ends there. Any thread may ask: it sees the state
        before or after a change."""
        if producer_id >= APPLICATION_IDS:
            name = self._names.get(producer_id)
            return name is not None and name[1] == next_offset
        producer = self._producers.get(producer_id)
        return producer is not None and producer.batches[-1].next_offset == next_offset

    def judge(self, batch: BatchHeader) -> tuple[int, int] | BrokerError | None:
        """None: new, append it. A pair: appended before, (base offset or -1, next offset). Else the error."""
        producer_id = batch.producer_id
        if producer_id >= APPLICATION_IDS:
            found = self._names.get(producer_id)
            if found is None or self.now_ms - found[2] > self._window_ms:
                return None
            return found[0], found[1]
        producer = self._producers.get(producer_id)
        if producer is None:
            if batch.base_sequence == 0:
                return None
            return UnknownProducerIdError(f"nothing is known of producer {producer_id}, and its sequence is not 0")
        if batch.producer_epoch != producer.epoch:
            return self._judge_epoch(batch, producer)
        last = producer.batches[-1]
        steps = steps_between(last.last_sequence, batch.base_sequence)
        if steps == 1:
            return None
        if steps > 1:
            text = f"sequence {batch.base_sequence} of producer {producer_id} after {last.last_sequence}"
            return OutOfOrderSequenceNumberError(text)
        return _place_of(batch, producer)

    def _judge_epoch(self, batch: BatchHeader, producer: Producer) -> BrokerError | None:
        if batch.producer_epoch < producer.epoch:
            text = f"epoch {batch.producer_epoch} of producer {batch.producer_id}; {producer.epoch} is in use"
            return InvalidProducerEpochError(text)
        if batch.base_sequence == 0:
            return None
        return OutOfOrderSequenceNumberError(f"a new epoch of producer {batch.producer_id} begins with sequence 0")

    def note(self, batch: BatchHeader, base_offset: int, now_ms: int) -> None:
        """A batch with a producer id was appended at `base_offset`."""
        self.version += 1
        self.now_ms = now_ms
        producer_id = batch.producer_id
        next_offset = base_offset + batch.last_offset_delta + 1
        if producer_id >= APPLICATION_IDS:
            self._names.pop(producer_id, None)
            self._names[producer_id] = (base_offset, next_offset, now_ms)
            while len(self._names) > self._window_entries_max:
                del self._names[next(iter(self._names))]
            return
        last = last_sequence(batch.base_sequence, batch.last_offset_delta + 1)
        appended = _make_appended((batch.base_sequence, last, base_offset, next_offset))
        producers = self._producers
        producer = producers.get(producer_id)
        if producer is None or producer.epoch != batch.producer_epoch:
            producers.pop(producer_id, None)
            producers[producer_id] = Producer(batch.producer_epoch, [appended], now_ms)
            if len(producers) > self._producers_max:
                del producers[next(iter(producers))]
        else:
            producer.batches.append(appended)
            if len(producer.batches) > BATCHES_KEPT:
                del producer.batches[:-BATCHES_KEPT]
            producer.used_ms = now_ms
            if producer_id != self._newest:
                producers[producer_id] = producers.pop(producer_id)
        self._newest = producer_id

    def restore(self, producer_id: int, producer: Producer) -> None:
        """Take over what a snapshot says of an id. The longest unused come first."""
        if producer_id >= APPLICATION_IDS:
            only = producer.batches[-1]
            self._names[producer_id] = (only.base_offset, only.next_offset, producer.used_ms)
        else:
            self._producers[producer_id] = producer
            self._newest = -1
        self.now_ms = max(self.now_ms, producer.used_ms)

    @property
    def quiet_until_ms(self) -> int:
        """Until then `expire` does nothing, unless a batch is noted. Names of batches want it called all the time."""
        if self._names:
            return 0
        oldest = next(iter(self._producers.values()), None)
        return FOREVER_MS if oldest is None else oldest.used_ms + self._expiration_ms

    def expire(self, now_ms: int) -> int:
        """Forget who was not heard of for long enough, and names beyond their window; how many went."""
        self.now_ms = now_ms
        before = len(self)
        while self._producers:
            first = next(iter(self._producers))
            if now_ms - self._producers[first].used_ms <= self._expiration_ms:
                break
            del self._producers[first]
        while self._names:
            name = next(iter(self._names))
            if now_ms - self._names[name][2] <= self._window_ms:
                break
            del self._names[name]
        gone = before - len(self)
        self.version += bool(gone)
        return gone


def _place_of(batch: BatchHeader, producer: Producer) -> tuple[int, int]:
    """The place of a batch whose first sequence is not above the last one appended."""
    for known in reversed(producer.batches):
        if known.first_sequence == batch.base_sequence:
            return known.base_offset, known.next_offset
    # It lies before those that are remembered, or was cut into other batches: there all the same.
    oldest = producer.batches[0]
    is_older = steps_between(oldest.first_sequence, batch.base_sequence) < 0
    return FORGOTTEN, oldest.next_offset if is_older else producer.batches[-1].next_offset


assert SEQUENCES == 1 << 31
