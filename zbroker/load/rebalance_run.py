"""What groups cost, as figures: `zbroker bench rebalance`, `python -m bench.groups`."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Final

from zbroker.client.admin import AdminClient, NewTopic
from zbroker.load import rebalance
from zbroker.load.group_crew import GroupCrew
from zbroker.load.results import Figure
from zbroker.load.results import figure as row
from zbroker.testing import Broker

CONFIG: Final = {"supervisor": {"crash_loop_window_ms": 1}}
"""Of a broker whose coordinator is killed many times, and started again each time."""
Advance = Callable[[int], None]


class GroupBench:
    """A broker, and a directory for what the members write."""

    def __init__(
        self, broker: Broker, directory: Path, *, members: int, partitions: int, advance: Advance = lambda _: None
    ) -> None:
        """`members` and `partitions`: of the groups whose members, or coordinator, are killed."""
        self._members = members
        self._partitions = partitions
        self._advance = advance
        self._broker = broker
        self._directory = directory
        self.servers = broker.bootstrap_servers
        self._random = random.Random(1)

    def _crew(self, topic: str, partitions: int) -> GroupCrew:
        return rebalance.crew_of(self._directory / topic, self.servers, topic, partitions, "g")

    def _make(self, topic: str, partitions: int) -> str:
        with AdminClient(bootstrap_servers=self.servers) as admin:
            admin.create_topics([NewTopic(topic, num_partitions=partitions)])
        return topic

    def joining(self, rounds: int) -> list[Figure]:
        """How long a new group's first record takes."""
        rebalance.make_filled(self.servers, "joined", 4, 100)
        rebalance.join_latency(self.servers, "joined", min(20, rounds))
        found = rebalance.join_latency(self.servers, "joined", rounds)
        remote = rebalance.join_latency(self.servers, "joined", max(1, rounds // 4), transport="zmq")
        return [
            row("Consumer(group_id=...) to the first record, p50", statistics.median(found), "ms", target="< 20"),
            row("the same, p99", _p99(found), "ms"),
            row("the same by messages alone, p50", statistics.median(remote), "ms"),
        ]

    def takeovers(self, kills: int) -> list[Figure]:
        """How long a killed member's partitions are read by nobody."""
        topic = self._make("killed", self._partitions)
        with self._crew(topic, self._partitions) as crew:
            found = rebalance.takeovers(self.servers, crew, topic, self._members, kills, self._random, self._advance)
        return [
            row(f"{kills} kills of a member: its partitions read by another, p50", statistics.median(found), "ms",
                target="< 10"),
            row("the same, p99", _p99(found), "ms", target="< 50"),
            row("the same, longest", found[-1], "ms"),
        ]  # fmt: skip

    def restarts(self, members: int) -> list[Figure]:
        """What restarts disturb."""
        rows = []
        for is_static in (False, True):
            what = "static members" if is_static else "members"
            topic = self._make("static" if is_static else "rolled", 2 * members)
            with self._crew(topic, 2 * members) as crew:
                found = rebalance.rolling_restart(self.servers, crew, topic, members, static=is_static)
            name = f"rolling restart of {members} {what}"
            rows += [
                row(f"{name}: records", found.records, ""),
                row(f"{name}: records read twice", found.twice, "", target="<= 0"),
                row(f"{name}: records left out", found.left_out, "", target="<= 0"),
            ]
            if is_static:
                rows.append(row(f"{name}: revocations", found.revocations, "", target="<= 0"))
            else:
                rows.append(row(f"{name}: needless revocations", found.needless, "", target="<= 0"))
                rows.append(row(f"{name}: revocations for the newcomers' shares", found.revocations, ""))
        return rows

    def commits(self, records: int, rounds: int) -> list[Figure]:
        """What a commit for each record costs."""
        rebalance.make_filled(self.servers, "committed", 1, records)
        found = rebalance.commit_rates(self.servers, "committed", records, rounds)
        ratio = found.with_commits_per_s / found.without_per_s
        without = f"without, {found.without_per_s / 1e6:.2f} M/s"
        return [
            row("commit of a record, the call", found.call_us, "us", target="< 1"),
            row("consume as a group, a commit for each record", found.with_commits_per_s / 1e6, "M/s", without, ratio,
                ">= 0.60"),
        ]  # fmt: skip

    def coordinator_kills(self, kills: int) -> list[Figure]:
        """What the coordinator's death amid a rebalance does."""
        topic = self._make("headless", self._partitions)

        def kill() -> None:
            self._broker.kill("coordinator")

        with self._crew(topic, self._partitions) as crew:
            found = rebalance.coordinator_kills(self.servers, crew, topic, kill, kills, self._random)
        return [
            row(f"{kills} kills of the coordinator amid a rebalance: shared again, p50",
                statistics.median(found.stable_ms), "ms"),
            row("the same, longest", found.stable_ms[-1], "ms", target="< 1000"),
            row("the same: partitions with two owners", found.double_owners, "", target="<= 0"),
            row("the same: commits that went back", found.commits_back, "", target="<= 0"),
        ]  # fmt: skip


def _p99(found: list[float]) -> float:
    return found[min(len(found) - 1, len(found) * 99 // 100)]
