"""Between a decision and its consequences: nothing follows from entries that are not in the metadata log.

Guarantees: entries change the image when the log has them, and only then; what follows from them runs afterwards; when
the log cannot take them nothing has happened, and whoever decided them says what that means. One append at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from zbroker.core.effects import AppendEntries, Effect
from zbroker.core.entries import AnyEntry
from zbroker.core.image import Image
from zbroker.errors import BrokerError

Then = Callable[[int], list[Effect]]
Otherwise = Callable[[BrokerError, int], list[Effect]]


class _Append(NamedTuple):
    entries: list[AnyEntry]
    then: Then
    otherwise: Otherwise


class Journal:
    """See the module."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._append: _Append | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether entries are on their way to the log."""
        return self._append is not None

    def append(
        self, entries: list[AnyEntry], *, durable: bool, then: Then, otherwise: Otherwise = lambda *_: []
    ) -> list[Effect]:
        """The effect that writes entries down; `then(now_ns)` or `otherwise(error, now_ns)` gives what follows."""
        assert entries, "nothing to append"
        assert self._append is None, "an append after an append: the first one's consequences must come before"
        self._append = _Append(entries, then, otherwise)
        return [AppendEntries(entries, durable)]

    def appended(self, now_ns: int) -> list[Effect]:
        """The log has the entries."""
        done, self._append = self._append, None
        assert done is not None
        for entry in done.entries:
            self._image.apply(entry)
        return done.then(now_ns)

    def failed(self, error: BrokerError, now_ns: int) -> list[Effect]:
        """The log has none of the entries."""
        given_up, self._append = self._append, None
        assert given_up is not None
        return given_up.otherwise(error, now_ns)
