"""T26: members of a group come, go, hang, die and are replaced in any order, the coordinator dies amid joins, and no
partition has two owners, no commit goes back, no record is left out."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.consuming import broker_with_tcp, make_topic, settings_for
from zbroker.load.group_client import LOST
from zbroker.load.group_crew import GroupCrew, Member
from zbroker.load.rebalance import Writing
from zbroker.testing import Broker

SEED = int(os.environ.get("ZBROKER_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
EVENTS = int(os.environ.get("ZBROKER_GROUP_EVENTS", "8"))
SESSION_MS = 1_000
JOIN_S = 0.03


class Play:
    """One run: a group, and what may happen to it."""

    def __init__(self, broker: Broker, crew: GroupCrew, chance: random.Random) -> None:
        self.broker = broker
        self.crew = crew
        self.chance = chance
        self.names: dict[Member, str] = {}
        self.done: list[str] = []

    def start(self, name: str = "") -> Member:
        if not name:
            return self.crew.start()
        member = self.crew.start(group_instance_id=name)
        self.names[member] = name
        return member

    def pick(self) -> Member:
        return self.chance.choice(self.crew.living)

    def come(self) -> None:
        if len(self.crew.living) < 6:
            self.start(self.chance.choice(["", f"static-{len(self.crew.members)}"]))

    def leave(self) -> None:
        if len(self.crew.living) > 2:
            member = self.pick()
            member.stop()
            self.come_back(member)

    def kill(self) -> None:
        member = self.pick()
        member.kill()
        member.wait()
        self.come_back(member)

    def come_back(self, member: Member) -> None:
        """As a static member that comes back, or as somebody new."""
        self.start(self.names.get(member, ""))

    def bounce_one_by_one(self) -> None:
        for member in self.crew.living:
            member.stop()
            self.come_back(member)
            self.crew.wait_until_shared()

    def bounce_all(self) -> None:
        gone = self.crew.living
        for member in gone:
            member.ask_to_leave()
        for member in gone:
            member.wait()
            self.come_back(member)

    def hang(self) -> None:
        """Longer than its session lasts."""
        member = self.pick()
        lost, had = _count(member, LOST), bool(member.owned)
        member.signal(signal.SIGSTOP)
        others = [one for one in self.crew.living if one is not member]
        if others:
            self.crew.wait_until(lambda: _have_all(others, self.crew.partitions), "the others took over")
        member.signal(signal.SIGCONT)
        if had and others:
            self.crew.wait_until(lambda: _count(member, LOST) > lost, "it heard of it")

    def double(self) -> None:
        """Somebody with the instance id of one that lives is refused, and that one goes on."""
        named = [member for member in self.crew.living if member in self.names]
        if named:
            member = self.chance.choice(named)
            had = set(member.owned)
            second = self.crew.start(group_instance_id=self.names[member])
            self.crew.wait_until(lambda: second.is_gone, "refused")
            second.wait()
            assert member.owned == had

    def headless(self) -> None:
        """The coordinator dies while somebody joins or leaves."""
        if self.chance.random() < 0.5:
            member = self.crew.start(goes=False)
            member.go()
        else:
            member = self.pick()
            self.come_back(member) if member not in self.names else None
            member.ask_to_leave()
        time.sleep(self.chance.uniform(0, JOIN_S))  # at any point of it
        self.broker.wait_for_restart("coordinator", self.broker.kill("coordinator"))
        self.crew.wait_until(lambda: bool(self.crew.living), "somebody")

    def run(self) -> None:
        acts: list[Callable[[], None]] = [
            self.come, self.leave, self.kill, self.bounce_one_by_one, self.bounce_all, self.hang, self.double,
            self.headless,
        ]  # fmt: skip
        plan = self.chance.sample(acts, len(acts))
        while len(plan) < EVENTS:
            plan += self.chance.sample(acts, len(acts))
        for act in plan[:EVENTS]:
            self.done.append(act.__name__)
            act()
            while len(self.crew.living) < 2:
                self.start()
            self.crew.wait_until_shared()


def _count(member: Member, what: str) -> int:
    return sum(event[0] == what for event in member.events)


def _have_all(members: list[Member], partitions: int) -> bool:
    return sorted(number for one in members for number in one.owned) == list(range(partitions))


@pytest.fixture
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(workers=2)
    broker.config.supervisor.crash_loop_window_ms = 1
    with broker:
        yield broker, address


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["shm", "tcp"])
def test_t26_a_group_keeps_its_promises_whatever_happens_to_its_members(
    served: tuple[Broker, str], way: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    broker = served[0]
    settings = settings_for(way, *served)
    chance = random.Random(f"{SEED} {way}")
    partitions = chance.randint(3, 8)
    make_topic(settings, "t", partitions)
    quick = {"session_timeout_ms": SESSION_MS, "heartbeat_interval_ms": 100}
    with GroupCrew(tmp_path, "t", partitions, group_id="g", **settings, **quick) as crew:
        play = Play(broker, crew, chance)
        try:
            for name in ("", "", "static-a"):
                play.start(name)
            crew.wait_until_shared()
            with Writing(broker.bootstrap_servers, "t", partitions) as writing:
                play.run()
            crew.wait_until(lambda: crew.left_out(writing.counts) == 0, "every record read")
            for member in crew.living:
                member.stop()
        finally:
            request.node.add_report_section("call", "what happened", f"seed {SEED}: {play.done}")
        report = crew.report()
        assert not report.counts, report
