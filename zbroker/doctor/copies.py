"""Rules about leaders and copies: what the coordinator knows of them, and what lies in the data directories."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from zbroker.client.descriptions import TopicDescription
from zbroker.doctor.findings import Finding, failed, passed, warned

NAMED_MAX: Final = 5
_MARKS: Final = ("*/suspect", "*.damaged")


def leaders(topics: Iterable[TopicDescription]) -> Finding:
    """A partition that nobody leads is not written, and not read over messages."""
    found = [f"{topic.name}:{one.partition}" for topic in topics for one in topic.partitions if one.leader is None]
    if not found:
        return passed("leaders", "every partition has a leader")
    fix = f"zbroker topics describe {_topic_of(found)} shows its copies, zbroker cluster describe the processes"
    return failed("leaders", f"{_counted(found, 'no leader')}", fix)


def copies(topics: Sequence[TopicDescription]) -> Finding:
    """A partition whose copies are not all in sync survives fewer deaths; with too few it refuses acks=all."""
    behind: list[str] = []
    short: list[str] = []
    for topic in topics:
        needed = int(topic.config.get("min.insync.replicas", "1"))
        for one in topic.partitions:
            if len(one.isr) < len(one.replicas):
                behind.append(f"{topic.name}:{one.partition}")
                if len(one.isr) < min(needed, len(one.replicas)):
                    short.append(behind[-1])
    if short:
        fix = f"zbroker topics describe {_topic_of(short)} shows which copies are missing; zbroker status, why"
        return failed("copies", _counted(short, "too few copies in sync, so that acks=all is refused"), fix)
    if behind:
        fix = f"zbroker topics describe {_topic_of(behind)} shows which copies are behind, and by how much"
        return warned("copies", _counted(behind, "copies that are not in sync"), fix)
    return passed("copies", "every copy is in sync")


def damage(copies_dirs: Iterable[Path]) -> Finding:
    """A copy that was found damaged neither leads nor serves until it is fetched again from another."""
    found = sorted({mark for directory in copies_dirs for pattern in _MARKS for mark in directory.glob(pattern)})
    suspect = [mark.parent for mark in found if mark.name == "suspect"]
    if suspect:
        text = f"{len(suspect)} copies are damaged and not fetched again yet, such as {suspect[0]}"
        return failed("damage", text, f"zbroker log verify {suspect[0]} names the batch")
    if found:
        text = f"{len(found)} damaged copies were set aside and fetched again, such as {found[0]}"
        return warned("damage", text, "look at the disk (dmesg, smartctl); they may be removed")
    return passed("damage", "no copy was found damaged")


def _topic_of(names: Sequence[str]) -> str:
    return names[0].rpartition(":")[0]


def _counted(names: Sequence[str], what: str) -> str:
    more = ", ..." if len(names) > NAMED_MAX else ""
    noun = "partition has" if len(names) == 1 else "partitions have"
    return f"{len(names)} {noun} {what}: {', '.join(names[:NAMED_MAX])}{more}"
