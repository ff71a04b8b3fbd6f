"""Groups under random joins, deaths, leavings, slow members, full disks, new topics and coordinator restarts.

Each seed is one run that can be repeated. Checked after every step: no partition is read by two members that may commit
it; what was reported as committed is never gone back behind. At the end, when everything heals: every partition is read
by exactly one member, loads differ by one at most, and each begins where its predecessor had committed.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.group_world import MS, ModelMember, World
from zbroker.core import group_events as ev
from zbroker.core.sticky import Key
from zbroker.errors import CommitFailedError
from zbroker.wire import group_messages as wire

STEPS = 60


class Run:
    """One run, and what it has promised."""

    def __init__(self, seed: int, world_class: type[World] = World) -> None:
        self.random = random.Random(seed)
        self.world = world_class({"t": self.random.randint(1, 6), "u": 3})
        self.world.may_overlap = True  # between being thrown out and hearing of it; commits fail then
        self.reported: dict[Key, int] = {}
        self.sent: dict[str, list[tuple[Key, int, wire.OffsetCommit]]] = {}
        """Commits on their way, by member: they arrive in their order, and independently of its heartbeats."""
        self.count = 0
        self.dead_instances: list[str] = []

    def live(self) -> list[ModelMember]:
        return [one for one in self.world.members.values() if not one.error]

    def pick(self) -> ModelMember | None:
        found = self.live()
        return self.random.choice(found) if found else None

    def join(self) -> None:
        if len(self.live()) >= 6:
            return
        self.count += 1
        instance = ""
        if self.dead_instances and self.random.random() < 0.6:
            instance = self.dead_instances.pop()
        elif self.random.random() < 0.3:
            instance = f"w{self.count}"
        topics = self.random.choice([("t",), ("t", "u"), ("u", "t", "later")])
        is_remote = self.random.random() < 0.4
        options = {"instance_id": instance, "session_timeout_ms": 5_000, "is_remote": is_remote}
        self.world.join(f"m{self.count}", *topics, **options)

    def die(self) -> None:
        member = self.pick()
        if member is not None:
            if member.instance_id:
                self.dead_instances.append(member.instance_id)
            self.world.die(member)

    def leave(self) -> None:
        member = self.pick()
        if member is not None:
            is_temporary = bool(member.instance_id) and self.random.random() < 0.7
            if is_temporary:
                self.dead_instances.append(member.instance_id)
            member.leave(is_temporary=is_temporary)

    def commit(self) -> None:
        member = self.pick()
        if member is None or not member.owned:
            return
        key = self.random.choice(sorted(member.owned))
        offset = member.positions[key] + 1
        if member.is_remote:
            self.sent.setdefault(member.member_id, []).append((key, offset, member.message(key, offset)))
            member.positions[key] = offset
            if self.random.random() < 0.7:
                self.arrive(member.member_id)
            return
        try:
            member.commit(key, offset)
        except CommitFailedError:
            return
        member.positions[key] = offset
        self.report(key, offset)

    def report(self, key: Key, offset: int) -> None:
        """A commit was reported as done."""
        before = self.reported.get(key, 0)
        assert offset > before, f"{key}: {offset} after {before} was reported"
        self.reported[key] = offset

    def arrive(self, member_id: str) -> None:
        """All commits that a member has sent arrive, its own death notwithstanding."""
        for key, offset, message in self.sent.pop(member_id, []):
            answer = self.world.ask(message)
            if isinstance(answer, wire.OffsetResults) and not answer.offsets[0].error:
                self.report(key, offset)

    def deliver(self) -> None:
        if self.sent:
            self.arrive(self.random.choice(sorted(self.sent)))

    def slow(self) -> None:
        member = self.pick()
        if member is not None:
            member.is_slow = not member.is_slow

    def silence(self) -> None:
        member = self.pick()
        if member is not None:
            member.is_silent = not member.is_silent

    def disk(self) -> None:
        self.world.disk_is_full = not self.world.disk_is_full

    def topic(self) -> None:
        if "later" not in self.world.image.by_name:
            self.world.make_topic("later", 2)

    def pass_time(self) -> None:
        self.world.pass_ms(self.random.choice([100, 1_000, 6_000]))

    def step(self) -> None:
        acts: dict[Callable[[], None], float] = {
            self.join: 4,
            self.die: 2,
            self.leave: 1,
            self.commit: 8,
            self.deliver: 2,
            self.slow: 1,
            self.silence: 1,
            self.disk: 0.5,
            self.topic: 0.3,
            self.world.restart: 1,
            self.pass_time: 2,
        }
        (act,) = self.random.choices(list(acts), list(acts.values()))
        act()
        self.world.run()
        self.check()

    def check(self) -> None:
        owners: dict[Key, str] = {}
        for member in self.live():
            file = self.world.slots.files_of.get((member.group_id, member.member_id))
            for key, place in member.owned.items():
                if file is None or file.slots[place[1]].closed:
                    continue
                assert key not in owners, f"{key} may be committed by {owners[key]} and {member.member_id}"
                owners[key] = member.member_id

    def heal(self) -> None:
        world = self.world
        world.disk_is_full = False
        for member_id in sorted(self.sent):
            self.arrive(member_id)
        for member in self.live():
            member.is_slow = member.is_silent = False
        for member in list(world.members.values()):
            if member.error:
                del world.members[member.member_id]
        world.pass_ms(12_000, 500)
        for member in list(world.members.values()):
            if member.error:
                del world.members[member.member_id]
        while len(self.live()) < 2:
            self.count += 1
            world.join(f"m{self.count}", "t", "u", "later")
        world.may_overlap = False
        world.pass_ms(7_000, 500)
        subscribed = {name for member in self.live() for name in member.topics}
        wanted = {
            (topic.topic_id, number)
            for name, topic in world.image.by_name.items()
            if name in subscribed
            for number in range(len(topic.partitions))
        }
        assert world.owners().keys() == wanted
        assert world.groups.groups["g"].state == "Stable"
        for member in self.live():
            for key in member.owned:
                assert member.positions[key] >= self.reported.get(key, 0), f"{key} begins before what was committed"


@pytest.mark.parametrize("block", range(10))
def test_groups_keep_their_promises_whatever_happens(block: int) -> None:
    for seed in range(block * 40, block * 40 + 40):
        run = Run(seed)
        try:
            for _ in range(STEPS):
                run.step()
            run.heal()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_time_alone_never_makes_an_event_illegal() -> None:
    world = World({"t": 1})
    for step in range(50):
        world.now_ns += step * MS
        world.take(ev.GroupsTicked(world.wall_ms))
    assert world.replies == {}
