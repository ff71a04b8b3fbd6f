"""Commits as stores: the layout of a slot file, and that no commit which was reported done is ever lost."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from tests.unit.test_shm_layout import check_golden, dump
from zbroker.errors import CommitFailedError, DiskFullError, StorageError, UnsupportedVersionError
from zbroker.shm import barrier
from zbroker.shm import commit_layout as layout
from zbroker.shm.commit_slots import (
    CoordinatorSlots,
    MemberSlots,
    SlotFileReader,
    SlotNames,
    SlotPlace,
    find_slot_files,
    slot_file_path,
)
from zbroker.shm.layout import cell_key

INCARNATION = 0x1122334455667788
NAMES = SlotNames("billing", "m-1", "w1", "app")


def make(directory: Path, number: int = 1, slots: int = layout.SLOTS_MIN) -> CoordinatorSlots:
    return CoordinatorSlots.create(slot_file_path(directory, 0xC0, number), NAMES, INCARNATION, 3, slots)


def test_a_slot_file_has_exactly_the_golden_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barrier, "is_possible", True)
    monkeypatch.setattr(barrier, "barrier_everywhere", lambda: None)
    made = make(tmp_path)
    made.set_member(7, 10_000, 300_000)
    made.open_slot(cell_key(0xAB, 5), -1, 6)
    made.open_slot(cell_key(0xAB, 6), 99, 7)
    member = MemberSlots.attach(made.path)
    member.commit(0, 41)
    member.note_position(1, 120)
    member.note_poll(0x7777)
    made.close_slot(1)
    member.close()
    made.close()
    check_golden("shm_slots.txt", dump(memoryview(made.path.read_bytes())))


def test_a_file_says_whose_it_is_and_what_was_granted(tmp_path: Path) -> None:
    made = make(tmp_path)
    slot = made.open_slot(cell_key(4, 2), 17, 5)
    reader = SlotFileReader.open(made.path)
    assert (reader.names, reader.incarnation, reader.file) == (NAMES, INCARNATION, 3)
    (view,) = reader.views()
    assert (view.slot, view.topic_id, view.partition, view.start, view.granted_epoch) == (slot, 4, 2, 17, 5)
    assert (view.closed, view.committed, view.position) == (layout.OPEN, -1, -1)
    assert find_slot_files(tmp_path) == [made.path]
    reader.close()
    made.remove()
    assert find_slot_files(tmp_path) == []


def test_a_commit_is_seen_by_the_coordinator_and_offset_zero_is_a_commit(tmp_path: Path) -> None:
    made = make(tmp_path)
    slot = made.open_slot(cell_key(1, 0), -1, 1)
    member = MemberSlots.attach(made.path)
    member.commit(slot, 0)
    assert made.committed(slot) == 0
    member.committer(slot)(5)
    member.commit(slot, 3)
    assert made.close_slot(slot) == 3, "the last store wins, also when it goes back"
    member.close()
    made.close()


def test_a_closed_slot_refuses_commits_of_every_way(tmp_path: Path) -> None:
    made = make(tmp_path)
    slot = made.open_slot(cell_key(1, 0), 8, 1)
    member = MemberSlots.attach(made.path)
    member.commit(slot, 10)
    assert made.close_slot(slot) == 10
    assert member.is_closed(slot)
    with pytest.raises(CommitFailedError):
        member.commit(slot, 11)
    with pytest.raises(CommitFailedError):
        member.committer(slot)(11)
    committed, is_closed = member.place(slot)
    assert committed[0] == 10
    assert is_closed
    del committed, is_closed
    member.close()
    made.close()


@pytest.mark.parametrize("offset", [0, 1, 41, (1 << 62) - 1])
def test_to_commit_a_record_is_to_store_its_offset(tmp_path: Path, offset: int) -> None:
    made = make(tmp_path)
    slot = made.open_slot(cell_key(1, 0), -1, 1)
    member = MemberSlots.attach(made.path)
    assert member.committed(slot) == -1
    committed, is_closed = member.place(slot)
    committed[0] = offset
    assert not is_closed
    assert member.view(slot).committed == made.close_slot(slot) == offset + 1
    del committed, is_closed
    member.close()
    made.close()


def test_who_holds_a_place_sees_that_it_is_closed_also_after_the_file_was_let_go(tmp_path: Path) -> None:
    """Another thread may be in the middle of a commit when the consumer leaves its group."""
    made = make(tmp_path)
    slot = made.open_slot(cell_key(1, 0), -1, 1)
    member = MemberSlots.attach(made.path)
    committed, is_closed = member.place(slot)
    member.close()
    committed[0] = 7
    assert not is_closed
    assert made.close_slot(slot) == 8
    assert is_closed
    made.remove()
    committed[0] = 8
    assert is_closed


def test_closing_all_gives_what_is_not_in_the_log_and_leaves_out_what_is(tmp_path: Path) -> None:
    made = make(tmp_path)
    slots = [made.open_slot(cell_key(1, number), -1, 1) for number in range(3)]
    made.close_slot(slots[0])
    made.set_folded(slots[0])
    assert [view.slot for view in made.close_slots()] == slots[1:]
    assert [view.slot for view in made.close_slots()] == slots[1:], "until they are folded"
    made.close()


def test_a_slot_is_given_out_once(tmp_path: Path) -> None:
    made = make(tmp_path)
    given = [made.open_slot(cell_key(1, 0), -1, 1) for _ in range(layout.SLOTS_MIN)]
    assert given == list(range(layout.SLOTS_MIN))
    assert made.room == 0
    with pytest.raises(AssertionError):
        made.open_slot(cell_key(1, 0), -1, 1)
    made.close()


def test_an_open_slot_cannot_be_marked_as_folded(tmp_path: Path) -> None:
    made = make(tmp_path)
    slot = made.open_slot(cell_key(1, 0), -1, 1)
    with pytest.raises(AssertionError):
        made.set_folded(slot)
    made.close()


def test_who_cannot_make_barriers_does_not_go_on_with_a_file_that_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(barrier, "is_possible", True)
    made = make(tmp_path)
    monkeypatch.setattr(barrier, "is_possible", False)
    with pytest.raises(StorageError, match="barriers"):
        CoordinatorSlots.attach(made.path)
    MemberSlots.attach(made.path).close()
    made.close()


def test_foreign_files_and_other_versions_are_refused(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.close()
    foreign = tmp_path / "foreign.slots"
    foreign.write_bytes(bytes(8192))
    with pytest.raises(StorageError):
        MemberSlots.attach(foreign)
    newer = bytearray(made.path.read_bytes())
    newer[8] = layout.SLOTS_VERSION + 1
    foreign.write_bytes(newer)
    with pytest.raises(UnsupportedVersionError):
        SlotFileReader.open(foreign)
    with pytest.raises(FileNotFoundError):
        MemberSlots.attach(tmp_path / "gone.slots")


def test_a_file_without_room_is_a_typed_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises((DiskFullError, StorageError)):
        CoordinatorSlots.create(tmp_path / "no such directory" / "1.slots", NAMES, 0, 0, layout.SLOTS_MIN)


def _commit_until_closed(path: str, is_shortest: bool, go: object, done: object) -> None:
    if is_shortest:
        barrier.register()
        assert barrier.is_registered()
    member = MemberSlots.attach(Path(path))
    assert member.needs_fence != is_shortest
    go.wait()  # type: ignore[attr-defined]  # an Event of a context, which has no public type
    last: list[int] = []
    for slot in range(member.slot_count):
        last.append(_fill_shortest(member.place(slot)) if is_shortest else _fill(member, slot))
    done.send(last)  # type: ignore[attr-defined]  # a Connection
    member.close()


def _fill(member: MemberSlots, slot: int) -> int:
    """Commit until it fails. The last one that was reported done."""
    confirmed = 0
    try:
        while True:
            member.commit(slot, confirmed + 1)
            confirmed += 1
    except CommitFailedError:
        return confirmed


def _fill_shortest(place: SlotPlace) -> int:
    committed, is_closed = place
    confirmed = 0
    while True:
        committed[0] = confirmed  # the record with the offset before the one that is committed
        if is_closed:
            return confirmed
        confirmed += 1


WAYS = [
    "by fences",
    pytest.param("by barriers", marks=pytest.mark.skipif(not barrier.is_possible, reason="old kernel")),
]


@pytest.mark.parametrize("way", WAYS)
def test_what_the_coordinator_reads_after_closing_holds_every_commit_reported_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Raced by two processes, once for each slot."""
    races = 4_000
    is_shortest = way == "by barriers"
    monkeypatch.setattr(barrier, "is_possible", is_shortest)
    made = make(tmp_path, slots=races)
    for number in range(races):
        made.open_slot(cell_key(1, number), -1, 1)
    context = multiprocessing.get_context("spawn")
    go = context.Event()
    ours, theirs = context.Pipe()
    process = context.Process(target=_commit_until_closed, args=(str(made.path), is_shortest, go, theirs))
    process.start()
    go.set()
    final = []
    for slot in range(races):
        while made.committed(slot) < 1 and process.is_alive():
            pass
        final.append(made.close_slot(slot))
    assert ours.poll(60)
    confirmed = ours.recv()
    process.join(60)
    assert process.exitcode == 0
    ours.close()
    theirs.close()
    made.close()
    lost = [(slot, a, b) for slot, (a, b) in enumerate(zip(confirmed, final, strict=True)) if a > b]
    assert lost == []
    assert min(final) >= 1
