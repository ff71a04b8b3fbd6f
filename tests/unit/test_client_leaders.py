"""How a producer finds the leaders of its partitions, with a connection that the test plays."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from zbroker import ids
from zbroker.client.cluster_view import ClusterView
from zbroker.client.leaders import Leaders, Route
from zbroker.client.settings import ProducerSettings, read_settings
from zbroker.errors import LeaderNotAvailableError
from zbroker.wire.messages import MetadataReply, PartitionInfo, TopicInfo

OWN = ids.own_incarnation()


def view_of(*leaders: tuple[int, int, int]) -> ClusterView:
    """A view of topic "t": (leader, epoch, incarnation) of each partition."""
    partitions = [
        PartitionInfo(number, leader, epoch, incarnation, [], [], [], "", 0)
        for number, (leader, epoch, incarnation) in enumerate(leaders)
    ]
    return ClusterView(MetadataReply(1, "id", "", [], [TopicInfo("t", 7, 0, {}, partitions)]))


class PlayedConnection:
    """Knows `view`; learns the next of `answers` when it is asked."""

    def __init__(self, view: ClusterView) -> None:
        self.view = view
        self.answers: list[ClusterView] = []
        self.asked = 0
        self.shared_memory = True
        self.welcome = SimpleNamespace(router_incarnation=OWN)
        self.watched: list[int] = []

    def metadata(self, topics: Iterable[str] | None, **_: Any) -> ClusterView:
        self.asked += 1
        if self.answers:
            self.view = self.answers.pop(0)
        return self.view

    def lane(self, target: int) -> None:
        return None

    def watch(self, target: int, incarnation: int) -> None:
        self.watched.append(target)


def leaders_of(connection: PlayedConnection) -> Leaders:
    return Leaders(connection, read_settings(ProducerSettings, None, {}))  # type: ignore[arg-type]  # all it needs


def dead_incarnation() -> int:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        return ids.incarnation_of(process.pid)


def test_a_leader_that_is_known_is_not_asked_for() -> None:
    connection = PlayedConnection(view_of((16, 3, OWN)))
    leaders = leaders_of(connection)
    leaders.find("t", 0)
    leaders.find("t", 0)
    assert leaders.route(("t", 0)) == Route(16, 7, 3)
    assert (connection.asked, connection.watched) == (0, [16])


def test_a_leader_that_is_dead_is_not_tried_and_asked_for_until_another_is_named() -> None:
    dead = dead_incarnation()
    connection = PlayedConnection(view_of((16, 3, dead)))
    connection.answers = [view_of((16, 3, dead)), view_of((17, 4, OWN))]
    leaders = leaders_of(connection)
    for asked in (0, 1):
        leaders.begin_round()
        with pytest.raises(LeaderNotAvailableError, match="worker-0 has ended"):
            leaders.find("t", 0)
        assert connection.asked == asked
    leaders.begin_round()
    leaders.find("t", 0)
    assert leaders.route(("t", 0)) == Route(17, 7, 4)


def test_processes_that_cannot_be_seen_from_here_are_not_taken_for_dead() -> None:
    dead = dead_incarnation()
    connection = PlayedConnection(view_of((16, 3, dead)))
    connection.welcome.router_incarnation = dead
    leaders = leaders_of(connection)
    leaders.find("t", 0)
    assert leaders.route(("t", 0)) == Route(16, 7, 3)


def test_one_question_serves_all_partitions_of_a_round() -> None:
    connection = PlayedConnection(view_of(*[(16, 3, OWN)] * 50))
    leaders = leaders_of(connection)
    for number in range(50):
        leaders.find("t", number)
        leaders.forget("t", number)
    leaders.begin_round()
    for number in range(50):
        leaders.find("t", number)
    assert connection.asked == 1


def test_a_partition_without_a_leader_is_asked_for_again() -> None:
    connection = PlayedConnection(view_of((-1, 3, 0)))
    connection.answers = [view_of((-1, 3, 0)), view_of((16, 4, OWN))]
    leaders = leaders_of(connection)
    leaders.begin_round()
    with pytest.raises(LeaderNotAvailableError):
        leaders.find("t", 0)
    leaders.begin_round()
    leaders.find("t", 0)
    assert connection.asked == 2
