"""Disk room: refused below the minimum, taken again only when the largest batch fits above it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from zbroker.clock import ManualClock
from zbroker.config.schema import StorageSection
from zbroker.workers.housekeeping import Housekeeping

LEAST, BATCH = 1_000, 100


class OnDisk:
    """A leader whose disk has as much room as the test says; it notes what it was told."""

    def __init__(self, device: int, full: set[Any]) -> None:
        self.device = device
        self.free = 10 * LEAST
        self.told: list[str] = []
        self._full = full

    def free_bytes(self) -> int:
        return self.free

    def lose_room(self) -> None:
        if self not in self._full:
            self.told.append("lost")
        self._full.add(self)

    def find_room(self) -> None:
        self.told.append("found")
        self._full.discard(self)


class JumpingClock(ManualClock):
    """The wall clock is `ahead_ms` ahead of the true time."""

    ahead_ms = 0

    def wall_ms(self) -> int:
        return super().wall_ms() + self.ahead_ms


def housekeeping(count: int = 1) -> tuple[Housekeeping, list[OnDisk]]:
    full: set[Any] = set()
    leaders = [OnDisk(device, full) for device in range(count)]
    host: Any = SimpleNamespace(
        attention=SimpleNamespace(full=full, timed=set(), copied=set()),
        loop=SimpleNamespace(call_at_multiple=lambda *_: None),
        clock=ManualClock(),
        disk=None,
    )
    known: Any = {(1, one.device): one for one in leaders}
    settings = StorageSection(disk_free_min_bytes=LEAST)
    return Housekeeping(known, list, host, settings, BATCH), leaders


def test_a_disk_a_little_above_the_minimum_does_not_refuse_and_take_in_turn() -> None:
    house, (one,) = housekeeping()
    for free in (LEAST - 1, LEAST, LEAST - 1, LEAST + BATCH - 1, LEAST):
        one.free = free
        house.check_room()
    assert one.told == ["lost"]
    one.free = LEAST + BATCH
    house.check_room()
    assert one.told == ["lost", "found"]


def test_a_full_disk_refuses_for_its_own_partitions_only() -> None:
    house, (first, second) = housekeeping(2)
    first.free = 0
    house.check_room()
    assert (first.told, second.told) == (["lost"], [])


def test_a_clock_that_jumps_before_the_first_retention_is_not_gone_by() -> None:
    clock = JumpingClock()
    times: list[int] = []
    copy: Any = SimpleNamespace(
        is_open=True,
        is_settled=True,
        is_untouched=False,
        retain=times.append,
        has_files_to_unlink=lambda _: False,
    )
    host: Any = SimpleNamespace(
        attention=SimpleNamespace(full=set(), timed=set(), copied=set()),
        loop=SimpleNamespace(call_at_multiple=lambda *_: None),
        clock=clock,
        disk=None,
    )
    house = Housekeeping({}, lambda: [copy], host, StorageSection(), BATCH)
    started_ms = clock.wall_ms()
    clock.ahead_ms = 3_540_000
    house.tick()
    assert times == [started_ms]
