"""Members of groups as processes: they share, die, hang, leave and come back, and every record is read."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conditions import wait_until
from tests.consuming import Writing, broker_with_tcp, fill, make_topic, numbers, settings_for
from tests.group_members import COMMITTED, LOST, READ, REVOKED, MemberProcess, check_group, repeats
from zbroker.client.admin import AdminClient
from zbroker.client.consumer import Consumer
from zbroker.ids import TopicPartition
from zbroker.testing import Broker

PARTITIONS = 4
QUICK = {"heartbeat_interval_ms": 100}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(workers=2)
    with broker:
        yield broker, address


@pytest.fixture(params=["shm", "tcp"])
def way(request: pytest.FixtureRequest, served: tuple[Broker, str]) -> dict[str, Any]:
    return settings_for(request.param, *served)


@pytest.fixture
def topic(way: dict[str, Any], request: pytest.FixtureRequest) -> str:
    name = re.sub(r"[^a-zA-Z0-9]", "-", request.node.name)
    make_topic(way, name, PARTITIONS)
    return name


def committed(way: dict[str, Any], group_id: str, topic: str) -> dict[TopicPartition, int]:
    with Consumer(group_id=group_id, **way) as consumer:
        found = consumer.committed([TopicPartition(topic, number) for number in range(PARTITIONS)])
        return {tp: one.offset for tp, one in found.items() if one is not None}


def counts(topic: str, writing: Writing) -> dict[TopicPartition, int]:
    return {TopicPartition(topic, number): len(values) for number, values in writing.sent.items()}


def wait_for_all(way: dict[str, Any], group_id: str, wanted: dict[TopicPartition, int]) -> None:
    topic = next(iter(wanted)).topic
    wait_until(lambda: committed(way, group_id, topic) == wanted, what="everything committed")


def test_the_first_record_comes_at_once_and_two_members_share(way: dict[str, Any], topic: str, tmp_path: Path) -> None:
    for number in range(PARTITIONS):
        fill(way, topic, numbers(20), number)
    with MemberProcess(tmp_path, "a", [topic], way, group_id=topic) as first:
        first.wait_for(PARTITIONS)
        wait_until(lambda: first.count(COMMITTED) == 20 * PARTITIONS)
        with MemberProcess(tmp_path, "b", [topic], way, group_id=topic) as second:
            second.wait_for(PARTITIONS // 2)
            first.wait_for(PARTITIONS // 2)
            for number in range(PARTITIONS):
                fill(way, topic, numbers(20), number)
            wanted = dict.fromkeys((TopicPartition(topic, number) for number in range(PARTITIONS)), 40)
            wait_for_all(way, topic, wanted)
            assert second.count(READ) == 20 * PARTITIONS // 2
            assert (first.stop(), second.stop()) == (0, 0)
            check_group([first, second], wanted)
            assert repeats([first, second]) == 0


def test_what_a_killed_member_has_read_is_taken_by_another(way: dict[str, Any], topic: str, tmp_path: Path) -> None:
    settings = {"group_id": topic, "session_timeout_ms": 500, **QUICK}
    members = [MemberProcess(tmp_path, name, [topic], way, **settings) for name in ("a", "b", "c")]
    try:
        wait_until(lambda: sum(len(member.owned()) for member in members) == PARTITIONS)
        writing = Writing(way, topic, PARTITIONS)
        try:
            wait_until(lambda: all(member.count(COMMITTED) >= 10 for member in members))
            members[0].kill()
            wait_until(lambda: sum(len(member.owned()) for member in members[1:]) == PARTITIONS)
            members[1].kill()
            members[2].wait_for(PARTITIONS)
        finally:
            writing.end()
        wait_for_all(way, topic, counts(topic, writing))
        assert members[2].stop() == 0
    finally:
        for member in members:
            member.kill()
    check_group(members, counts(topic, writing))


def test_members_that_leave_hand_over_without_repeats(way: dict[str, Any], topic: str, tmp_path: Path) -> None:
    members: list[MemberProcess] = []
    try:
        for name in "abc":
            members.append(MemberProcess(tmp_path, name, [topic], way, group_id=topic, **QUICK))
        wait_until(lambda: sum(len(member.owned()) for member in members) == PARTITIONS)
        writing = Writing(way, topic, PARTITIONS)
        try:
            for number, name in enumerate("def"):
                members.append(MemberProcess(tmp_path, name, [topic], way, group_id=topic, **QUICK))
                wait_until(lambda: members[-1].count(COMMITTED) >= 5)
                assert members[number].stop() == 0
                wait_until(lambda: sum(len(one.owned()) for one in members[number + 1 :]) == PARTITIONS)  # noqa: B023
        finally:
            writing.end()
        wait_for_all(way, topic, counts(topic, writing))
        assert [member.stop() for member in members[3:]] == [0, 0, 0]
    finally:
        for member in members:
            member.kill()
    check_group(members, counts(topic, writing))
    assert repeats(members) == 0


@pytest.mark.parametrize(("way", "is_killed"), [("shm", True), ("shm", False), ("tcp", False)], indirect=["way"])
def test_a_static_member_that_is_restarted_disturbs_nobody(
    way: dict[str, Any], topic: str, tmp_path: Path, is_killed: bool
) -> None:
    with MemberProcess(tmp_path, "other", [topic], way, group_id=topic, **QUICK) as other:
        settings = {"group_id": topic, "group_instance_id": "w1", "session_timeout_ms": 20_000, **QUICK}
        with MemberProcess(tmp_path, "before", [topic], way, **settings) as before:
            before.wait_for(PARTITIONS // 2)
            other.wait_for(PARTITIONS // 2)
            had, revoked = before.owned(), other.count(REVOKED)
            writing = Writing(way, topic, PARTITIONS)
            try:
                wait_until(lambda: before.count(COMMITTED) >= 10)
                if is_killed:
                    before.kill()
                else:
                    assert before.stop() == 0
                with MemberProcess(tmp_path, "after", [topic], way, **settings) as after:
                    after.wait_for(PARTITIONS // 2)
                    assert after.owned() == had
                    wait_until(lambda: after.count(COMMITTED) >= 10)
                    writing.end()
                    wait_for_all(way, topic, counts(topic, writing))
                    assert other.count(REVOKED) == revoked
                    check_group([other, before, after], counts(topic, writing))
            finally:
                writing.end()


def test_a_member_that_hangs_is_thrown_out_learns_it_and_comes_back(
    way: dict[str, Any], topic: str, tmp_path: Path
) -> None:
    settings = {"group_id": topic, "max_poll_interval_ms": 1_000, **QUICK}
    members = [MemberProcess(tmp_path, name, [topic], way, **settings) for name in "ab"]
    try:
        for member in members:
            member.wait_for(PARTITIONS // 2)
        writing = Writing(way, topic, PARTITIONS)
        try:
            wait_until(lambda: members[0].count(COMMITTED) >= 10)
            members[0].signal(signal.SIGUSR1)
            members[1].wait_for(PARTITIONS)
            assert members[0].count(LOST) == 0, "it hangs, and cannot know"
            members[0].signal(signal.SIGUSR1)
            wait_until(lambda: members[0].count(LOST) == PARTITIONS // 2)
            members[0].wait_for(PARTITIONS // 2)
        finally:
            writing.end()
        wait_for_all(way, topic, counts(topic, writing))
    finally:
        for member in members:
            member.kill()
    check_group(members, counts(topic, writing))


def test_a_member_that_is_stopped_is_thrown_out_and_comes_back(way: dict[str, Any], topic: str, tmp_path: Path) -> None:
    settings = {"group_id": topic, "session_timeout_ms": 1_500, **QUICK}
    members = [MemberProcess(tmp_path, name, [topic], way, **settings) for name in "ab"]
    try:
        for member in members:
            member.wait_for(PARTITIONS // 2)
        writing = Writing(way, topic, PARTITIONS)
        try:
            wait_until(lambda: members[0].count(COMMITTED) >= 10)
            members[0].signal(signal.SIGSTOP)
            members[1].wait_for(PARTITIONS)
            members[0].signal(signal.SIGCONT)
            wait_until(lambda: members[0].count(LOST) == PARTITIONS // 2)
            members[0].wait_for(PARTITIONS // 2)
        finally:
            writing.end()
        wait_for_all(way, topic, counts(topic, writing))
    finally:
        for member in members:
            member.kill()
    check_group(members, counts(topic, writing))


def test_more_members_than_partitions_wait_and_take_over(way: dict[str, Any], topic: str, tmp_path: Path) -> None:
    settings = {"group_id": topic, "session_timeout_ms": 1_500, **QUICK}
    members = [MemberProcess(tmp_path, f"m{n}", [topic], way, **settings) for n in range(PARTITIONS + 1)]
    try:
        with AdminClient(way) as admin:
            everybody = (topic, PARTITIONS + 1)
            wait_until(lambda: everybody in [(one.group_id, one.members) for one in admin.list_groups()])
        wait_until(lambda: sorted(len(member.owned()) for member in members) == [0] + [1] * PARTITIONS)
        waiting = next(member for member in members if not member.owned())
        victim = next(member for member in members if member.owned())
        had = victim.owned()
        victim.kill()
        waiting.wait_for(1)
        assert waiting.owned() == had
    finally:
        for member in members:
            member.kill()
    check_group(members)
