"""Consumer groups without processes: the real `Groups`, a model of slots, and members that act on what they are told.

The model of a slot keeps the rule of `shm/commit_slots.py`: a store after closing is refused, what was stored before is
seen by closing. A member revokes at once unless its `is_slow` is set; it fails the test when it is granted what another
member still reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from zlib import crc32

from zbroker.config.schema import ServerConfig
from zbroker.core import effects as do
from zbroker.core import group_events as ev
from zbroker.core.cluster_events import Event
from zbroker.core.entries import Placement, TopicCreated, TopicDeleted
from zbroker.core.group_offsets import OffsetEntry, Offsets
from zbroker.core.groups import Groups
from zbroker.core.image import Image
from zbroker.core.sticky import Key
from zbroker.errors import CommitFailedError, DiskFullError
from zbroker.wire import group_messages as wire
from zbroker.wire.messages import Message

MS = 1_000_000
NO_SLOT = (-1, -1)


@dataclass
class SlotModel:
    """One slot: `closed` as in `commit_layout`."""

    key: Key
    start: int
    epoch: int
    committed: int = -1
    closed: int = 0


@dataclass
class FileModel:
    """A member's slot file, which outlives the coordinator."""

    names: tuple[str, str, str, str]
    incarnation: int
    slots: list[SlotModel] = field(default_factory=list)
    epoch: int = 0
    timeouts: tuple[int, int] = (0, 0)
    away_since_ns: int | None = None


class ModelSlots:
    """`group_events.Slots`, in the memory of the test."""

    def __init__(self) -> None:
        self.files_of: dict[tuple[str, str], FileModel] = {}
        self.has_room = True
        self._seen: dict[tuple[str, str, int], int] = {}

    def make(self, group_id: str, member_id: str, instance_id: str, client_id: str, incarnation: int) -> bool:
        if self.has_room:
            names = (group_id, member_id, instance_id, client_id)
            self.files_of[group_id, member_id] = FileModel(names, incarnation)
        return self.has_room

    def open(self, group_id: str, member_id: str, key: Key, start: int, epoch: int) -> tuple[int, int]:
        found = self.files_of.get((group_id, member_id))
        if found is None:
            return NO_SLOT
        found.slots.append(SlotModel(key, start, epoch))
        return 0, len(found.slots) - 1

    def _slot(self, group_id: str, member_id: str, slot: int) -> SlotModel:
        return self.files_of[group_id, member_id].slots[slot]

    def committed(self, group_id: str, member_id: str, file: int, slot: int) -> int:
        return self._slot(group_id, member_id, slot).committed

    def close(self, group_id: str, member_id: str, file: int, slot: int) -> int:
        found = self._slot(group_id, member_id, slot)
        assert found.closed == 0, "a slot is closed twice"
        found.closed = 1
        return found.committed

    def set_folded(self, group_id: str, member_id: str, file: int, slot: int) -> None:
        found = self._slot(group_id, member_id, slot)
        assert found.closed == 1, "an open slot is marked as folded"
        found.closed = 2

    def set_member(self, group_id: str, member_id: str, epoch: int, session_ms: int, max_poll_ms: int) -> None:
        found = self.files_of.get((group_id, member_id))
        if found is not None:
            assert epoch >= found.epoch, "a member's epoch goes back"
            found.epoch, found.timeouts = epoch, (session_ms, max_poll_ms)

    def set_away(self, group_id: str, member_id: str, since_ns: int) -> None:
        found = self.files_of.get((group_id, member_id))
        if found is not None:
            found.away_since_ns = since_ns

    def files(self, group_id: str, member_id: str) -> list[wire.SlotFilePlace]:
        return [wire.SlotFilePlace(0, f"/groups/{member_id}")]

    def changes(self) -> list[tuple[str, str, Key, int]]:
        found = []
        for (group_id, member_id), one in self.files_of.items():
            for index, slot in enumerate(one.slots):
                place = (group_id, member_id, index)
                if slot.committed >= 0 and not slot.closed and self._seen.get(place) != slot.committed:
                    self._seen[place] = slot.committed
                    found.append((group_id, member_id, slot.key, slot.committed))
        return found

    def look_again(self) -> None:
        self._seen.clear()

    def remove(self, group_id: str, member_id: str) -> None:
        found = self.files_of.pop((group_id, member_id), None)
        if found is not None:
            assert all(slot.closed == 2 for slot in found.slots), "a file goes before what it holds is in the log"


class World:
    """The coordinator's groups, and what came out of them."""

    groups_class: type[Groups] = Groups
    slots_class: type[ModelSlots] = ModelSlots

    def __init__(self, topics: dict[str, int] | None = None, **settings: int) -> None:
        self.image = Image()
        self.slots = self.slots_class()
        self.log: list[OffsetEntry] = []
        self.synced = 0
        self.disk_is_full = False
        self.may_overlap = False
        self.now_ns = 1_000 * MS
        self.wall_ms = 1_000_000
        self.config = ServerConfig()
        for name, value in settings.items():
            setattr(self.config.groups, name, value)
        self.replies: dict[object, Message | int] = {}
        self.watched: set[int] = set()
        self.dead: set[int] = set()
        self.warnings: list[str] = []
        self.members: dict[str, ModelMember] = {}
        self._copy_id = 0
        self._requests = 0
        for name, count in (topics or {}).items():
            self._make_topic(name, count)
        self.groups = self._new_groups([])

    def _new_groups(self, found: list[ev.FoundMember]) -> Groups:
        offsets = Offsets()
        for entry in self.log:
            offsets.apply(entry)
        self.groups = self.groups_class(self.config, self.image, self.slots, offsets)
        self.take(ev.GroupsStarted(found, self.wall_ms))
        return self.groups

    def _make_topic(self, name: str, count: int) -> None:
        placements = []
        for number in range(count):
            self._copy_id += 1
            placements.append(Placement(number, self._copy_id, "data", 16))
        self.image.apply(TopicCreated(self.image.next_topic_id, name, {}, placements))

    def make_topic(self, name: str, count: int) -> None:
        """Create a topic, as the cluster does, and tell the groups."""
        self._make_topic(name, count)
        self.take(ev.TopicsChanged())

    def delete_topic(self, name: str) -> None:
        """Delete it."""
        self.image.apply(TopicDeleted(self.image.by_name[name].topic_id))
        self.take(ev.TopicsChanged())

    def take(self, event: Event) -> None:
        """One event, and all that follows from it; then the members act on what they were told."""
        queue: list[Event] = [event]
        while queue:
            for effect in self.groups.handle(queue.pop(0), self.now_ns):
                match effect:
                    case do.Reply():
                        assert effect.request not in self.replies, "a request is answered twice"
                        self.replies[effect.request] = effect.error or effect.body or 0
                    case ev.AppendOffsets():
                        queue.insert(0, self._append(effect))
                    case ev.WatchMemberProcess():
                        self.watched.add(effect.incarnation)
                        if effect.incarnation in self.dead:
                            queue.append(ev.MemberProcessDied(effect.incarnation))
                    case do.Warn():
                        self.warnings.append(str(effect.fields.get("reason")))
                    case _:
                        raise AssertionError(f"an effect that nobody expects: {effect}")

    def _append(self, effect: ev.AppendOffsets) -> Event:
        if self.disk_is_full:
            return ev.OffsetsAppendFailed(DiskFullError())
        self.log += effect.entries
        if effect.durable:
            self.synced = len(self.log)
        return ev.OffsetsAppended()

    def request(self) -> int:
        """A name for a request."""
        self._requests += 1
        return self._requests

    def ask(self, body: Message) -> Message | int:
        """Any request but a heartbeat; its answer, or the number of its error."""
        request = self.request()
        self.take(ev.GroupAsked(request, body, self.wall_ms))
        return self.replies.pop(request)

    def restart(self) -> None:
        """Kill the coordinator; its successor finds the slot files and the log of offsets."""
        found = []
        for one in self.slots.files_of.values():
            slots = [
                ev.FoundSlot(0, index, slot.key, slot.closed == 0, slot.start, slot.epoch, slot.committed)
                for index, slot in enumerate(one.slots)
                if slot.closed != 2
            ]
            away = one.away_since_ns
            member = ev.FoundMember(*one.names, one.incarnation, one.epoch, *one.timeouts, away, slots)
            found.append(member)
        for known in self.members.values():
            known.parked = None
        self.slots.look_again()
        self._new_groups(found)

    def pass_ms(self, ms: int, step_ms: int = 100) -> None:
        """Let time go on, members beating."""
        for _ in range(0, ms, step_ms):
            self.now_ns += step_ms * MS
            self.wall_ms += step_ms
            self.take(ev.GroupsTicked(self.wall_ms))
            self.run()

    def run(self) -> None:
        """Have every member act on its answers, and beat again, until nothing is new."""
        for _ in range(200):
            steps = [member.step() for member in list(self.members.values())]
            if not any(steps):
                return
        raise AssertionError("the group does not come to rest")

    def join(self, name: str, *topics: str, **options: object) -> ModelMember:
        """A new member of group "g" joins, and everybody acts until all is quiet."""
        member = ModelMember(self, name, list(topics) or ["t"], **options)  # type: ignore[arg-type]
        self.members[name] = member
        self.run()
        return member

    def die(self, member: ModelMember) -> None:
        """SIGKILL the member's process."""
        del self.members[member.member_id]
        self.dead.add(member.incarnation)
        self.take(ev.MemberProcessDied(member.incarnation))
        self.run()

    def owners(self) -> dict[Key, str]:
        """Who reads what."""
        found: dict[Key, str] = {}
        for member in self.members.values():
            for key in member.owned:
                assert self.may_overlap or key not in found, f"{key} is read by {found[key]} and {member.member_id}"
                found[key] = member.member_id
        return found


@dataclass
class ModelMember:
    """A consumer, as the contract of `wire/group_messages.py` wants it."""

    world: World
    member_id: str
    topics: list[str]
    group_id: str = "g"
    instance_id: str = ""
    incarnation: int = 0
    assignors: tuple[str, ...] = ("sticky",)
    pattern: str = ""
    session_timeout_ms: int = 10_000
    max_poll_interval_ms: int = 300_000
    polled_ago_ms: int = 0
    is_slow: bool = False  # it does not give up what it is told to
    is_silent: bool = False
    works: bool = True
    is_remote: bool = False  # it commits by messages
    owned: dict[Key, tuple[int, int]] = field(default_factory=dict)
    positions: dict[Key, int] = field(default_factory=dict)
    revoked: list[Key] = field(default_factory=list)
    epoch: int = 0
    seen: int = 0
    topics_version: int = 0
    parked: int | None = None
    error: int = 0
    answer: wire.GroupAssignment | None = None

    def __post_init__(self) -> None:
        self.incarnation = self.incarnation or crc32(self.member_id.encode()) + (1 << 33)

    def beat(self, **changes: object) -> int:
        """Send a heartbeat."""
        body = wire.GroupHeartbeat(
            self.group_id, self.member_id, self.epoch, self.instance_id, "app", self.incarnation, self.topics,
            self.pattern, list(self.assignors), b"", sorted(self.owned), self.session_timeout_ms,
            self.max_poll_interval_ms, self.polled_ago_ms, 3_000, self.topics_version, self.seen,
        )  # fmt: skip
        self.parked = self.world.request()
        local = self.incarnation if changes.get("is_local", not self.is_remote) else 0
        self.world.take(ev.HeartbeatCame(self.parked, body, local))
        return self.parked

    def step(self) -> bool:
        """Act on an answer, or send a heartbeat. Returns whether there was anything to do."""
        if self.error or self.is_silent:
            return False
        if self.parked is None:
            self.beat()
            return True
        reply = self.world.replies.pop(self.parked, None)
        if reply is None:
            if self.epoch != self.seen and not self.is_slow and self.answer is not None:
                self._act(self.answer)
                self.beat()
                return True
            return False
        self.parked = None
        if isinstance(reply, int):
            self.error = reply
            self.owned.clear()
        else:
            assert isinstance(reply, wire.GroupAssignment)
            self._take(reply)
        return True

    def _take(self, answer: wire.GroupAssignment) -> None:
        if answer.member_epoch < self.seen:
            return
        self.answer, self.seen, self.topics_version = answer, answer.member_epoch, answer.topics_version
        named = {(topic.topic_id, one.partition) for topic in answer.topics for one in topic.partitions}
        if self.is_slow and set(self.owned) - named:
            return
        self._act(answer)
        if answer.work is not None and self.works:
            self.work(answer.work)

    def _act(self, answer: wire.GroupAssignment) -> None:
        places = {}
        for topic in answer.topics:
            for one in topic.partitions:
                places[topic.topic_id, one.partition] = ((one.file, one.slot), one.committed)
        for key in list(self.owned):
            if key not in places:
                self.revoked.append(key)
                del self.owned[key]
        for key, (place, committed) in places.items():
            if self.owned.get(key) != place:
                self.owned[key] = place
                self.positions[key] = max(0, committed)
        self.epoch = answer.member_epoch
        self.world.owners()

    def work(self, ask: wire.AssignWork) -> None:
        """Run the member's own assignor: everything to the last member by name."""
        last = max(one.member_id for one in ask.members)
        keys = [(topic.topic_id, number) for topic in ask.topics for number in range(topic.partition_count)]
        targets = [wire.MemberTarget(last, keys)]
        self.world.ask(wire.GroupAssign(self.group_id, self.member_id, ask.number, targets))

    def message(self, key: Key, offset: int) -> wire.OffsetCommit:
        """What it would send to commit."""
        one = wire.OffsetToCommit("", key[0], key[1], offset, -1, "")
        return wire.OffsetCommit(self.group_id, self.member_id, self.epoch, False, [one])

    def commit(self, key: Key, offset: int) -> None:
        """Store into the slot. Raises CommitFailedError."""
        slots = self.world.slots.files_of.get((self.group_id, self.member_id))
        if slots is None or slots.slots[self.owned[key][1]].closed:
            raise CommitFailedError()
        slots.slots[self.owned[key][1]].committed = offset

    def leave(self, *, is_temporary: bool = False) -> Message | int:
        """Leave the group."""
        self.world.members.pop(self.member_id, None)
        self.owned.clear()
        found = self.world.ask(wire.GroupLeave(self.group_id, self.member_id, is_temporary))
        self.world.run()
        return found
