"""The coordinator's slot files: they hold what a successor must know, and go only when nothing in them is needed."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from zbroker.shm.commit_layout import SLOTS_MIN
from zbroker.shm.commit_slots import MemberSlots, find_slot_files
from zbroker.workers.slot_files import SlotFiles

ME = ("g", "m1")


def made(directory: Path) -> SlotFiles:
    files = SlotFiles(directory, 0xC0)
    assert files.make("g", "m1", "w1", "app", 77)
    files.set_member(*ME, 4, 10_000, 300_000)
    return files


def attach(files: SlotFiles) -> dict[int, MemberSlots]:
    return {place.file: MemberSlots.attach(Path(place.path)) for place in files.files(*ME)}


def test_a_successor_finds_members_with_what_they_hold(tmp_path: Path) -> None:
    files = made(tmp_path)
    first = files.open(*ME, (1, 0), 5, 4)
    second = files.open(*ME, (1, 1), -1, 4)
    third = files.open(*ME, (1, 2), -1, 4)
    (member,) = attach(files).values()
    member.commit(first[1], 8)
    member.commit(second[1], 9)
    files.close(*ME, *second)
    files.close(*ME, *third)
    files.set_folded(*ME, *third)
    files.close_all()
    successor = SlotFiles(tmp_path, 0xC1)
    (found,) = successor.found()
    assert (found.group_id, found.member_id, found.instance_id, found.client_id) == ("g", "m1", "w1", "app")
    assert (found.incarnation, found.member_epoch, found.session_timeout_ms) == (77, 4, 10_000)
    assert found.away_since_ns is None
    seen = [(slot.key, slot.is_open, slot.start, slot.committed) for slot in found.slots]
    assert seen == [((1, 0), True, 5, 8), ((1, 1), False, -1, 9)]
    member.commit(first[1], 10)
    assert successor.close(*ME, *first) == 10, "the member goes on with the file that it has"
    member.close()
    successor.close_all()


def test_an_away_member_is_found_away(tmp_path: Path) -> None:
    files = made(tmp_path)
    files.set_away(*ME, 123)
    files.close_all()
    successor = SlotFiles(tmp_path, 0xC1)
    assert [one.away_since_ns for one in successor.found()] == [123]
    successor.close_all()


def test_a_member_that_needs_more_slots_gets_a_further_larger_file(tmp_path: Path) -> None:
    files = made(tmp_path)
    places = [files.open(*ME, (1, number), -1, 1) for number in range(SLOTS_MIN + 1)]
    assert len(set(places)) == SLOTS_MIN + 1
    assert {file for file, _ in places} == {0, 1}
    attached = attach(files)
    file, slot = places[-1]
    attached[file].commit(slot, 3)
    assert files.committed(*ME, file, slot) == 3
    assert attached[1].member_epoch == 4
    for one in attached.values():
        one.close()
    files.close_all()
    successor = SlotFiles(tmp_path, 0xC1)
    (found,) = successor.found()
    assert len(found.slots) == SLOTS_MIN + 1
    successor.remove(*ME)
    assert find_slot_files(tmp_path) == []


def test_changes_are_named_once_and_again_when_asked(tmp_path: Path) -> None:
    files = made(tmp_path)
    places = [files.open(*ME, (1, number), -1, 1) for number in range(3)]
    (member,) = attach(files).values()
    assert files.changes() == []
    member.commit(places[0][1], 0)
    member.note_position(places[1][1], 5)
    assert files.changes() == [("g", "m1", (1, 0), 0)]
    assert files.changes() == []
    files.look_again()
    assert files.changes() == [("g", "m1", (1, 0), 0)]
    member.commit(places[2][1], 7)
    files.close(*ME, *places[2])
    assert files.changes() == [], "a closed slot is not the member's any more"
    member.close()
    files.close_all()


def test_files_that_cannot_be_read_are_removed_and_others_attached(tmp_path: Path) -> None:
    files = made(tmp_path)
    files.close_all()
    (tmp_path / "foreign.slots").write_bytes(bytes(8192))
    successor = SlotFiles(tmp_path, 0xC1)
    assert len(successor.found()) == 1
    assert not (tmp_path / "foreign.slots").exists()
    successor.close_all()


def test_without_room_there_is_no_file_and_no_slot(tmp_path: Path) -> None:
    files = SlotFiles(tmp_path / "missing", 0xC0)
    assert not files.make("g", "m1", "", "", 0)
    assert files.open(*ME, (1, 0), -1, 1) == (-1, -1)
    assert files.files(*ME) == []
    files.set_member(*ME, 1, 2, 3)
    files.set_away(*ME, 1)
    files.remove(*ME)


def test_without_descriptors_a_member_commits_by_message(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = SlotFiles(tmp_path, 0xC0)
    used = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    limit = used[-1] + 21  # the limit is on the numbers: room for twenty and for the gaps between those in use
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        made = [files.make("g", f"m{number}", "", "", 0) for number in range(limit)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert made[0]
    assert not made[-1]
    assert files.open("g", f"m{limit - 1}", (1, 0), -1, 1) == (-1, -1)
    assert len(find_slot_files(tmp_path)) == sum(made)
    files.close_all()
