"""The doctor's rules about leaders and copies, each provoked, and the command that it names."""

from __future__ import annotations

from pathlib import Path

from zbroker.client.descriptions import PartitionDescription, TopicDescription
from zbroker.doctor import copies
from zbroker.doctor.findings import Level


def topic(*partitions: tuple[int | None, list[int]], min_insync: int = 1) -> TopicDescription:
    """A topic of partitions with three copies each: (leader, isr)."""
    described = [
        PartitionDescription(
            number, leader, None, None, 1, [1, 2, 3], isr, [], "", None, None, None, None, None
        )
        for number, (leader, isr) in enumerate(partitions)
    ]  # fmt: skip
    return TopicDescription("pay", 7, {"min.insync.replicas": str(min_insync)}, described)


def test_partitions_without_a_leader_fail_and_are_named() -> None:
    assert copies.leaders([topic((1, [1, 2, 3]))]).level is Level.PASS
    found = copies.leaders([topic((None, [1]), (1, [1]), (None, []))])
    assert (found.level, found.message) == (Level.FAIL, "2 partitions have no leader: pay:0, pay:2")
    assert "zbroker topics describe pay" in found.fix


def test_copies_out_of_sync_are_a_warning_and_too_few_a_failure() -> None:
    assert copies.copies([topic((1, [1, 2, 3]), min_insync=2)]).level is Level.PASS
    behind = copies.copies([topic((1, [1, 2, 3]), (1, [1, 2]), min_insync=2)])
    assert (behind.level, behind.message) == (Level.WARN, "1 partition has copies that are not in sync: pay:1")
    short = copies.copies([topic((1, [1, 2]), (1, [1]), min_insync=2)])
    assert short.level is Level.FAIL
    assert short.message.endswith("acks=all is refused: pay:1")
    assert "zbroker topics describe pay" in short.fix


def test_many_are_counted_and_some_named() -> None:
    found = copies.leaders([topic(*[(None, [1])] * 9)])
    assert found.message == "9 partitions have no leader: pay:0, pay:1, pay:2, pay:3, pay:4, ..."


def test_damaged_copies_are_found_by_their_marks(tmp_path: Path) -> None:
    assert copies.damage([tmp_path, tmp_path / "missing"]).level is Level.PASS
    (tmp_path / "7-0-1.damaged").mkdir()
    aside = copies.damage([tmp_path])
    assert (aside.level, "7-0-1.damaged" in aside.message) == (Level.WARN, True)
    (tmp_path / "7-0-2").mkdir()
    (tmp_path / "7-0-2" / "suspect").touch()
    suspect = copies.damage([tmp_path])
    assert suspect.level is Level.FAIL
    assert f"zbroker log verify {tmp_path / '7-0-2'}" in suspect.fix
