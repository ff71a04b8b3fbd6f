"""Who a producer is: ids that are handed out once, over all restarts and power cuts, and the epochs of named ones.

An unnamed producer gets an id from a block. The metadata log says up to where blocks were taken, on disk before the
first id of a block is given away; what is left of a block when the coordinator ends is never used. A named producer
keeps its id and gets the next epoch, on disk before it hears of it: whoever used the name before is then older, and a
leader that has seen the newer epoch refuses it.
"""

from __future__ import annotations

from typing import Final

from zbroker.core import effects as do
from zbroker.core.cluster_events import Asked
from zbroker.core.cluster_state import ClusterState
from zbroker.core.effects import Effect
from zbroker.core.entries import AnyEntry, ProducerIds, TransactionalId
from zbroker.core.journal import Journal
from zbroker.errors import InvalidRequestError, PolicyViolationError
from zbroker.record.producers import APPLICATION_IDS
from zbroker.wire.copy_messages import InitProducerId, ProducerId

BLOCK_IDS: Final = 1_000
EPOCH_MAX: Final = 2**15 - 1
NAME_LENGTH_MAX: Final = 255
NAMES_MAX: Final = 10_000


class ProducerIdBlocks:
    """See the module."""

    def __init__(self, state: ClusterState, journal: Journal) -> None:
        self._state = state
        self._journal = journal
        self._next = self._end = 0  # what is left of the block that this coordinator took

    def init(self, event: Asked, asked: InitProducerId) -> list[Effect]:
        """Answer with an id and an epoch. Raises InvalidRequestError, PolicyViolationError for one name too many."""
        name, image = asked.transactional_id, self._state.image
        if not name:
            entries, producer_id = self._new_id()
            return self._write(event, entries, ProducerId(producer_id, 0))
        if len(name) > NAME_LENGTH_MAX:
            raise InvalidRequestError(f"transactional_id: {len(name)} characters; at most {NAME_LENGTH_MAX}")
        entries = []
        producer_id, epoch = image.producers.get(name, (-1, EPOCH_MAX))
        if epoch < EPOCH_MAX:
            epoch += 1
        elif producer_id < 0 and len(image.producers) >= NAMES_MAX:
            raise PolicyViolationError(f"there are {NAMES_MAX} transactional ids already")
        else:
            entries, producer_id = self._new_id()
            epoch = 0
        return self._write(event, [*entries, TransactionalId(name, producer_id, epoch)], ProducerId(producer_id, epoch))

    def _new_id(self) -> tuple[list[AnyEntry], int]:
        """An id, and what must be written down before it is given away. One that is not given away is never used."""
        entries: list[AnyEntry] = []
        if self._next == self._end:
            # Not what is left when the append fails: the log has not got it, and a later block begins where this did.
            first = self._state.image.next_producer_id
            assert first + BLOCK_IDS <= APPLICATION_IDS, "no producer id is left"
            entries.append(ProducerIds(first + BLOCK_IDS))
            return entries, first
        self._next += 1
        return entries, self._next - 1

    def _write(self, event: Asked, entries: list[AnyEntry], answer: ProducerId) -> list[Effect]:
        reply = do.Reply(event.request, answer)
        if not entries:
            return [reply]

        def written(_: int) -> list[Effect]:
            if isinstance(entries[0], ProducerIds):
                self._next, self._end = answer.producer_id + 1, entries[0].next_producer_id
            return [reply]

        return self._journal.append(
            entries,
            durable=True,
            then=written,
            otherwise=lambda error, _: [do.Reply(event.request, None, error.code, error.wire_text)],
        )
