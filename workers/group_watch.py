"""Tells people of consumers that silently stop: in the coordinator's log, within `groups.stalled_after_ms`.

Where members are comes from their slots, or from what they have committed, how far the logs are from the leaders'
boards; nobody is asked. Guarantee: a tick looks at `READINGS_A_TICK` partitions at most, whatever there is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from typing import Final

from zbroker import ids
from zbroker.clock import NS_PER_MS
from zbroker.core.group import Group
from zbroker.core.group_member import NO_FILE, Holding, Member
from zbroker.core.groups import Groups
from zbroker.core.stalls import Change, Reading, Stalls
from zbroker.core.sticky import Key
from zbroker.errors import BrokerError
from zbroker.shm.board_reader import BoardReader, find_boards
from zbroker.shm.layout import CellState
from zbroker.workers.runtime import Role
from zbroker.workers.slot_files import SlotFiles

READINGS_A_TICK: Final = 200
LOOKS_A_PERIOD: Final = 4


class GroupWatch:
    """See the module."""

    def __init__(self, role: Role, groups: Groups, slots: SlotFiles) -> None:
        self._role = role
        self._groups = groups
        self._slots = slots
        self._log = logging.getLogger(__name__)
        self._stalls = Stalls()
        self._round: Iterator[Reading] = iter(())
        self._is_over = True
        self._next_ns = 0

    def tick(self) -> None:
        """Go on with the round of looks that is under way, or begin one when that is due."""
        after_ms = self._role.config.groups.stalled_after_ms
        now_ns = self._role.clock.now_ns()
        if not after_ms or (self._is_over and now_ns < self._next_ns):
            return
        if self._is_over:
            self._next_ns = now_ns + after_ms * NS_PER_MS // LOOKS_A_PERIOD
            self._round = self._readings()
        seen = 0
        for reading in islice(self._round, READINGS_A_TICK):
            seen += 1
            change = self._stalls.see(reading, now_ns, after_ms)
            if change is not None:
                self._tell(change)
        self._is_over = seen < READINGS_A_TICK

    def _readings(self) -> Iterator[Reading]:
        held = [
            (group, member, key, holding)
            for group in self._groups.groups.values()
            for member in group.members.values()
            for key, holding in member.holdings.items()
        ]
        self._stalls.keep({(group.group_id, key) for group, _, key, _ in held})
        boards = self._boards() if held else []
        try:
            for group, member, key, holding in held:
                if member.holdings.get(key) is not holding or group.members.get(member.member_id) is not member:
                    continue  # it has moved since this round began
                log_end = _log_end(boards, key)
                if log_end is not None:
                    progress = self._progress(group, member, key, holding)
                    yield Reading(group.group_id, member.member_id, key, progress, log_end)
        finally:
            for board in boards:
                board.close()

    def _boards(self) -> list[BoardReader]:
        found = []
        for name, incarnation, path in find_boards(self._role.paths.boards_dir):
            if ids.process_number(name) in (ids.COORDINATOR, ids.ROUTER) or not ids.is_alive(incarnation):
                continue
            try:
                found.append(BoardReader.open(path))
            except (FileNotFoundError, BrokerError):
                continue  # it has ended meanwhile
        return found

    def _progress(self, group: Group, member: Member, key: Key, holding: Holding) -> int:
        stored = -1
        if holding.file != NO_FILE:
            stored = self._slots.progress(group.group_id, member.member_id, holding.file, holding.slot)
        committed = self._groups.around.offsets.get(group.group_id, key)
        return max(0, stored, -1 if committed is None else committed.offset)

    def _tell(self, change: Change) -> None:
        one = change.reading
        topic = self._groups.around.image.topics.get(one.key[0])
        fields: dict[str, object] = {
            "group": one.group_id,
            "topic": topic.name if topic is not None else one.key[0],
            "partition": one.key[1],
            "member": one.member_id,
            "position": one.progress,
            "lag": one.lag,
        }
        if change.still_ms is None:
            self._log.info("a consumer goes on", extra=fields)
        else:
            text = "a consumer stands still and its lag grows"
            self._log.warning(text, extra={**fields, "still_ms": change.still_ms})


def _log_end(boards: list[BoardReader], key: Key) -> int | None:
    for board in boards:
        cell = board.partition_cell(*key)
        view = cell.view() if cell is not None else None
        if view is not None and view.state is CellState.LEADING:
            return view.high_watermark
    return None
