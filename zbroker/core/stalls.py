"""Which members of groups stand still while their lag grows: decided from what is seen now and then, without I/O.

Guarantees: a partition is reported once when its member has neither read nor committed anything for the time that is
given, although more was written meanwhile, and once more when it goes on. A partition that nobody writes to, and one
whose member is another now, begin anew.
"""

from __future__ import annotations

from typing import NamedTuple

from zbroker.clock import NS_PER_MS
from zbroker.core.sticky import Key


class Reading(NamedTuple):
    """A member's partition as it is seen now. `progress`: the furthest that it has read or committed."""

    group_id: str
    member_id: str
    key: Key
    progress: int
    log_end: int

    @property
    def lag(self) -> int:
        """Records that wait."""
        return max(0, self.log_end - self.progress)


class Change(NamedTuple):
    """Something to report: that a partition stands still since `still_ms`, or with None that it goes on."""

    reading: Reading
    still_ms: int | None


class _Mark(NamedTuple):
    reading: Reading
    since_ns: int
    is_told: bool


class Stalls:
    """See the module."""

    def __init__(self) -> None:
        self._marks: dict[tuple[str, Key], _Mark] = {}

    def see(self, reading: Reading, now_ns: int, after_ms: int) -> Change | None:
        """Take what is seen of one partition; what is to be reported of it."""
        place = (reading.group_id, reading.key)
        mark = self._marks.get(place)
        is_same = mark is not None and mark.reading.member_id == reading.member_id
        if mark is None or not is_same or mark.reading.progress != reading.progress or not reading.lag:
            self._marks[place] = _Mark(reading, now_ns, False)
            return Change(reading, None) if mark is not None and mark.is_told and is_same else None
        still_ms = (now_ns - mark.since_ns) // NS_PER_MS
        if mark.is_told or still_ms < after_ms or reading.log_end <= mark.reading.log_end:
            return None
        self._marks[place] = mark._replace(is_told=True)
        return Change(reading, still_ms)

    def keep(self, places: set[tuple[str, Key]]) -> None:
        """Forget all others: nobody reads them any more."""
        for place in self._marks.keys() - places:
            del self._marks[place]
