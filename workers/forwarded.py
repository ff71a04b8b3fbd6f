"""Which requests the router has forwarded and not seen answered, so that a process's end can be told to its askers.

Guarantees: a request is owed one answer, and who takes it from here (`answered`, `of_dead`) is the only one to do so.
A request that nobody answers, a PRODUCE with acks=0, is not kept. At most `OWED_MAX` are kept for one connection;
beyond it the oldest are forgotten, and their askers' own deadlines have to do. A request that is kept costs a store
when it goes and a `pop` when it is answered.

It does not outlive the router: who asked sees the router's end by itself.
"""

from __future__ import annotations

from itertools import islice
from typing import Final, TypeAlias

from zbroker.wire.layout import Api, Header

OWED_MAX: Final = 16_384
_FORGOTTEN_AT_ONCE: Final = OWED_MAX // 8  # to find a dict's oldest key again and again takes longer each time
_PRODUCE: Final = Api.PRODUCE  # looking a member up takes longer than comparing it
ACKS_NONE: Final = 0

_Owed: TypeAlias = dict[tuple[bytes, int], Header]  # (return address, correlation) -> what was asked


class Forwarded:
    """See the module. A connection is a process's routing id at the back socket."""

    def __init__(self) -> None:
        self._incarnations: dict[bytes, int] = {}
        self._owed: dict[bytes, _Owed] = {}

    def meet(self, connection: bytes, incarnation: int) -> None:
        """A process said hello on this connection, perhaps again."""
        self._incarnations[connection] = incarnation
        self._owed.setdefault(connection, {})

    def note(self, connection: bytes, return_address: bytes, header: Header) -> None:
        """A request is on its way to a process that was met."""
        if header.api == _PRODUCE and header.acks == ACKS_NONE:
            return
        owed = self._owed[connection]
        if len(owed) >= OWED_MAX:
            for key in list(islice(owed, _FORGOTTEN_AT_ONCE)):
                del owed[key]
        owed[return_address, header.correlation] = header

    def answered(self, connection: bytes, return_address: bytes, correlation: int) -> bool:
        """An answer is about to be delivered. False: it was not owed, or not any more."""
        owed = self._owed.get(connection)
        return owed is not None and owed.pop((return_address, correlation), None) is not None

    def connections_of(self, incarnation: int) -> list[bytes]:
        """Where this incarnation said hello."""
        return [connection for connection, found in self._incarnations.items() if found == incarnation]

    def of_dead(self, connection: bytes) -> tuple[int, list[tuple[bytes, Header]]]:
        """The process's incarnation, and (return address, header) of all that will not be answered there any more, the
        oldest first. It is the caller's to answer, and the connection is forgotten."""
        incarnation = self._incarnations.pop(connection, 0)
        owed = self._owed.pop(connection, {})
        return incarnation, [(address, header) for (address, _), header in owed.items()]
