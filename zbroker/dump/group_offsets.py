"""What groups have committed, from files alone: the log of offsets and the slots of members.

It takes no lock, asks nobody and changes nothing, so it says the same with the broker up, busy or dead. What a slot
holds counts before what the log holds: it is newer, until the coordinator has marked it as being in the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zbroker.core.group_offsets import Committed, OffsetEntry, Offsets, entry_of
from zbroker.core.sticky import Key
from zbroker.errors import BrokerError
from zbroker.record.batch import batches_in, crc_matches
from zbroker.record.columns import Columns
from zbroker.shm.commit_layout import FOLDED
from zbroker.shm.commit_slots import SlotFileReader, find_slot_files
from zbroker.storage.layout import LOG, parse_segment_name
from zbroker.wire.group_messages import CommittedOffset

TRIES_MAX: Final = 5


def entries_in(data: memoryview) -> Iterator[OffsetEntry]:
    """The entries in whole batches, up to the first that is damaged. Raises CorruptRecordError for what is no entry,
    UnsupportedVersionError."""
    for position, header in batches_in(data):
        if not crc_matches(data, position, header):
            return
        columns = Columns(data[position : position + header.size_bytes], header)
        for key, value in zip(columns.keys(), columns.values(), strict=True):
            yield entry_of(key, value)


def logged_offsets(offsets_dir: Path) -> Offsets:
    """The image that the log of offsets gives; empty where there is none. Raises CorruptRecordError, OSError."""
    for attempt in range(TRIES_MAX):
        try:
            return _read_log(offsets_dir)
        except FileNotFoundError:
            # The coordinator has put the log together anew between the listing and the reading.
            if attempt == TRIES_MAX - 1:
                raise
    raise AssertionError


def _read_log(offsets_dir: Path) -> Offsets:
    offsets = Offsets()
    if not offsets_dir.exists():
        return offsets
    names = [path.name for path in offsets_dir.iterdir() if path.suffix == LOG]
    for name in sorted(name for name in names if parse_segment_name(name) is not None):
        for entry in entries_in(memoryview((offsets_dir / name).read_bytes())):
            offsets.apply(entry)
    return offsets


def committed_offsets(offsets_dir: Path, groups_dir: Path) -> dict[str, dict[Key, CommittedOffset]]:
    """By group and (topic id, partition). `committed_ms` 0 and topic "" where only a slot knows."""
    offsets = logged_offsets(offsets_dir)
    found = {group_id: dict(offsets.of(group_id)) for group_id in offsets.group_ids()}
    for path in find_slot_files(groups_dir):
        for group_id, key, offset in _slots_of(path):
            known = found.setdefault(group_id, {}).get(key)
            if known is None or known.offset != offset:
                found[group_id][key] = Committed(offset)
    return {
        group_id: {
            key: CommittedOffset(
                offsets.topic_name(key[0]), *key, one.offset, one.leader_epoch, one.metadata, one.committed_ms
            )
            for key, one in sorted(of_group.items())
        }
        for group_id, of_group in found.items()
    }


def _slots_of(path: Path) -> list[tuple[str, Key, int]]:
    try:
        file = SlotFileReader.open(path)
    except (FileNotFoundError, BrokerError):
        return []  # gone meanwhile: everything in it is in the log; or not a file of this version
    try:
        return [
            (file.names.group_id, (slot.topic_id, slot.partition), slot.committed)
            for slot in file.views()
            if slot.closed != FOLDED and slot.committed >= 0
        ]
    finally:
        file.close()
