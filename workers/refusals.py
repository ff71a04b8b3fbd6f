"""Whose batches were refused lately, so that a batch cannot be overtaken by the next of the same producer.

A producer without a number has several batches on their way and cannot take them back. When one is refused with an
error that passes, the next would be appended before the first is sent again.

Guarantees: after such a refusal every later batch of that sender is refused with the same error, until one says that
nothing else of it is under way (FLAG_FIRST). At most `SENDERS_MAX` senders are remembered, the newest. Numbered
producers need none of this: their sequences say what is missing.
"""

from __future__ import annotations

from typing import Final

from zbroker.errors import BrokerError
from zbroker.wire.layout import FLAG_FIRST
from zbroker.workers.request import Request, Route

SENDERS_MAX: Final = 1_024
ACKS_NONE: Final = 0


class Refusals:
    """See the module. One for each partition; falsy while nobody was refused."""

    __slots__ = ("_errors",)

    def __init__(self) -> None:
        self._errors: dict[Route, BrokerError] = {}

    def __len__(self) -> int:
        return len(self._errors)

    def note(self, request: Request, error: BrokerError) -> None:
        """A produce request of a producer without a number was refused."""
        if not error.retriable or request.header.acks == ACKS_NONE:
            return
        if len(self._errors) >= SENDERS_MAX:
            del self._errors[next(iter(self._errors))]
        self._errors[request.route] = error

    def check(self, request: Request) -> None:
        """Raise the error again while the sender has others under way."""
        error = self._errors.get(request.route)
        if error is None:
            return
        if not request.header.flags & FLAG_FIRST:
            raise error
        del self._errors[request.route]
