"""Time in groups: who is silent for too long, whose heartbeat has waited long enough, whose assignor does not answer.

A group is looked at when something of it is due, and not before: ten thousand members that beat cost a look each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zbroker.clock import NS_PER_MS
from zbroker.core.group import Group
from zbroker.errors import UnknownMemberIdError

if TYPE_CHECKING:
    from zbroker.core.groups import Groups

GROUPS_A_LOOK: Final = 50
LOOKS_FOR_ALL: Final = 10


class GroupTiming:
    """See the module."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._due_ns: dict[str, int] = {}

    def look_at(self, group: Group) -> None:
        """Something of it has changed: look at the next tick."""
        self._due_ns[group.group_id] = 0

    def forget(self, group: Group) -> None:
        """It is gone."""
        self._due_ns.pop(group.group_id, None)

    def look(self, now_ns: int) -> None:
        """Do what is due: in a share of the groups at once, so that ten thousand members do not hold up an election."""
        due = [group_id for group_id, due_ns in self._due_ns.items() if due_ns <= now_ns]
        for group_id in due[: max(GROUPS_A_LOOK, len(self._due_ns) // LOOKS_FOR_ALL)]:
            del self._due_ns[group_id]  # so that it stands last, and others have their turn
            self._due_ns[group_id] = self._check(self._groups.groups[group_id], now_ns)

    def _check(self, group: Group, now_ns: int) -> int:
        """Throw out who is silent, answer who has waited long enough. Returns when to look again."""
        groups = self._groups
        next_ns = now_ns + groups.around.config.heartbeat_interval_ms * NS_PER_MS
        if group.closing:
            groups.touch(group)
        for member in list(group.members.values()):
            ends = [member.session_ends_ns()]
            if (revocation_ns := member.revocation_ends_ns()) is not None and not member.is_away:
                ends.append(revocation_ns)
            if min(ends) <= now_ns:
                groups.remove(group, member, UnknownMemberIdError(f"member {member.member_id} was silent for too long"))
                continue
            if member.parked is not None:
                if member.parked.until_ns <= now_ns:
                    groups.answer(group, member)
                else:
                    ends.append(member.parked.until_ns)
            next_ns = min(next_ns, *ends)
        if group.work is not None:
            if group.work.until_ns <= now_ns:
                groups.warn_of_assignor(group, "it did not answer in time")
                group.give_up_work()
                groups.touch(group)
            else:
                next_ns = min(next_ns, group.work.until_ns)
        return next_ns
