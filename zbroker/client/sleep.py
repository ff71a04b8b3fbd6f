"""How a consumer sleeps: a wait with each worker whose partitions it follows, and one place where news come in.

Guarantees: a worker that has something at one of the named offsets answers at once, or rings, so no record is slept
through; a wait that is open is not sent again. Where no lane can be had, the boards are looked at every few
milliseconds. A consumer whose last sleeps were short looks at the boards for `SPIN_US` first, if a core is free.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import starmap
from typing import Any, Final

from zbroker.client.assigned import Assigned
from zbroker.client.connection import Connection
from zbroker.client.settings import ConsumerSettings
from zbroker.clock import NS_PER_MS
from zbroker.errors import RequestTimedOutError
from zbroker.shm.spin import SpinWatch
from zbroker.wire.codec import encode
from zbroker.wire.layout import FLAG_KEEP, WAITED, Api
from zbroker.wire.messages import FetchPartition, FetchRequest

SPIN_US: Final = 50
LOOK_MS: Final = 5  # between two looks at the boards where a wait cannot be left, or would not say what is awaited
REFUSED_NS: Final = 20 * NS_PER_MS  # after a worker refused a wait
TELL_NS: Final = 1_000 * NS_PER_MS  # a reader that is never at the end says this often where it is
WAITED_MAX: Final = 1_500  # partitions of one wait: they fit into a consumer's lane
_WAKE: Final = b"\0\0\0\0"

Awaited = list[tuple[int, int, int]]  # topic id, partition, offset


class WakeableConnection(Connection):
    """A connection whose pump any thread can wake."""

    def wake(self) -> None:
        """Make the pump that sleeps, or the next one, look around at once."""
        with self._lock:
            if self.is_closed:
                return
            try:
                os.write(self._doorbell.write_fd, _WAKE)
            except BlockingIOError:
                pass  # The pipe is full: the pump is awake, or about to be.

    def has_lane(self, target: int) -> bool:
        """Whether requests to this process go by a lane now."""
        lane = self._lanes.get(target)
        return lane is not None and not lane.is_closed_by_worker


class _Wait:
    """A wait that is open with one worker."""

    __slots__ = ("awaited", "correlation")

    def __init__(self, awaited: Awaited) -> None:
        self.awaited = awaited
        self.correlation = 0

    def covers(self, awaited: Awaited) -> bool:
        """Whether this wait ends a sleep for these as well: the worker goes on with it from append to append."""
        known = self.awaited
        return len(known) == len(awaited) and all(
            old[:2] == new[:2] and old[2] <= new[2] for old, new in zip(known, awaited, strict=True)
        )


class Sleep:
    """See the module."""

    def __init__(self, connection: WakeableConnection, settings: ConsumerSettings) -> None:
        self._connection = connection
        self._wait_ms = max(1, settings.fetch_max_wait_ms)
        self._waits: dict[int, _Wait] = {}
        self._refused_until_ns: dict[int, int] = {}
        self._has_news = False
        self._wait_flags = FLAG_KEEP
        self._spin = SpinWatch(SPIN_US, len(os.sched_getaffinity(0)))
        self._tell_ns = time.monotonic_ns() + TELL_NS
        self.is_woken = False

    def note(self) -> None:
        """Something came: whoever sleeps should look."""
        self._has_news = True

    def wake(self) -> None:
        """End the sleep that is under way, or the next one. Any thread."""
        self.is_woken = True
        self._connection.wake()

    def until_news(self, partitions: Sequence[Assigned], timeout_ms: float) -> bool:
        """Sleep until something may be there for one of the partitions, at most `timeout_ms`. Returns whether it may
        be: without a sleep only when an answer has come."""
        if timeout_ms <= 0:
            has_news = self._connection.try_pump() > 0 or self._has_news
            self._has_news = False
            return has_news
        watched = watched_locally(partitions)
        if watched:
            looks = [(one.source.has_more, one.awaited) for one in watched if one.source]
            has_more = partial(looks[0][0], looks[0][1]) if len(looks) == 1 else partial(_has_more, looks)
            if self._spin_for(has_more):
                self._connection.try_pump()  # Answers must not wait for a moment when there are no records.
                return True
            timeout_ms = min(timeout_ms, self._arm(watched))
            self._connection.has_more = has_more
        try:
            if not self._has_news:
                self._connection.wait_for(self._is_over, timeout_ms)
        finally:
            self._connection.has_more = bool
        self._spin.note_work()
        self._has_news = False
        return True

    def tell(self, partitions: Sequence[Assigned]) -> None:
        """Let the workers know now and then how far this reader is, which never waits because there always is more.

        It shows on their boards, so that a backlog is seen. Costs a look at the clock, and a request of 0 bytes to each
        worker every `TELL_NS`; nothing is waited for.
        """
        now_ns = time.monotonic_ns()
        if now_ns < self._tell_ns:
            return
        self._tell_ns = now_ns + TELL_NS
        for leader, group in _by_leader(watched_locally(partitions)).items():
            wanted = [FetchPartition(one.topic_id, one.tp.partition, one.offset or 0, 0) for one in group[:WAITED_MAX]]
            body = encode(FetchRequest(0, 0, 0, wanted))
            self._connection.submit(leader, Api.FETCH, [body], lambda *_: None, timeout_ms=TELL_NS // NS_PER_MS)
        self._connection.try_pump()

    def _is_over(self) -> bool:
        return self._has_news or self.is_woken or self._connection.has_more()

    def _spin_for(self, has_more: Callable[[], bool]) -> bool:
        """Look at the boards, for a moment when that has paid off lately. Returns whether something is there."""
        if has_more():
            return True
        if self._spin.watch(lambda: has_more() or self._is_over()):
            self._spin.note_work()
            return has_more()
        return False

    def _arm(self, watched: Sequence[Assigned]) -> float:
        """Leave waits with the workers. Returns for how many ms sleeping is safe."""
        by_leader = _by_leader(watched)
        for leader in self._waits.keys() - by_leader.keys():
            self._connection.forget(self._waits.pop(leader).correlation)
        safe_ms = float(self._wait_ms)
        if any(_held_back(one) for one in watched):
            safe_ms = LOOK_MS
        for leader, group in by_leader.items():
            if len(group) > WAITED_MAX or not self._leave(leader, group[:WAITED_MAX]):
                safe_ms = LOOK_MS
        return safe_ms

    def _leave(self, leader: int, group: Sequence[Assigned]) -> bool:
        """Leave a wait with one worker, unless it has the same already. False: it takes none."""
        awaited = [(one.topic_id, one.tp.partition, max(one.awaited, _held_back(one))) for one in group]
        wait = self._waits.get(leader)
        connection = self._connection
        if wait is not None:
            if wait.covers(awaited):
                return True
            # The worker forgets the older one by itself when the next one of this lane comes.
            connection.forget(self._waits.pop(leader).correlation)
        if time.monotonic_ns() < self._refused_until_ns.get(leader, 0):
            return False
        if not connection.has_lane(leader):
            source = group[0].source
            if source is None or not source.is_leader_alive() or connection.lane(leader) is None:
                self._refused_until_ns[leader] = time.monotonic_ns() + REFUSED_NS
                return False
        wait = self._waits[leader] = _Wait(awaited)
        body = b"".join(starmap(WAITED.pack, awaited))

        def take(error: int, _: list[Any]) -> None:
            if self._waits.get(leader) is wait:
                del self._waits[leader]
            if error not in (0, RequestTimedOutError.code):
                self._refused_until_ns[leader] = time.monotonic_ns() + REFUSED_NS
            self.note()

        wait.correlation = connection.submit(
            leader, Api.WAIT, [body], take, flags=self._wait_flags, timeout_ms=self._wait_ms
        )
        return True


def watched_locally(partitions: Sequence[Assigned]) -> list[Assigned]:
    """Those whose files are read here."""
    return [one for one in partitions if one.source is not None and one.source.is_local and one.offset is not None]


def _has_more(looks: Sequence[tuple[Callable[[int], bool], int]]) -> bool:
    return any(has_more(offset) for has_more, offset in looks)


def _held_back(one: Assigned) -> int:
    """Where it is not 0, records come by a sync: the board has to be looked at, and the wait, which an append ends, is
    for what follows them."""
    assert one.source is not None
    assert one.offset is not None
    return one.source.held_back(one.offset)


def _by_leader(watched: Sequence[Assigned]) -> dict[int, list[Assigned]]:
    found: dict[int, list[Assigned]] = {}
    for one in watched:
        assert one.source is not None
        found.setdefault(one.source.leader, []).append(one)
    return found
