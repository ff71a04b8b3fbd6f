"""Groups over the death of the coordinator, of the whole broker and of everything at once: nothing goes back."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conditions import wait_until
from tests.consuming import Writing, broker_with_tcp, fill, make_topic, numbers, read_values, settings_for
from tests.group_members import COMMITTED, LOST, STARTED, MemberProcess, check_group
from zbroker.client.consumer import Consumer
from zbroker.ids import TopicPartition
from zbroker.record.records import OffsetAndMetadata
from zbroker.testing import Broker

TOPIC = "t"
PARTITIONS = 4
KILLS = {"ipc": 5, "tcp": 2}  # there a kill of a member shows after its session timeout
QUICK = {"heartbeat_interval_ms": 100}


@pytest.fixture
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(workers=2)
    with broker:
        make_topic(settings_for("zmq", broker, address), TOPIC, PARTITIONS)
        yield broker, address


@pytest.fixture(params=["shm", "tcp"])
def way(request: pytest.FixtureRequest, served: tuple[Broker, str]) -> dict[str, Any]:
    return settings_for(request.param, *served)


def committed(way: dict[str, Any], group_id: str) -> dict[TopicPartition, OffsetAndMetadata | None]:
    with Consumer(group_id=group_id, **way) as consumer:
        return consumer.committed([TopicPartition(TOPIC, number) for number in range(PARTITIONS)])


def reads_everything(way: dict[str, Any], writing: Writing) -> None:
    wanted = {TopicPartition(TOPIC, number): len(values) for number, values in writing.sent.items()}

    def is_done() -> bool:
        # A send that was tried again over a death may be there twice.
        return all(one is not None and one.offset >= wanted[tp] for tp, one in committed(way, "g").items())

    wait_until(is_done, what="everything committed")


def test_the_coordinator_is_killed_while_members_come_and_go(
    served: tuple[Broker, str], way: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    broker = served[0]
    seed = random.randrange(1 << 32)
    request.node.add_report_section("call", "seed", str(seed))
    chance = random.Random(seed)
    settings = {"group_id": "g", "session_timeout_ms": 3_000, **QUICK}
    members = [MemberProcess(tmp_path, name, [TOPIC], way, **settings) for name in ("m0", "m1")]
    living = list(members)
    try:
        wait_until(lambda: all(member.count(STARTED) for member in members))  # one alone may own all
        wait_until(lambda: sum(len(member.owned()) for member in living) == PARTITIONS)
        writing = Writing(way, TOPIC, PARTITIONS)
        try:
            for number in range(2, 2 + KILLS[way["bootstrap_servers"][:3]]):
                members.append(MemberProcess(tmp_path, f"m{number}", [TOPIC], way, **settings))
                living.append(members[-1])
                wait_until(lambda: members[-1].count(STARTED))
                leaver = living.pop(chance.randrange(2))
                if number % 2:
                    leaver.kill()
                else:
                    leaver.signal(signal.SIGTERM)
                time.sleep(chance.uniform(0, 0.03))  # the kill is to come at any point of a join and of a leave
                pid = broker.kill("coordinator")
                broker.wait_for_restart("coordinator", pid)
                wait_until(lambda: sum(len(member.owned()) for member in living) == PARTITIONS)
                before = {member.name: member.count(COMMITTED) for member in living}
                wait_until(lambda: all(one.count(COMMITTED) > before[one.name] for one in living))  # noqa: B023
        finally:
            writing.end()
        reads_everything(way, writing)
        assert sum(member.count(LOST) for member in living) == 0
    finally:
        for member in members:
            member.kill()
    check_group(members)


def test_members_go_on_when_the_whole_broker_was_killed(
    served: tuple[Broker, str], way: dict[str, Any], tmp_path: Path
) -> None:
    broker = served[0]
    members = [MemberProcess(tmp_path, name, [TOPIC], way, group_id="g", **QUICK) for name in "ab"]
    try:
        for member in members:
            member.wait_for(PARTITIONS // 2)
        writing = Writing(way, TOPIC, PARTITIONS)
        try:
            for _ in range(2):
                before = {member.name: member.count(COMMITTED) for member in members}
                wait_until(lambda: all(one.count(COMMITTED) > before[one.name] + 10 for one in members))  # noqa: B023
                broker.kill_all()
                broker.start()
            before = {member.name: member.count(COMMITTED) for member in members}
            wait_until(lambda: all(one.count(COMMITTED) > before[one.name] + 10 for one in members))
        finally:
            writing.end()
        reads_everything(way, writing)
        assert [member.stop() for member in members] == [0, 0]
    finally:
        for member in members:
            member.kill()
    check_group(members)


def test_what_was_committed_survives_the_kill_of_everything(
    served: tuple[Broker, str], way: dict[str, Any], tmp_path: Path
) -> None:
    broker = served[0]
    for number in range(PARTITIONS):
        fill(way, TOPIC, numbers(50), number)
    with MemberProcess(
        tmp_path, "a", [TOPIC], way, group_id="g", pause_s=0.001, session_timeout_ms=500, **QUICK
    ) as member:
        wait_until(lambda: member.count(COMMITTED) >= 60)
        member.kill()
        broker.kill_all()
    said: dict[TopicPartition, int] = {}
    for event in member.events():
        if event.what == COMMITTED:
            said[event.tp] = event.offset
    broker.start()
    found = {tp: one.offset for tp, one in committed(way, "g").items() if one is not None}
    for tp, offset in said.items():
        assert offset <= found[tp] <= offset + 1, "the kill may have come between a commit and its line"
    with MemberProcess(tmp_path, "b", [TOPIC], way, group_id="g", **QUICK) as after:
        everything = {TopicPartition(TOPIC, number): OffsetAndMetadata(50) for number in range(PARTITIONS)}
        wait_until(lambda: committed(way, "g") == everything)
        after.kill()
        check_group([member, after], dict.fromkeys(everything, 50))


def test_a_durable_commit_survives_and_so_does_its_note(served: tuple[Broker, str], way: dict[str, Any]) -> None:
    broker = served[0]
    fill(way, TOPIC, numbers(20))
    tp = TopicPartition(TOPIC, 0)
    settings = {**way, "auto_offset_reset": "earliest", "enable_auto_commit": False}
    with Consumer(TOPIC, group_id="g", **settings) as consumer:
        read_values(consumer, 20)
        consumer.commit({tp: OffsetAndMetadata(7, "note", 0)}, durable=True)
        broker.kill_all()
        broker.start()
        assert consumer.committed(tp) == OffsetAndMetadata(7, "note", 0)
        fill(way, TOPIC, numbers(5, 20))
        assert read_values(consumer, 5) == numbers(5, 20)
        consumer.commit({tp: 9}, durable=True)
    broker.restart()
    with Consumer(TOPIC, group_id="g", **settings) as consumer:
        assert consumer.committed(tp) == OffsetAndMetadata(9)
        assert read_values(consumer, 1) == [b"9"]
