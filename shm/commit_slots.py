"""Commits as stores into shared memory: the slots of one member, for the member and for the coordinator.

WHY NO COMMIT IS LOST THAT WAS REPORTED DONE. Two words of a slot matter: `committed`, stored by the member alone, and
`closed`, stored by the coordinator alone.

    member:       store committed;  FENCE;  read closed;     0: the commit is done, else it failed
    coordinator:  store closed;     FENCE;  read committed;  that is final: into the log, then another owner

Each fence orders a store before a load. So if the member reads `closed` = 0, its read was before the coordinator's
store, hence its own store, which was earlier still, is seen by the coordinator's read, which is later still. If the
member reads 1, it says that the commit failed: the coordinator may have seen it or not, and whoever is granted the
partition begins at what the coordinator saw. Without the two fences a quarter of raced commits were reported done and
lost.

Members commit a million times a second, the coordinator closes some slots a minute. So where the kernel can, the
coordinator makes all members pass a barrier in place of its own fence (`barrier`), and a member that has registered for
that leaves its fence out. The argument is the same: a store and load that both come before the barrier are the first
case, a load after it is the second. A member that has not registered (yet), and one whose file says that it is closed
by a fence alone, go on with their own.

The marks lie in the member's file, not on the coordinator's board: they outlive a coordinator, and its successor
closes slots where the members already look.

The last store wins: going back is legal. The other words are for information; the argument of `position` and
`polled_ns` is that one aligned 8-byte store is never seen in part.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from ctypes import c_uint64
from pathlib import Path
from typing import NamedTuple, Self, TypeAlias

from zbroker.errors import CommitFailedError, StorageError
from zbroker.shm import barrier, region
from zbroker.shm import commit_layout as layout
from zbroker.shm.fence import WEAK_ORDER, fence
from zbroker.shm.layout import HEADER_BYTES, WORD_BYTES, check_header, split_key

_GRANTS_AT = HEADER_BYTES // WORD_BYTES
_SUFFIX = ".slots"
_NEW_SLOT = struct.pack("=QQ", layout.NOTHING_COMMITTED, 0)

SlotPlace: TypeAlias = tuple[memoryview, c_uint64]
"""`committed` of a slot, as a view of one word, and `closed`, as an object that is true while the word in the file is
not 0: to ask that costs 9 ns, to load the word from a view 25. No named tuple: it is unpacked with each commit."""


class SlotNames(NamedTuple):
    """Whose file it is."""

    group_id: str
    member_id: str
    instance_id: str
    client_id: str


class SlotView(NamedTuple):
    """A slot as it stands. Offsets are -1 where nothing was stored."""

    slot: int
    topic_id: int
    partition: int
    closed: int
    start: int
    granted_epoch: int
    committed: int
    position: int


def slot_file_path(groups_dir: Path, coordinator_incarnation: int, number: int) -> Path:
    """The name of the `number`th file that a coordinator makes."""
    return groups_dir / f"{coordinator_incarnation:016x}-{number}{_SUFFIX}"


def find_slot_files(groups_dir: Path) -> list[Path]:
    """Every slot file that is there, the oldest name first. Empty without the directory."""
    try:
        names = os.listdir(groups_dir)
    except FileNotFoundError:
        return []
    return [groups_dir / name for name in sorted(names) if name.endswith(_SUFFIX) and not name.startswith(".")]


class SlotFileReader:
    """A slot file, for whoever only looks: works with the member, the coordinator and the whole broker dead."""

    def __init__(self, area: region.Region, path: Path) -> None:
        words = area.u64
        check_header(words, layout.SLOTS_MAGIC, layout.SLOTS_VERSION, str(path))
        self.path = path
        self._region = area
        self._words = words
        self.slot_count: int = words[layout.S_SLOT_COUNT]
        self.incarnation: int = words[layout.S_INCARNATION]
        self.file: int = words[layout.S_FILE]
        self._slots_at: int = words[layout.S_MEMBER_POSITION] // WORD_BYTES
        length = min(words[layout.S_NAMES_BYTES], layout.NAMES_BYTES_MAX)
        at = layout.NAMES_POSITION
        text = bytes(area.bytes[at : at + length]).decode("utf-8", "replace")
        self.names = SlotNames(*[*text.split("\0"), "", "", "", ""][:4])

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map a file read-only. Raises FileNotFoundError, StorageError, UnsupportedVersionError."""
        return cls._attach(path, is_writable=False)

    @classmethod
    def _attach(cls, path: Path, *, is_writable: bool) -> Self:
        area = region.attach_file(path, is_writable=is_writable)
        try:
            return cls(area, path)
        except BaseException:
            area.close()
            raise

    @property
    def member_epoch(self) -> int:
        """The newest epoch that the coordinator gave the member."""
        return int(self._words[layout.S_MEMBER_EPOCH])

    @property
    def state(self) -> layout.MemberState:
        """What the coordinator says of the member."""
        return layout.MemberState(self._words[layout.S_STATE])

    @property
    def polled_ns(self) -> int:
        """When the application asked for records last, on the monotonic clock; 0: never."""
        return int(self._words[layout.S_POLLED_NS])

    @property
    def session_timeout_ms(self) -> int:
        """The member's session timeout."""
        return int(self._words[layout.S_SESSION_TIMEOUT_MS])

    @property
    def max_poll_interval_ms(self) -> int:
        """The member's longest time between polls."""
        return int(self._words[layout.S_MAX_POLL_INTERVAL_MS])

    @property
    def away_since_ns(self) -> int:
        """Since when a static member is away, on the monotonic clock."""
        return int(self._words[layout.S_AWAY_SINCE_NS])

    @property
    def slots_used(self) -> int:
        """How many slots were given out."""
        return int(self._words[layout.S_SLOTS_USED])

    def committed(self, slot: int) -> int:
        """What the member stored last; -1: nothing."""
        return layout.committed_offset(self._words[self._slot(slot) + layout.M_COMMITTED])

    def member_words(self) -> list[int]:
        """The member's words of all slots that were given out, as they stand in the layout."""
        at = self._slots_at
        words: list[int] = self._words[at : at + self.slots_used * layout.SLOT_WORDS].tolist()
        return words

    def view(self, slot: int) -> SlotView:
        """A slot, of any state."""
        grant, words = self._grant(slot), self._words
        topic_id, partition = split_key(words[grant + layout.G_KEY])
        at = self._slot(slot)
        return SlotView(
            slot,
            topic_id,
            partition,
            words[grant + layout.G_CLOSED],
            words[grant + layout.G_START] - 1,
            words[grant + layout.G_GRANTED_EPOCH],
            layout.committed_offset(words[at + layout.M_COMMITTED]),
            words[at + layout.M_POSITION] - 1,
        )

    def views(self) -> list[SlotView]:
        """Every slot that was given out."""
        return [self.view(slot) for slot in range(self.slots_used)]

    def close(self) -> None:
        """Unmap."""
        self._region.close()

    def _grant(self, slot: int) -> int:
        assert 0 <= slot < self.slot_count, f"slot {slot} of {self.slot_count}"
        return _GRANTS_AT + slot * layout.GRANT_WORDS

    def _slot(self, slot: int) -> int:
        assert 0 <= slot < self.slot_count, f"slot {slot} of {self.slot_count}"
        return self._slots_at + slot * layout.SLOT_WORDS


class MemberSlots(SlotFileReader):
    """A slot file, for the member that it was made for. One thread stores at a time."""

    @classmethod
    def attach(cls, path: Path) -> Self:
        """Map it for storing. Raises FileNotFoundError when the member was thrown out, StorageError,
        UnsupportedVersionError."""
        return cls._attach(path, is_writable=True)

    def commit(self, slot: int, offset: int) -> None:
        """Return when the offset is committed: it survives this process and the coordinator.

        Raises CommitFailedError when the partition was taken away: then it may have been kept or not.
        """
        assert offset >= 0, f"offset {offset}"
        words = self._words
        words[self._slot(slot) + layout.M_COMMITTED] = layout.committed_word(offset)
        fence()
        if words[self._grant(slot) + layout.G_CLOSED]:
            raise CommitFailedError()

    def is_closed(self, slot: int) -> bool:
        """Whether the partition was taken away. One load."""
        return bool(self._words[self._grant(slot) + layout.G_CLOSED])

    def note_position(self, slot: int, offset: int) -> None:
        """Show where the member reads."""
        self._words[self._slot(slot) + layout.M_POSITION] = offset + 1

    def note_poll(self, now_ns: int) -> None:
        """Show that the application asked for records."""
        self._words[layout.S_POLLED_NS] = now_ns

    @property
    def needs_fence(self) -> bool:
        """Whether a commit needs a fence of its own. Not any more, once this process has registered for barriers."""
        return self._words[layout.S_CLOSED_BY] != layout.BY_BARRIER or not barrier.is_registered()

    def committer(self, slot: int) -> Callable[[int], None]:
        """A short way to commit into one slot, while the file is mapped."""
        committed, is_closed = self.place(slot)

        def commit(offset: int) -> None:
            committed[0] = layout.committed_word(offset)
            fence()
            if is_closed:
                raise CommitFailedError()

        return commit

    def place(self, slot: int) -> SlotPlace:
        """For the shortest way, which only who `needs_fence` says no of may go: committed[0] = the record's offset,
        and then the commit is done if and only if `closed` is false. Who holds it keeps the file mapped."""
        committed = self._slot(slot)
        closed = (self._grant(slot) + layout.G_CLOSED) * WORD_BYTES
        return self._words[committed : committed + 1], c_uint64.from_buffer(self._region.bytes, closed)


class CoordinatorSlots(SlotFileReader):
    """A slot file, for the coordinator: the one that made it, or a successor."""

    @classmethod
    def create(cls, path: Path, names: SlotNames, incarnation: int, file: int, slot_count: int) -> Self:
        """Make a file with slots for a member of this process; it is HERE. Raises DiskFullError."""
        assert layout.SLOTS_MIN <= slot_count <= layout.SLOTS_MAX, f"{slot_count} slots"
        text = "\0".join(names).encode()
        assert len(text) <= layout.NAMES_BYTES_MAX, f"names of {len(text)} bytes"
        area, temporary = region.create_file(path, layout.file_bytes(slot_count))
        position = layout.member_position(slot_count)
        numbers = (slot_count, position, incarnation, file, len(text))
        closed_by = layout.BY_BARRIER if barrier.is_possible else layout.BY_FENCE
        for index, value in enumerate((layout.SLOTS_MAGIC, layout.SLOTS_VERSION, *numbers, closed_by)):
            area.u64[index] = value
        area.bytes[layout.NAMES_POSITION : layout.NAMES_POSITION + len(text)] = text
        area.bytes[position:] = _NEW_SLOT * slot_count
        area.u64[layout.S_STATE] = layout.MemberState.HERE
        region.publish_file(temporary, path)
        return cls(area, path)

    @classmethod
    def attach(cls, path: Path) -> Self:
        """Map the file of a dead coordinator for going on with it. Raises FileNotFoundError, StorageError,
        UnsupportedVersionError."""
        found = cls._attach(path, is_writable=True)
        if found._is_closed_by_barrier and not barrier.is_possible:
            found.close()
            raise StorageError(f"{path}: its member leaves out fences, and this process cannot make barriers")
        return found

    @property
    def _is_closed_by_barrier(self) -> bool:
        return bool(self._words[layout.S_CLOSED_BY] == layout.BY_BARRIER)

    def _order(self) -> None:
        """Between marking slots as closed and reading what they hold."""
        if self._is_closed_by_barrier:
            barrier.barrier_everywhere()
        else:
            fence()

    def set_member(self, member_epoch: int, session_timeout_ms: int, max_poll_interval_ms: int) -> None:
        """Show the member's epoch and timeouts; a successor goes on with them."""
        words = self._words
        words[layout.S_SESSION_TIMEOUT_MS] = session_timeout_ms
        words[layout.S_MAX_POLL_INTERVAL_MS] = max_poll_interval_ms
        words[layout.S_MEMBER_EPOCH] = member_epoch

    def set_state(self, state: layout.MemberState, away_since_ns: int = 0) -> None:
        """Show how the member stands."""
        self._words[layout.S_AWAY_SINCE_NS] = away_since_ns
        self._words[layout.S_STATE] = state

    @property
    def room(self) -> int:
        """How many slots are left."""
        return self.slot_count - self.slots_used

    def open_slot(self, key: int, start: int, granted_epoch: int) -> int:
        """Give the next slot to a partition; `start` -1: the group has committed nothing. Returns its number."""
        slot = self.slots_used
        words, grant = self._words, self._grant(slot)
        words[grant + layout.G_START] = start + 1
        words[grant + layout.G_GRANTED_EPOCH] = granted_epoch
        words[grant + layout.G_KEY] = key
        if WEAK_ORDER:
            fence()
        words[layout.S_SLOTS_USED] = slot + 1
        return slot

    def close_slot(self, slot: int) -> int:
        """Let no more commits into a slot. Returns the last one, which is final; -1: there was none."""
        self._words[self._grant(slot) + layout.G_CLOSED] = layout.CLOSED
        self._order()
        return self.committed(slot)

    def close_slots(self) -> list[SlotView]:
        """Close all that are open at once. Returns every slot whose last commit may not be in the log."""
        words = self._words
        for slot in range(self.slots_used):
            at = self._grant(slot) + layout.G_CLOSED
            if words[at] == layout.OPEN:
                words[at] = layout.CLOSED
        self._order()
        return [view for view in self.views() if view.closed == layout.CLOSED]

    def set_folded(self, slot: int) -> None:
        """The last commit of a closed slot is in the log of offsets."""
        at = self._grant(slot) + layout.G_CLOSED
        assert self._words[at] != layout.OPEN, f"slot {slot} is open"
        self._words[at] = layout.FOLDED

    def remove(self) -> None:
        """Unmap and unlink: everything in it is in the log, and the member is gone."""
        self._words[layout.S_STATE] = layout.MemberState.GONE
        self.close()
        self.path.unlink(missing_ok=True)
