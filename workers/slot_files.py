"""The slots of members, as files in shared memory: what `core/group_events.Slots` asks for.

A member gets a file when it joins, and a further one when that has no more slots. The files outlive the coordinator:
`found` gives a successor everything that it must know of the members. A file that cannot be read is left by a zbroker
of another version and removed: its member commits by message and joins again.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from zbroker.core import group_events as ev
from zbroker.core.sticky import Key
from zbroker.errors import BrokerError
from zbroker.shm import commit_layout as layout
from zbroker.shm.commit_slots import CoordinatorSlots, SlotNames, find_slot_files, slot_file_path
from zbroker.shm.layout import cell_key
from zbroker.wire.group_messages import SlotFilePlace

NO_SLOT: Final = (-1, -1)
GROWTH: Final = 4
_Name = tuple[str, str]


class _Member:
    """The files of one member, the newest last; `seen` is what they held when they were looked at last."""

    def __init__(self) -> None:
        self.files: dict[int, CoordinatorSlots] = {}
        self.seen: dict[int, list[int]] = {}
        self.epoch = (0, 0, 0)

    @property
    def newest(self) -> CoordinatorSlots:
        return self.files[max(self.files)]


class SlotFiles:
    """See the module, and `core/group_events.Slots` for the calls."""

    def __init__(self, directory: Path, incarnation: int) -> None:
        self._directory = directory
        self._incarnation = incarnation
        self._members: dict[_Name, _Member] = {}
        self._made_count = 0
        self._log = logging.getLogger(__name__)

    def found(self) -> list[ev.FoundMember]:
        """Attach what a dead coordinator has left; the members in the order in which they joined."""
        for path in sorted(find_slot_files(self._directory), key=_age):
            try:
                file = CoordinatorSlots.attach(path)
            except FileNotFoundError:
                continue
            except BrokerError as error:
                self._log.warning("a slot file that cannot be read is removed", extra={"error": error})
                path.unlink(missing_ok=True)
                continue
            member = self._members.setdefault((file.names.group_id, file.names.member_id), _Member())
            member.files[file.file] = file
        return [self._found(member) for member in self._members.values()]

    def _found(self, member: _Member) -> ev.FoundMember:
        newest = member.newest
        slots = [
            ev.FoundSlot(
                number,
                one.slot,
                (one.topic_id, one.partition),
                one.closed == layout.OPEN,
                one.start,
                one.granted_epoch,
                one.committed,
            )
            for number, file in member.files.items()
            for one in file.views()
            if one.closed != layout.FOLDED
        ]
        member.epoch = (newest.member_epoch, newest.session_timeout_ms, newest.max_poll_interval_ms)
        names = newest.names
        is_away = newest.state is layout.MemberState.AWAY
        away_since_ns = newest.away_since_ns if is_away else None
        return ev.FoundMember(*names, newest.incarnation, *member.epoch, away_since_ns, slots)

    def make(self, group_id: str, member_id: str, instance_id: str, client_id: str, incarnation: int) -> bool:
        """See `Slots`."""
        member = _Member()
        names = SlotNames(group_id, member_id, instance_id, client_id)
        if self._add_file(member, names, incarnation, layout.SLOTS_MIN) is None:
            return False
        self._members[group_id, member_id] = member
        return True

    def _add_file(
        self, member: _Member, names: SlotNames, incarnation: int, slot_count: int
    ) -> CoordinatorSlots | None:
        self._made_count += 1
        path = slot_file_path(self._directory, self._incarnation, self._made_count)
        number = len(member.files)
        try:
            file = CoordinatorSlots.create(path, names, incarnation, number, slot_count)
        except BrokerError as error:
            self._log.warning("no room for slots: a member commits by message", extra={"error": error})
            return None
        member.files[number] = file
        if any(member.epoch):
            file.set_member(*member.epoch)
        return file

    def open(self, group_id: str, member_id: str, key: Key, start: int, epoch: int) -> tuple[int, int]:
        """See `Slots`."""
        member = self._members.get((group_id, member_id))
        if member is None:
            return NO_SLOT
        file: CoordinatorSlots | None = member.newest
        assert file is not None
        if not file.room:
            slot_count = min(GROWTH * file.slot_count, layout.SLOTS_MAX)
            file = self._add_file(member, file.names, file.incarnation, slot_count)
            if file is None:
                return NO_SLOT
        return file.file, file.open_slot(cell_key(*key), start, epoch)

    def committed(self, group_id: str, member_id: str, file: int, slot: int) -> int:
        """See `Slots`."""
        return self._members[group_id, member_id].files[file].committed(slot)

    def progress(self, group_id: str, member_id: str, file: int, slot: int) -> int:
        """The furthest that the member has read or committed there; -1: nothing."""
        view = self._members[group_id, member_id].files[file].view(slot)
        return max(view.position, view.committed)

    def close(self, group_id: str, member_id: str, file: int, slot: int) -> int:
        """See `Slots`."""
        return self._members[group_id, member_id].files[file].close_slot(slot)

    def set_folded(self, group_id: str, member_id: str, file: int, slot: int) -> None:
        """See `Slots`."""
        self._members[group_id, member_id].files[file].set_folded(slot)

    def set_member(self, group_id: str, member_id: str, epoch: int, session_ms: int, max_poll_ms: int) -> None:
        """See `Slots`."""
        member = self._members.get((group_id, member_id))
        if member is not None:
            member.epoch = (epoch, session_ms, max_poll_ms)
            for file in member.files.values():
                file.set_member(*member.epoch)

    def set_away(self, group_id: str, member_id: str, since_ns: int) -> None:
        """See `Slots`."""
        member = self._members.get((group_id, member_id))
        if member is not None:
            for file in member.files.values():
                file.set_state(layout.MemberState.AWAY, since_ns)

    def files(self, group_id: str, member_id: str) -> list[SlotFilePlace]:
        """See `Slots`."""
        member = self._members.get((group_id, member_id))
        return [] if member is None else [SlotFilePlace(file.file, str(file.path)) for file in member.files.values()]

    def changes(self) -> list[tuple[str, str, Key, int]]:
        """See `Slots`."""
        found = []
        for (group_id, member_id), member in self._members.items():
            for number, file in member.files.items():
                words, seen = file.member_words(), member.seen.get(number, [])
                if words == seen:
                    continue
                member.seen[number] = words
                for slot in range(len(words) // layout.SLOT_WORDS):
                    at = slot * layout.SLOT_WORDS
                    if words[at] != layout.NOTHING_COMMITTED and seen[at : at + 1] != [words[at]]:
                        view = file.view(slot)
                        if view.closed == layout.OPEN:
                            offset = layout.committed_offset(words[at])
                            found.append((group_id, member_id, (view.topic_id, view.partition), offset))
        return found

    def look_again(self) -> None:
        """See `Slots`."""
        for member in self._members.values():
            member.seen.clear()

    def remove(self, group_id: str, member_id: str) -> None:
        """See `Slots`."""
        member = self._members.pop((group_id, member_id), None)
        if member is not None:
            for file in member.files.values():
                file.remove()

    def close_all(self) -> None:
        """Unmap every file, and leave it for the next coordinator."""
        for member in self._members.values():
            for file in member.files.values():
                file.close()
        self._members.clear()


def _age(path: Path) -> tuple[int, int]:
    incarnation, _, number = path.stem.partition("-")
    try:
        return int(incarnation, 16), int(number)
    except ValueError:
        return (0, 0)
