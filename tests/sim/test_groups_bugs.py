"""T02 for groups: the simulator finds what it is there for, bugs that are seeded by a subclass."""

from __future__ import annotations

from tests.group_world import ModelSlots, World
from tests.sim.test_groups_random import STEPS, Run
from zbroker.core.group_member import Member
from zbroker.core.group_requests import GroupRequests
from zbroker.core.groups import Groups
from zbroker.core.sticky import Key
from zbroker.errors import BrokerError
from zbroker.wire import group_messages as wire

SEEDS_MAX = 300


def violation_of(world_class: type[World]) -> str:
    """What the first seed that finds the bug says about it."""
    for seed in range(SEEDS_MAX):
        run = Run(seed, world_class)
        try:
            for _ in range(STEPS):
                run.step()
            run.heal()
        except AssertionError as error:
            return f"seed {seed}: {error}"
    raise AssertionError(f"{SEEDS_MAX} seeds did not find the bug")


class OpenSlots(ModelSlots):
    """Closing reads a slot and leaves it open: who had the partition before goes on to commit, and is told "done"."""

    def close(self, group_id: str, member_id: str, file: int, slot: int) -> int:
        offset = super().close(group_id, member_id, file, slot)
        self.files_of[group_id, member_id].slots[slot].closed = 0
        return offset

    def set_folded(self, group_id: str, member_id: str, file: int, slot: int) -> None:
        pass

    def remove(self, group_id: str, member_id: str) -> None:
        del self.files_of[group_id, member_id]


def test_a_stale_generations_commit_into_its_slot_is_found() -> None:
    class Bad(World):
        slots_class = OpenSlots

    assert "may be committed by" in violation_of(Bad) or "was reported" in violation_of(Bad)


class Believing(GroupRequests):
    """Takes what a member sends for any partition of its group."""

    def _ownership_error(self, member: Member, epoch: int, key: Key, one: wire.OffsetToCommit) -> BrokerError | None:
        return None if key in member.holdings else super()._ownership_error(member, epoch, key, one)


class BelievingGroups(Groups):
    """Asks no commit for its epoch."""

    requests_class = Believing


def test_a_stale_generations_commit_by_a_message_that_comes_late_is_found() -> None:
    class Bad(World):
        groups_class = BelievingGroups

    assert "was reported" in violation_of(Bad)
