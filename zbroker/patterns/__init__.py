"""Ready-made ways to use a log: work in parallel by key, and exactly-once together with a SQLite database.

    KeyLanes    several threads work on one partition; records of one key keep their order
    Outbox      rows written in the application's own transaction are published, once in effect
    Inbox       a message that comes twice has its effect once
    SqliteSink  records and the place behind them are written in one transaction
    RecentIds   a bounded memory of what was seen lately, for what may be lost at a death

Names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zbroker.patterns.inbox import Inbox as Inbox
    from zbroker.patterns.key_lanes import KeyLanes as KeyLanes
    from zbroker.patterns.outbox import Outbox as Outbox
    from zbroker.patterns.outbox_relay import OutboxRelay as OutboxRelay
    from zbroker.patterns.recent_ids import RecentIds as RecentIds
    from zbroker.patterns.sqlite_sink import SqliteSink as SqliteSink

_PLACES = {
    "Inbox": "zbroker.patterns.inbox",
    "KeyLanes": "zbroker.patterns.key_lanes",
    "Outbox": "zbroker.patterns.outbox",
    "OutboxRelay": "zbroker.patterns.outbox_relay",
    "RecentIds": "zbroker.patterns.recent_ids",
    "SqliteSink": "zbroker.patterns.sqlite_sink",
}

__all__ = ["Inbox", "KeyLanes", "Outbox", "OutboxRelay", "RecentIds", "SqliteSink"]


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'zbroker.patterns' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(place), name)
    return found
