"""How long the coordinator computes for one member's change among many groups: the real `Groups`, no processes."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict

from zbroker.config.schema import ServerConfig
from zbroker.core import effects as do
from zbroker.core import group_events as ev
from zbroker.core.entries import Placement, TopicCreated
from zbroker.core.group_offsets import Offsets
from zbroker.core.groups import Groups
from zbroker.core.image import Image
from zbroker.core.sticky import Key
from zbroker.wire import group_messages as wire

TOPIC = "t"
Request = tuple[str, str]  # group and member


class NoSlots:
    """`group_events.Slots` of members that commit by message: there is nothing to keep."""

    def make(self, group_id: str, member_id: str, instance_id: str, client_id: str, incarnation: int) -> bool:
        return False

    def open(self, group_id: str, member_id: str, key: Key, start: int, epoch: int) -> tuple[int, int]:
        return (-1, -1)

    def committed(self, group_id: str, member_id: str, file: int, slot: int) -> int:
        return -1

    def close(self, group_id: str, member_id: str, file: int, slot: int) -> int:
        return -1

    def set_folded(self, group_id: str, member_id: str, file: int, slot: int) -> None:
        pass

    def set_member(self, group_id: str, member_id: str, epoch: int, session_ms: int, max_poll_ms: int) -> None:
        pass

    def set_away(self, group_id: str, member_id: str, since_ns: int) -> None:
        pass

    def files(self, group_id: str, member_id: str) -> list[wire.SlotFilePlace]:
        return []

    def changes(self) -> list[tuple[str, str, Key, int]]:
        return []

    def look_again(self) -> None:
        pass

    def remove(self, group_id: str, member_id: str) -> None:
        pass


class ManyGroups:
    """Groups of members that do at once what they are told."""

    def __init__(self, groups: int, members: int, partitions: int) -> None:
        image = Image()
        image.apply(
            TopicCreated(1, TOPIC, {}, [Placement(number, number + 1, "data", 16) for number in range(partitions)])
        )
        self._groups = Groups(ServerConfig(), image, NoSlots(), Offsets())
        self._now_ns = 0
        self._answers: dict[Request, wire.GroupAssignment] = {}
        self._take(ev.GroupsStarted([], 0))
        self.members: dict[str, list[str]] = defaultdict(list)
        for number in range(groups):
            group_id = f"group-{number}"
            for name in range(members):
                self.members[group_id].append(f"member-{name}")
                self._beat((group_id, f"member-{name}"))
            self._settle(group_id)

    def _take(self, event: object) -> None:
        queue = [event]
        while queue:
            for effect in self._groups.handle(queue.pop(0), self._now_ns):  # type: ignore[arg-type]
                if isinstance(effect, do.Reply) and isinstance(effect.body, wire.GroupAssignment):
                    assert isinstance(effect.request, tuple)
                    self._answers[effect.request] = effect.body
                elif isinstance(effect, ev.AppendOffsets):
                    queue.insert(0, ev.OffsetsAppended())

    def _beat(self, who: Request) -> None:
        answer = self._answers.get(who)
        epoch = 0 if answer is None else answer.member_epoch
        owned = [] if answer is None else [(one.topic_id, p.partition) for one in answer.topics for p in one.partitions]
        body = wire.GroupHeartbeat(
            group_id=who[0],
            member_id=who[1],
            member_epoch=epoch,
            instance_id="",
            client_id="",
            incarnation=0,
            topics=[TOPIC],
            pattern="",
            assignors=["sticky"],
            assignor_data=b"",
            owned=owned,
            session_timeout_ms=10_000,
            max_poll_interval_ms=300_000,
            polled_ago_ms=0,
            hold_ms=3_000,
            topics_version=1,
            seen_epoch=epoch,
        )
        self._take(ev.HeartbeatCame(who, body, 0))

    def _settle(self, group_id: str) -> None:
        while self._groups.groups[group_id].state != "Stable":
            for name in self.members[group_id]:
                self._beat((group_id, name))

    def leave_ms(self, group_id: str) -> float:
        """Milliseconds for one member's leaving: the new target, and what may go out of it at once."""
        name = self.members[group_id].pop()
        event = ev.GroupAsked(("", ""), wire.GroupLeave(group_id, name, False), 0)
        begun_ns = time.perf_counter_ns()
        self._take(event)
        spent_ns = time.perf_counter_ns() - begun_ns
        self._settle(group_id)
        return spent_ns / 1e6


def change_ms(groups: int, members: int, partitions: int, changes: int) -> tuple[float, float]:
    """Median and longest time of one member's change, in ms."""
    world = ManyGroups(groups, members, partitions)
    found = [world.leave_ms(f"group-{number % groups}") for number in range(changes)]
    return statistics.median(found), max(found)
