"""A memory of the ids that were seen lately, within a time and a number: the weak way to drop what comes twice.

Guarantees: an id is new at most once within `keep_ms`, as long as no more than `ids_max` others came since. It lives in
one process and dies with it: for notifications that may come twice now and then. Where a second effect costs money,
`Inbox` remembers in the same transaction as the effect.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from zbroker.clock import NS_PER_MS, Clock, HostClock


class RecentIds:
    """See the module. One thread at a time."""

    def __init__(self, keep_ms: float, *, ids_max: int = 1_000_000, clock: Clock | None = None) -> None:
        """Ids are remembered for `keep_ms`; the oldest goes first when there are more than `ids_max`."""
        if keep_ms <= 0 or ids_max < 1:
            raise ValueError(f"keep_ms={keep_ms}, ids_max={ids_max}: above 0")
        self._keep_ns = int(keep_ms * NS_PER_MS)
        self._ids_max = ids_max
        self._clock = clock or HostClock()
        self._seen: OrderedDict[Hashable, int] = OrderedDict()

    def __len__(self) -> int:
        self._forget(self._clock.now_ns())
        return len(self._seen)

    def add(self, identity: Hashable) -> bool:
        """Remember an id. Returns whether it is new; a known one is not remembered for longer."""
        now_ns = self._clock.now_ns()
        self._forget(now_ns)
        if identity in self._seen:
            return False
        if len(self._seen) == self._ids_max:
            self._seen.popitem(last=False)
        self._seen[identity] = now_ns
        return True

    def discard(self, identity: Hashable) -> None:
        """Forget an id at once: what it stood for failed, and is to be tried again. An unknown one is ignored."""
        self._seen.pop(identity, None)

    def _forget(self, now_ns: int) -> None:
        while self._seen and now_ns - next(iter(self._seen.values())) >= self._keep_ns:
            self._seen.popitem(last=False)
