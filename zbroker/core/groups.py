"""All consumer groups as a state machine: events in, effects out. No I/O, no clock, no randomness.

State: the groups' members, which their slot files outlive (`group_events.Slots`), and the image of what they have
committed, which the log of offsets gives. A change of the image is first an effect and, when that is done, a fact:

    handle(event) -> ..., AppendOffsets                 the last effect, when something must be written down first
    handle(OffsetsAppended) -> what follows from it     the partitions are free, the commits are answered
    handle(OffsetsAppendFailed) -> what to say instead  nothing has happened; what was closed is tried again

After a restart of the coordinator each group waits until every member of before has said how it is, has died, or has
been silent for its session timeout; until then nobody is granted what another may have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from zbroker.clock import NS_PER_MS
from zbroker.config.schema import ServerConfig
from zbroker.core import effects as do
from zbroker.core import group_events as ev
from zbroker.core.cluster_events import Event
from zbroker.core.effects import Effect
from zbroker.core.group import Closing, Group, Surroundings
from zbroker.core.group_answers import assignment
from zbroker.core.group_joining import check_heartbeat, joined, restored
from zbroker.core.group_member import Member, Parked
from zbroker.core.group_offsets import Committed, OffsetEntry, Offsets
from zbroker.core.group_requests import GroupRequests
from zbroker.core.group_timing import GroupTiming
from zbroker.core.image import Image
from zbroker.errors import (
    BrokerError,
    FencedMemberEpochError,
    GroupMaxSizeReachedError,
    IllegalTransition,
    PolicyViolationError,
    UnknownMemberIdError,
    UnreleasedInstanceIdError,
)
from zbroker.wire.group_messages import GroupAssign, GroupHeartbeat, GroupLeave
from zbroker.wire.messages import Done

RETENTION_INTERVAL_MS: Final = 60_000
Then = Callable[[BrokerError | None], Effect]


class _Append(NamedTuple):
    entries: list[OffsetEntry]
    groups: list[Group]
    then: list[Then]


class Groups:
    """See the module. Only `handle` changes it."""

    requests_class: type[GroupRequests] = GroupRequests

    def __init__(self, config: ServerConfig, image: Image, slots: ev.Slots, offsets: Offsets) -> None:
        """`config` is read at each use; `image` is the cluster's; `offsets` is what the log gives."""
        self.around = Surroundings(config.groups, image, slots, offsets)
        self.groups: dict[str, Group] = {}
        self.topics_version = 1
        self._requests = self.requests_class(self)
        self._by_incarnation: dict[int, set[tuple[str, str]]] = {}
        self.timing = GroupTiming(self)
        self._out: list[Effect] = []
        self._touched: dict[str, Group] = {}
        self._entries: list[OffsetEntry] = []
        self._then: list[Then] = []
        self._is_durable = False
        self._append: _Append | None = None
        self._commits_ns = 0
        self._retention_ns = 0
        self._is_started = False

    def handle(self, event: Event, now_ns: int) -> list[Effect]:
        """Take one event; what is to be done about it, in order. Raises IllegalTransition, and changes nothing, for an
        event before `GroupsStarted` or between an append and its outcome."""
        is_outcome = isinstance(event, ev.OffsetsAppended | ev.OffsetsAppendFailed)
        if is_outcome != (self._append is not None):
            raise IllegalTransition(f"{type(event).__name__}: an append is {'' if is_outcome else 'not '}answered")
        if self._is_started == isinstance(event, ev.GroupsStarted):
            raise IllegalTransition(f"{type(event).__name__}: the start comes first, and once")
        self._is_started = True
        _HANDLERS[type(event)](self, event, now_ns)
        for group in self._touched.values():
            self._bring_on(group, now_ns)
        self._write_down()
        effects, self._out = self._out, []
        return effects

    def touch(self, group: Group) -> None:
        """Have a group settled, and its members told, when the event is dealt with."""
        self._touched[group.group_id] = group

    def commit(self, entries: list[OffsetEntry], *, durable: bool, then: Then) -> None:
        """Have entries appended when the event is dealt with; `then(error)` gives the answer."""
        self._entries += entries
        self._is_durable |= durable
        self._then.append(then)

    def reply(self, effect: Effect) -> None:
        """Have this done."""
        self._out.append(effect)

    def _bring_on(self, group: Group, now_ns: int) -> None:
        group.settle(now_ns)
        for member_id in sorted(group.changed):
            member = group.members.get(member_id)
            if member is not None and member.parked is not None:
                self.answer(group, member)
        group.changed.clear()
        if self.groups.get(group.group_id) is group:
            self.timing.look_at(group)
        if group.is_idle and not self.around.offsets.of(group.group_id):
            self._forget(group)

    def _forget(self, group: Group) -> None:
        if self.groups.get(group.group_id) is group:
            del self.groups[group.group_id]
            self.timing.forget(group)

    def _write_down(self) -> None:
        touched = list(self._touched.values())
        self._touched = {}
        entries = [*self._entries, *(entry for group in touched for entry in group.unsaved())]
        then, durable = self._then, self._is_durable
        self._entries, self._then, self._is_durable = [], [], False
        if not entries and not durable:
            self._out += [one(None) for one in then]
            return
        self._append = _Append(entries, touched, then)
        self._out.append(ev.AppendOffsets(entries, durable))

    def _appended(self, _: ev.OffsetsAppended, now_ns: int) -> None:
        done, self._append = self._append, None
        assert done is not None
        for entry in done.entries:
            self.around.offsets.apply(entry)
        self._out += [one(None) for one in done.then]
        for group in done.groups:
            group.saved()
            self.touch(group)

    def _append_failed(self, event: ev.OffsetsAppendFailed, _: int) -> None:
        given_up, self._append = self._append, None
        assert given_up is not None
        self.around.slots.look_again()
        self._out += [one(event.error) for one in given_up.then]

    def _started(self, event: ev.GroupsStarted, now_ns: int) -> None:
        self.around.wall_ms = event.wall_ms
        for found in event.members:
            group = self.groups.setdefault(found.group_id, Group(found.group_id, self.around))
            member = restored(found, self.around.offsets, self.around.image, now_ns)
            if member.member_id in group.members:
                continue
            group.add(member)
            for slot in found.slots:
                if slot.is_open:
                    continue
                entry = None
                if slot.committed >= 0:
                    entry = group.entry(slot.key, Committed(slot.committed, committed_ms=self.around.wall_ms))
                group.closing[slot.key] = Closing(member.member_id, slot.file, slot.slot, entry)
            if member.incarnation and not member.is_away:
                self._watch(group, member)
            self.touch(group)

    def _watch(self, group: Group, member: Member) -> None:
        if member.incarnation not in self._by_incarnation:
            self._by_incarnation[member.incarnation] = set()
            self._out.append(ev.WatchMemberProcess(member.incarnation))
        self._by_incarnation[member.incarnation].add((group.group_id, member.member_id))

    def _heartbeat(self, event: ev.HeartbeatCame, now_ns: int) -> None:
        body = event.body
        group = self.groups.get(body.group_id)
        member = group.members.get(body.member_id) if group is not None else None
        if group is None or member is None:
            if body.member_epoch != 0:
                raise UnknownMemberIdError(f"member {body.member_id} is not in group {body.group_id}")
            group, member = self._join(event, now_ns)
        else:
            self._hear(group, member, body, now_ns)
        if member.parked is not None:
            self.answer(group, member)
        self.touch(group)
        self._bring_on(group, now_ns)
        hold_ms = max(0, min(body.hold_ms, self.around.config.heartbeat_interval_ms))
        member.parked = Parked(event.request, now_ns + hold_ms * NS_PER_MS)
        if group.has_news(member, body, self.topics_version):
            self.answer(group, member)

    def _join(self, event: ev.HeartbeatCame, now_ns: int) -> tuple[Group, Member]:
        body, config = event.body, self.around.config
        check_heartbeat(body, config)
        group = self.groups.get(body.group_id)
        if group is None:
            if len(self.groups) >= config.groups_max:
                raise PolicyViolationError(f"there are {config.groups_max} groups already", hint="[groups] groups_max")
            group = Group(body.group_id, self.around)
        old = group.by_instance(body.instance_id)
        if old is not None and not old.is_away:
            raise UnreleasedInstanceIdError(f"{body.instance_id}: member {old.member_id} has it and lives")
        if old is None and len(group.members) >= config.members_max:
            raise GroupMaxSizeReachedError(f"group {body.group_id} has {config.members_max} members")
        group.check_assignors(body.assignors, "" if old is None else old.member_id)
        member = joined(body, event.incarnation, now_ns)
        self.groups[group.group_id] = group
        names = (group.group_id, body.member_id, body.instance_id, body.client_id)
        if not self.around.slots.make(*names, event.incarnation):
            member.incarnation = 0
        if old is not None:
            self._unwatch(group, old)
            group.replace(old, member)
        else:
            group.add(member)
        if member.incarnation:
            self._watch(group, member)
        return group, member

    def _hear(self, group: Group, member: Member, body: GroupHeartbeat, now_ns: int) -> None:
        if member.is_away:
            raise UnknownMemberIdError(f"member {member.member_id} has left, and may come back under another id")
        if max(body.member_epoch, body.seen_epoch) > member.epoch:
            raise FencedMemberEpochError(f"epoch {body.member_epoch} of member {member.member_id} is not known")
        if body.polled_ago_ms > body.max_poll_interval_ms:
            self.remove(group, member, UnknownMemberIdError("max_poll_interval_ms passed without a poll"))
            self.touch(group)
            raise UnknownMemberIdError(f"member {member.member_id} has not polled for {body.polled_ago_ms} ms")
        if tuple(body.assignors) != member.assignors:
            group.check_assignors(body.assignors, member.member_id)
        if member.take_subscription(body) or not member.is_heard:
            group.mark_dirty()
        member.is_heard = True
        if member.take_signs_of_life(body, now_ns):
            timeouts = (member.session_timeout_ms, member.max_poll_interval_ms)
            self.around.slots.set_member(group.group_id, member.member_id, member.epoch, *timeouts)
        if given_up := member.given_up(body):
            group.release(member, given_up)

    def answer(self, group: Group, member: Member) -> None:
        """Answer the heartbeat that waits: the whole of what the member may read."""
        parked, member.parked = member.parked, None
        assert parked is not None
        body = assignment(self.around, group, member, self.topics_version)
        if body.work is not None:
            member.work_told = body.work.number
        self._out.append(do.Reply(parked.request, body))

    def remove(self, group: Group, member: Member, error: BrokerError) -> None:
        """A member is gone; who asks for it hears `error`."""
        if member.parked is not None:
            self._out.append(do.Reply(member.parked.request, None, error.code, error.wire_text))
            member.parked = None
        self._unwatch(group, member)
        group.remove(member)
        self.touch(group)

    def _unwatch(self, group: Group, member: Member) -> None:
        """Its process is still watched, as it may have other members; its end means nothing to this one."""
        of_process = self._by_incarnation.get(member.incarnation, set())
        of_process.discard((group.group_id, member.member_id))

    def _leave(self, request: object, body: GroupLeave, now_ns: int) -> None:
        group = self.groups.get(body.group_id)
        member = group.members.get(body.member_id) if group is not None else None
        if group is None or member is None:
            raise UnknownMemberIdError(f"member {body.member_id} is not in group {body.group_id}")
        entries = self._requests.stored(group, member)
        if body.is_temporary and member.instance_id:
            self._put_away(group, member, now_ns)
        else:
            self.remove(group, member, UnknownMemberIdError("it has left"))
            entries = []

        def answer(error: BrokerError | None) -> Effect:
            if error is not None:
                return do.Reply(request, None, error.code, error.wire_text)
            return do.Reply(request, Done())

        self.commit(entries, durable=False, then=answer)

    def _put_away(self, group: Group, member: Member, now_ns: int) -> None:
        """A static member has stopped: what it has waits for it, until its session times out."""
        member.parked = None
        member.away_since_ns = now_ns
        self.around.slots.set_away(group.group_id, member.member_id, now_ns)
        self._unwatch(group, member)
        self.touch(group)

    def _process_died(self, event: ev.MemberProcessDied, now_ns: int) -> None:
        for group_id, member_id in sorted(self._by_incarnation.pop(event.incarnation, ())):
            group = self.groups[group_id]
            member = group.members[member_id]
            member.parked = None  # nobody is there to hear an answer
            if member.instance_id:
                self._put_away(group, member, now_ns)
            else:
                self.remove(group, member, UnknownMemberIdError("its process has ended"))

    def _topics_changed(self, _: ev.TopicsChanged, now_ns: int) -> None:
        self.topics_version += 1
        for group in self.groups.values():
            if not group.members:
                continue
            group.mark_dirty()
            self.touch(group)
            for member in group.members.values():
                if member.pattern and member.parked is not None:
                    self.answer(group, member)

    def _asked(self, event: ev.GroupAsked, now_ns: int) -> None:
        self.around.wall_ms = event.wall_ms
        match event.body:
            case GroupLeave() as body:
                self._leave(event.request, body, now_ns)
            case GroupAssign() as body:
                self._assigned(event.request, body, now_ns)
            case _:
                self._requests.serve(event.request, event.body, now_ns)

    def _assigned(self, request: object, body: GroupAssign, now_ns: int) -> None:
        group = self.groups.get(body.group_id)
        member = group.members.get(body.member_id) if group is not None else None
        if group is None or member is None:
            raise UnknownMemberIdError(f"member {body.member_id} is not in group {body.group_id}")
        if group.work_for(member) is not None:
            target = {one.member_id: [(topic, number) for topic, number in one.partitions] for one in body.targets}
            reason = group.assigned(body.number, target, body.error, now_ns)
            if reason:
                self.warn_of_assignor(group, reason)
        self.touch(group)
        self._out.append(do.Reply(request, Done()))

    def warn_of_assignor(self, group: Group, reason: str) -> None:
        """Tell a person why the group is sticky."""
        fields: dict[str, object] = {"group": group.group_id, "assignor": group.assignor, "reason": reason}
        self._out.append(do.Warn("a member's assignor gave no assignment: the group is sticky this time", fields))

    def _ticked(self, event: ev.GroupsTicked, now_ns: int) -> None:
        self.around.wall_ms = event.wall_ms
        self.timing.look(now_ns)
        if now_ns >= self._commits_ns:
            self._commits_ns = now_ns + self.around.config.commit_interval_ms * NS_PER_MS
            self._entries += self._requests.changes()
        if now_ns >= self._retention_ns:
            self._retention_ns = now_ns + RETENTION_INTERVAL_MS * NS_PER_MS
            self._entries += self._requests.expired()


def _asks(call: Callable[[Groups, Any, int], None]) -> Callable[[Groups, Any, int], None]:
    """Who asks for what cannot be is told so."""

    def guarded(groups: Groups, event: Any, now_ns: int) -> None:
        try:
            call(groups, event, now_ns)
        except BrokerError as error:
            groups.reply(do.Reply(event.request, None, error.code, error.wire_text))

    return guarded


_HANDLERS: Final[dict[type[Event], Callable[[Groups, Any, int], None]]] = {
    ev.GroupsStarted: Groups._started,
    ev.HeartbeatCame: _asks(Groups._heartbeat),
    ev.GroupAsked: _asks(Groups._asked),
    ev.MemberProcessDied: Groups._process_died,
    ev.TopicsChanged: Groups._topics_changed,
    ev.OffsetsAppended: Groups._appended,
    ev.OffsetsAppendFailed: Groups._append_failed,
    ev.GroupsTicked: Groups._ticked,
}
