"""The wall clock without its last jump forward: what retention goes by, which cannot be undone.

Guarantees: a jump forward counts after it has lasted for `SETTLED_NS`, one back at once; between jumps the time is the
wall clock's. What happened before the first call is not known: a clock that had jumped by then is believed.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from zbroker.clock import NS_PER_MS

SETTLED_NS: Final = 3_600 * 1_000 * NS_PER_MS


class SettledTime:
    """See the module. Asked now and then; the time between two calls is for nobody to judge."""

    def __init__(self) -> None:
        self._ahead: deque[tuple[int, int]] = (
            deque()
        )  # (last seen at ns, wall clock minus monotonic clock in ms), rising

    def now_ms(self, wall_ms: int, now_ns: int) -> int:
        """The wall time to go by, given both clocks."""
        ahead, offset_ms = self._ahead, wall_ms - now_ns // NS_PER_MS
        while ahead and ahead[-1][1] >= offset_ms:
            ahead.pop()
        ahead.append((now_ns, offset_ms))
        while ahead[0][0] <= now_ns - SETTLED_NS:
            ahead.popleft()
        return ahead[0][1] + now_ns // NS_PER_MS
