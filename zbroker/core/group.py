"""One consumer group: who belongs to it, who should read what, and the way there, partition by partition.

A change of members, subscriptions or topics gives a new target. A partition moves in three steps, and nothing else
moves or waits meanwhile: its owner is told to give it up; when it says that it has, or is gone, the slot is closed and
read, and what it held is appended to the log of offsets; then it is granted to whoever should have it. A member's epoch
grows whenever what it may read changes; epochs come from one counter of the group, its generation.

Guarantees: at any time a partition is held by one member at most. It is granted only when every commit of its former
owner that was reported done is in the log. A member that is told of an epoch is told everything that it may read.

It replies to nobody: `changed` names members for whom there is news. It writes nothing down: `closing` holds what has
to be in the log before its partitions are free. `groups` does both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from msgspec import Struct

from zbroker.clock import NS_PER_MS
from zbroker.config.schema import GroupsSection
from zbroker.core.assignors import ASSIGNORS, Candidate, Target, check_target
from zbroker.core.group_events import Slots
from zbroker.core.group_member import NO_FILE, Holding, Member
from zbroker.core.group_offsets import Committed, OffsetEntry, Offsets
from zbroker.core.image import Image
from zbroker.core.sticky import Key
from zbroker.errors import InconsistentGroupProtocolError, UnsupportedAssignorError
from zbroker.wire.group_messages import AssignableTopic, AssignWork, GroupHeartbeat, SubscribedMember

EMPTY: Final = "Empty"
ASSIGNING: Final = "Assigning"
RECONCILING: Final = "Reconciling"
STABLE: Final = "Stable"
STICKY: Final = "sticky"


class Surroundings(Struct):
    """What all groups share. `slots` and `offsets` are changed by groups; the rest is only looked at."""

    config: GroupsSection
    image: Image
    slots: Slots
    offsets: Offsets
    wall_ms: int = 0


class Closing(NamedTuple):
    """A partition whose owner gave it up, or is gone: free when `entry` is in the log."""

    member_id: str
    file: int
    slot: int
    entry: OffsetEntry | None


class Work(NamedTuple):
    """An assignment that a member was asked to make, `ask`, and what its answer must fit to."""

    member_id: str
    until_ns: int
    candidates: list[Candidate]
    partition_counts: dict[int, int]
    ask: AssignWork


class Group:
    """See the module."""

    def __init__(self, group_id: str, around: Surroundings) -> None:
        self.group_id = group_id
        self._around = around
        self.members: dict[str, Member] = {}
        self.epoch = 0
        self.assignor = ""
        self.closing: dict[Key, Closing] = {}
        self.changed: set[str] = set()  # members whose epoch is newer than what they may have been told
        self.work: Work | None = None
        self.refusal = ""  # why the last custom assignment was not used; told to a person once
        self.emptied_ms = 0  # since when it has no members, wall clock
        self._is_dirty = False
        self._gone: set[str] = set()  # members that have left, and still have something in `closing`
        self._work_count = 0
        self._joined_count = 0

    @property
    def state(self) -> str:
        """Empty, Assigning, Reconciling or Stable."""
        if not self.members:
            return EMPTY
        if self.work is not None or self._is_dirty:
            return ASSIGNING
        held = {(key, one.member_id) for one in self.members.values() for key in one.holdings}
        wanted = {(key, one.member_id) for one in self.members.values() for key in one.target}
        return STABLE if held == wanted and not self.closing else RECONCILING

    @property
    def is_idle(self) -> bool:
        """Whether it has no members, and nothing on its way into the log."""
        return not self.members and not self.closing

    def mark_dirty(self) -> None:
        """Members, subscriptions or topics are others than before."""
        self._is_dirty = True

    def by_instance(self, instance_id: str) -> Member | None:
        """The static member of this instance id."""
        if not instance_id:
            return None
        return next((one for one in self.members.values() if one.instance_id == instance_id), None)

    def check_assignors(self, assignors: Iterable[str], but: str = "") -> None:
        """Raises UnsupportedAssignorError, or InconsistentGroupProtocolError when there would be none for all."""
        common = list(dict.fromkeys(assignors))
        if not common or "" in common:
            raise UnsupportedAssignorError("a member must name an assignor")
        for one in self.members.values():
            if one.member_id != but and one.is_heard and not set(one.assignors) & set(common):
                raise InconsistentGroupProtocolError(
                    f"this member has {', '.join(common)}; another member has {', '.join(one.assignors)}"
                )

    def add(self, member: Member) -> None:
        """A new member."""
        assert member.member_id not in self.members, "a member twice"
        if not member.joined:
            self._joined_count += 1
            member.joined = self._joined_count
        self._joined_count = max(self._joined_count, member.joined)
        self.members[member.member_id] = member
        self.epoch = max(self.epoch, member.epoch)
        self._is_dirty = True

    def replace(self, old: Member, member: Member) -> None:
        """A static member has come back under another id: it gets what was kept for it, and nobody else is disturbed.

        The target is computed anew only when it subscribes to something else.
        """
        was_dirty = self._is_dirty
        is_same = old.topics == member.topics and old.assignors == member.assignors
        member.joined = old.joined
        kept = old.target or frozenset(old.holdings)
        self.remove(old)
        self.add(member)
        self.members = {one.member_id: one for one in sorted(self.members.values(), key=lambda one: one.joined)}
        member.target = kept
        self._is_dirty = was_dirty or not is_same or not old.is_heard

    def remove(self, member: Member) -> None:
        """A member is gone: everything that it holds is closed."""
        self.release(member, list(member.holdings))
        del self.members[member.member_id]
        self.changed.discard(member.member_id)
        self._gone.add(member.member_id)
        self._is_dirty = True
        if not self.members:
            self.emptied_ms = self._around.wall_ms
        self._bury(member.member_id)

    def release(self, member: Member, keys: Iterable[Key]) -> None:
        """Close what a member gave up. What it had committed is final from here on."""
        slots, around = self._around.slots, self._around
        for key in keys:
            holding = member.holdings.pop(key)
            entry = None
            if holding.file != NO_FILE:
                offset = slots.close(self.group_id, member.member_id, holding.file, holding.slot)
                known = around.offsets.get(self.group_id, key)
                if offset >= 0 and (known is None or known.offset != offset):
                    entry = self.entry(key, Committed(offset, committed_ms=around.wall_ms))
            self.closing[key] = Closing(member.member_id, holding.file, holding.slot, entry)
        if not member.is_revoking:
            member.revoking_since_ns = None
        self._free(key for key, one in list(self.closing.items()) if one.entry is None)

    def entry(self, key: Key, committed: Committed | None) -> OffsetEntry:
        """A committed offset as it goes into the log."""
        topic = self._around.image.topics.get(key[0])
        name = topic.name if topic is not None else self._around.offsets.topic_name(key[0])
        return OffsetEntry(self.group_id, name, key[0], key[1], committed)

    def unsaved(self) -> list[OffsetEntry]:
        """What must be in the log before the partitions of `closing` are free."""
        return [one.entry for one in self.closing.values() if one.entry is not None]

    def saved(self) -> None:
        """All of `unsaved` is in the log."""
        self._free(list(self.closing))

    def _free(self, keys: Iterable[Key]) -> None:
        for key in keys:
            done = self.closing.pop(key)
            if done.file != NO_FILE:
                self._around.slots.set_folded(self.group_id, done.member_id, done.file, done.slot)
            self._bury(done.member_id)

    def _bury(self, member_id: str) -> None:
        if member_id in self._gone and all(one.member_id != member_id for one in self.closing.values()):
            self._gone.discard(member_id)
            self._around.slots.remove(self.group_id, member_id)

    def settle(self, now_ns: int) -> None:
        """Bring the group as near to its target as it can be now."""
        if self._is_dirty and all(one.is_heard or one.is_away for one in self.members.values()):
            self._is_dirty = False
            self._choose_target(now_ns)
        news = [one for one in self.members.values() if one.epoch == 0]
        for one in self.members.values():
            leaving = [key for key in one.holdings if key not in one.target and not one.holdings[key].is_revoked]
            if leaving and one.is_away:
                self.release(one, leaving)
            elif leaving:
                news.append(one)
                one.revoking_since_ns = now_ns
                for key in leaving:
                    one.holdings[key].revoked_epoch = self.epoch + 1
        held = {key for one in self.members.values() for key in one.holdings} | self.closing.keys()
        for one in self.members.values():
            coming = [] if one.is_away else sorted(one.target - held)
            if coming:
                news.append(one)
            for key in coming:
                self._grant(one, key)
        self._announce(news)

    def _grant(self, member: Member, key: Key) -> None:
        start = self._around.offsets.get(self.group_id, key)
        offset = -1 if start is None else start.offset
        epoch = self.epoch + 1
        file, slot = self._around.slots.open(self.group_id, member.member_id, key, offset, epoch)
        member.holdings[key] = Holding(file, slot, epoch, start)

    def _announce(self, members: Iterable[Member]) -> None:
        found = {one.member_id: one for one in members}
        if not found:
            return
        self.epoch += 1
        for one in found.values():
            one.epoch = self.epoch
            timeouts = (one.session_timeout_ms, one.max_poll_interval_ms)
            self._around.slots.set_member(self.group_id, one.member_id, one.epoch, *timeouts)
        self.changed |= found.keys()

    def _partition_counts(self) -> dict[int, int]:
        by_name = self._around.image.by_name
        names = {name for one in self.members.values() for name in one.topics}
        return {by_name[name].topic_id: len(by_name[name].partitions) for name in names if name in by_name}

    def _candidates(self) -> list[Candidate]:
        by_name = self._around.image.by_name
        return [
            one.candidate(frozenset(by_name[name].topic_id for name in one.topics if name in by_name))
            for one in self.members.values()
        ]

    def _choose_target(self, now_ns: int) -> None:
        self.work = None
        if not self.members:
            return
        self.assignor = self._common_assignor()
        candidates, counts = self._candidates(), self._partition_counts()
        if self.assignor in ASSIGNORS:
            self._aim(ASSIGNORS[self.assignor](candidates, counts))
            return
        worker = next(one for one in self.members.values() if not one.is_away and self.assignor in one.assignors)
        self._work_count += 1
        deadline_ms = self._around.config.assignor_timeout_ms
        subscribed = [
            SubscribedMember(one.member_id, one.instance_id, list(one.topics), sorted(seen.owned), one.assignor_data)
            for one, seen in zip(self.members.values(), candidates, strict=True)
        ]
        topics = self._around.image.topics
        assignable = [AssignableTopic(one, topics[one].name, count) for one, count in sorted(counts.items())]
        ask = AssignWork(self._work_count, self.assignor, deadline_ms, subscribed, assignable)
        self.work = Work(worker.member_id, now_ns + deadline_ms * NS_PER_MS, candidates, counts, ask)
        self.changed.add(worker.member_id)

    def _common_assignor(self) -> str:
        """The first name of the member that joined first that all have; sticky when nobody is here to run another."""
        known = [one for one in self.members.values() if one.assignors]
        for name in known[0].assignors if known else ():
            sharers = [one for one in known if name in one.assignors]
            if len(sharers) == len(known) and (name in ASSIGNORS or any(not one.is_away for one in sharers)):
                return name
        return STICKY

    def _aim(self, target: Mapping[str, Iterable[Key]]) -> None:
        for one in self.members.values():
            one.target = frozenset(target.get(one.member_id, ()))

    def assigned(self, number: int, target: Target, error: str, now_ns: int) -> str:
        """The member that was asked has answered. Returns why its answer is not used; "": it is, or comes too late."""
        work = self.work
        if work is None or work.ask.number != number:
            return ""
        found = error or check_target(target, work.candidates, work.partition_counts)
        if found:
            self.give_up_work()
        else:
            self.work = None
            self._aim(target)
        self.settle(now_ns)
        return found

    def give_up_work(self) -> None:
        """The member that was asked fails: the group is sticky this time."""
        work, self.work = self.work, None
        assert work is not None
        self._aim(ASSIGNORS[STICKY](work.candidates, work.partition_counts))

    def work_for(self, member: Member) -> AssignWork | None:
        """What this member is asked to do."""
        work = self.work
        return work.ask if work is not None and work.member_id == member.member_id else None

    def has_news(self, member: Member, body: GroupHeartbeat, topics_version: int) -> bool:
        """Whether a heartbeat is to be answered at once."""
        seen = body.member_epoch if body.seen_epoch < 0 else body.seen_epoch
        work = self.work_for(member)
        is_asked = work is not None and work.number > member.work_told
        is_new_topic = bool(body.pattern) and body.topics_version != topics_version
        return seen != member.epoch or is_asked or is_new_topic or body.hold_ms <= 0
