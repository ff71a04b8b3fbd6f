"""T02: the simulator finds what it is there for: bugs that lose acknowledged records, each seeded by a subclass."""

from __future__ import annotations

import pytest

from tests.replication_log import MemoryLog
from tests.replication_node import Node
from tests.sim.test_replication_faults import run
from zbroker.core import follower_events as fv
from zbroker.core import partition_events as ev
from zbroker.core import partition_state, progress
from zbroker.core.follower import Follower
from zbroker.core.partition import Partition

SEEDS_MAX = 300
EVENTS = 3000


def violation_of(node_class: type[Node]) -> str:
    """What the first seed that finds the bug says about it."""
    for seed in range(SEEDS_MAX):
        try:
            run(seed, EVENTS, node_class)
        except AssertionError as error:
            cause = error.__cause__
            return f"{type(cause).__name__}, seed {seed}: {cause}"
    raise AssertionError(f"{SEEDS_MAX} seeds did not find the bug")


class AcksBeforeReplication(Partition):
    """Answers acks=all when the leader has it."""

    __slots__ = ()

    def _appended_before_others(self, event: ev.Appended, now_ns: int) -> list[ev.Effect]:
        effects = super()._appended_before_others(event, now_ns)
        effects += [ev.Acknowledge(request, base_offset) for _, base_offset, request in self._uncopied]
        self._uncopied.clear()
        return effects


def test_t02_an_acknowledgement_before_replication_is_found() -> None:
    class Bad(Node):
        partition_class = AcksBeforeReplication

    assert "cannot be read" in violation_of(Bad)


class TruncatesToHighWatermark(Follower):
    """As before KIP-101: a follower cuts to its high watermark whenever it gets a leader."""

    __slots__ = ()

    def handle(self, event: fv.Event, now_ns: int) -> list[fv.Effect]:
        if isinstance(event, fv.LeaderChanged) and self.high_watermark < self.log_end:
            self.leader_epoch = max(self.leader_epoch, event.leader_epoch)
            return self._cut(fv.Truncate(self.high_watermark))
        return super().handle(event, now_ns)


def test_t02_truncation_to_the_high_watermark_is_found() -> None:
    class Bad(Node):
        follower_class = TruncatesToHighWatermark

    assert "which readers could see" in violation_of(Bad)


class ChecksNoEpoch(Follower):
    """Takes what any leader says, of whatever epoch and subscription."""

    __slots__ = ()

    def _is_old(self, event: object) -> bool:
        return False


def test_t02_a_follower_without_epoch_check_is_found() -> None:
    class Bad(Node):
        follower_class = ChecksNoEpoch

    assert violation_of(Bad)  # the follower's own assertion, or two records under one epoch and offset


class JoinsTooSoon(progress.Progress):
    """Takes a copy into the ISR as soon as it is here, however much it lacks."""

    __slots__ = ()

    def _may_join(self, one: progress.Follower, high_watermark: int, now_ns: int) -> bool:
        return one.is_here


class WaitsForIsrOnly(progress.Progress):
    """Leaves out of the high watermark what is proposed and may be in sync already."""

    __slots__ = ()

    def _is_maximal(self, copy_id: int) -> bool:
        return copy_id in self.copies.isr

    def _may_join_soon(self, one: progress.Follower, now_ns: int) -> bool:
        return False

    def _may_join(self, one: progress.Follower, high_watermark: int, now_ns: int) -> bool:
        return one.is_here and one.log_end >= max(high_watermark, self._epoch_start)


class MovesBelowMinimum(progress.Progress):
    """Moves the high watermark with fewer in sync than the topic asks for."""

    __slots__ = ()

    def high_watermark(self, log_end: int, min_insync: int, now_ns: int) -> int:
        return super().high_watermark(log_end, 1, now_ns)


class TakesOverAtOnce(progress.Progress):
    """Counts a copy out of the ISR before the coordinator has agreed."""

    __slots__ = ()

    def _is_maximal(self, copy_id: int) -> bool:
        return copy_id in (self.proposed or self.copies.isr)


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (JoinsTooSoon, "readers saw"),
        (WaitsForIsrOnly, "of eligible"),
        (MovesBelowMinimum, "of eligible"),
        (TakesOverAtOnce, "of eligible"),
    ],
)
def test_t02_an_unclean_copy_in_the_isr_or_a_high_watermark_beyond_the_maximal_isr_is_found(
    bad: type[progress.Progress], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition_state, "Progress", bad)
    assert found in violation_of(Node)


def test_t02_a_copy_that_hides_what_it_lost_is_found() -> None:
    class Bad(Node):
        def start(self) -> None:
            super().start()
            self.is_suspect = False

    assert violation_of(Bad)


def test_t02_a_tail_that_is_completed_behind_another_history_is_found() -> None:
    class Bad(Node):
        def complete_from(self, predecessor: MemoryLog, epoch_end: int) -> None:
            for offset in range(max(self.log.log_end, predecessor.base), predecessor.log_end):
                if predecessor.at(offset)[0] >= self.log.last_epoch and offset == self.log.log_end:
                    self.log.append(predecessor.at(offset))

    assert "log matching" in violation_of(Bad)
