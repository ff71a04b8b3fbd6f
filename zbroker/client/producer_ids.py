"""A producer's identities: asked of the coordinator when a batch needs one, and when one must be left."""

from __future__ import annotations

from zbroker import ids
from zbroker.client.connection import Connection
from zbroker.client.sequences import Identity
from zbroker.errors import ProducerFencedError
from zbroker.wire.codec import decode, encode
from zbroker.wire.copy_messages import InitProducerId, ProducerId
from zbroker.wire.layout import Api


class ProducerIds:
    """The identities of one producer by their generation. One thread at a time asks for them."""

    def __init__(self, connection: Connection, transactional_id: str) -> None:
        self._connection = connection
        self._name = transactional_id
        self._known: list[Identity] = []

    def get(self, generation: int, timeout_ms: int) -> Identity:
        """The identity of a generation. Raises the coordinator's error, RequestTimedOutError, or, for a second one of a
        named producer, ProducerFencedError: a newer epoch of the name might fence its successor."""
        while len(self._known) <= generation:
            if self._known and self._name:
                raise ProducerFencedError(
                    "a record may be stored or not, or the broker lost what it had acknowledged: "
                    f"close this producer and open {self._name!r} again"
                )
            request = encode(InitProducerId(self._name))
            frames = self._connection.request(ids.COORDINATOR, Api.INIT_PRODUCER_ID, [request], timeout_ms=timeout_ms)
            answer = decode(ProducerId, frames[0])
            self._known.append(Identity(answer.producer_id, answer.producer_epoch, len(self._known)))
        return self._known[generation]
