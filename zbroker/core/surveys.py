"""Asking copies how far they are before one of them is elected: after a reboot, and when a person forces an election.

A power cut takes what was not synced from any copy, so being in sync before it proves nothing. Guarantees: of the
copies that were in sync or eligible, the one with the highest (last epoch, log end) is elected (KIP-966's order), when
all have said it, or, `PATIENCE_MS` later, when so many have that each record acknowledged with acks=fsync is on one of
them. With fewer nobody is elected, and a person is told. A forced election takes whatever copy is there.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from zbroker.clock import NS_PER_MS
from zbroker.core.cluster_state import ClusterState, Report, Survey
from zbroker.core.effects import Effect, Warn
from zbroker.core.image import Copy, Partition
from zbroker.wire.inner_messages import GrantResult, PartitionGrant

PATIENCE_MS: Final = 2_000
FORCED_PATIENCE_MS: Final = 500
TELL_AFTER_MS: Final = 10_000
ASK_AGAIN_MS: Final = 2_000  # a process that could not open its copy: a full disk has room again, sooner or later


class Winner(NamedTuple):
    """The copy to elect, and those that are exactly as far."""

    copy: Copy
    isr: list[int]
    is_unclean: bool


class Surveys:
    """See the module."""

    def __init__(self, state: ClusterState) -> None:
        self._state = state

    def is_needed(self, partition: Partition) -> bool:
        """Whether a partition's copies must be asked before one is elected."""
        if partition.key in self._state.surveys:
            return True
        return partition.is_unsure and len(partition.candidates) > 1

    def force(self, partition: Partition, now_ns: int) -> None:
        """Any copy may be elected from now on."""
        self._state.surveys[partition.key] = Survey(now_ns, True)

    def ask(self, partition: Partition, now_ns: int) -> list[Effect]:
        """Ask the live ones that were not asked yet."""
        state = self._state
        survey = state.surveys.setdefault(partition.key, Survey(now_ns, False))
        asked = []
        for copy in self._pool(partition, survey):
            process = state.live(copy.owner)
            is_due = now_ns >= survey.not_before_ns.get(copy.copy_id, 0)
            if process is not None and is_due and survey.asked.get(copy.copy_id) != process.incarnation:
                survey.asked[copy.copy_id] = process.incarnation
                asked.append((partition, copy, -1))
        effects = state.send(asked)
        if now_ns - survey.since_ns >= TELL_AFTER_MS * NS_PER_MS and not survey.is_told:
            survey.is_told = True
            effects.append(self._tell(partition, survey))
        return effects

    def _tell(self, partition: Partition, survey: Survey) -> Effect:
        missing = [copy.copy_id for copy in self._pool(partition, survey) if copy.copy_id not in survey.reports]
        topic = self._state.image.topics[partition.topic_id].name
        return Warn(
            "after a reboot a partition waits for copies; zbroker cluster elect-leaders --unclean goes on without them",
            {"topic": topic, "partition": partition.partition, "copies": ",".join(map(str, missing))},
        )

    def _pool(self, partition: Partition, survey: Survey) -> list[Copy]:
        return partition.copies if survey.is_forced else partition.candidates

    def reported(self, incarnation: int, answers: list[tuple[PartitionGrant, GrantResult | None]], now_ns: int) -> None:
        """What a process said; None, or an error: it is asked again."""
        for grant, result in answers:
            key = (grant.topic_id, grant.partition)
            survey = self._state.surveys.get(key)
            if survey is None or survey.asked.get(grant.copy_id) != incarnation:
                continue
            if result is None or (result.error and not result.is_suspect):
                del survey.asked[grant.copy_id]
                if result is not None:
                    survey.not_before_ns[grant.copy_id] = now_ns + ASK_AGAIN_MS * NS_PER_MS
                continue
            if result.is_suspect:
                continue  # a damaged copy counts as none
            survey.reports[grant.copy_id] = Report(incarnation, result.last_epoch, result.log_end)
            self._state.want_election(key)

    def winner(self, partition: Partition, now_ns: int) -> Winner | None:
        """The copy to elect, if enough is known."""
        state, survey = self._state, self._state.surveys[partition.key]
        pool = self._pool(partition, survey)
        reports = {copy.copy_id: survey.reports[copy.copy_id] for copy in pool if copy.copy_id in survey.reports}
        waited_ms = (now_ns - survey.since_ns) // NS_PER_MS
        if len(reports) < len(pool):
            needed = len(pool) - state.min_in_sync(partition) + 1
            is_enough = len(reports) >= needed and waited_ms >= PATIENCE_MS
            if survey.is_forced:
                is_enough = bool(reports) and waited_ms >= FORCED_PATIENCE_MS
            if not is_enough:
                return None
        here = [copy for copy in pool if copy.copy_id in reports and self._is_here(copy, reports[copy.copy_id])]
        if not here:
            return None
        ends = {copy_id: (report.last_epoch, report.log_end) for copy_id, report in reports.items()}
        highest = max(ends.values())
        best = [copy for copy in here if ends[copy.copy_id] == highest]
        if not best:
            return None  # the one that is furthest has died since: it comes back, and says so again
        eligible = {*partition.isr, *partition.elr}
        is_unclean = survey.is_forced and best[0].copy_id not in eligible
        return Winner(best[0], [copy.copy_id for copy in best], is_unclean)

    def _is_here(self, copy: Copy, report: Report) -> bool:
        process = self._state.live(copy.owner)
        return process is not None and process.incarnation == report.incarnation
