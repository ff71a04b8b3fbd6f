"""Up to where a copy was compacted, and when: the file `compaction`.

Guarantees: offsets and times only rise; a file that is missing or damaged is as if nothing had been compacted, which
costs time and no record. It holds few lines however often a log is compacted: points of time nearer to each other than
a sixteenth of `delete_retention_ms` become one, the later one, so that a record without a value stays longer, never
less long.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from zbroker.storage.files import Files
from zbroker.storage.layout import COMPACTION

POINTS_APART: Final = 16  # in a time of delete_retention_ms
_VERSION: Final = "0"
_FILE_BYTES_MAX: Final = 1 << 16


class CleanPoint(NamedTuple):
    """At `wall_ms` each key had one record at most below `end_offset`; `tombstones` of these had no value."""

    end_offset: int
    wall_ms: int
    tombstones: int


def format_points(points: list[CleanPoint]) -> bytes:
    """The file's text."""
    lines = [_VERSION, str(len(points)), *(" ".join(map(str, point)) for point in points)]
    return ("\n".join(lines) + "\n").encode("ascii")


def parse_points(data: bytes) -> list[CleanPoint] | None:
    """The inverse. None: not such a text, or one that contradicts itself."""
    try:
        version, count, *lines = data.decode("ascii").splitlines()
        points = [CleanPoint(*map(int, line.split())) for line in lines]
        if version != _VERSION or int(count) != len(points):
            return None
    except (ValueError, TypeError):
        return None
    rises = all(one.end_offset <= other.end_offset and one.wall_ms <= other.wall_ms for one, other in pairwise(points))
    return points if rises and all(min(point) >= 0 for point in points) else None


def load_points(directory: Path, files: Files) -> list[CleanPoint]:
    """What the file says, oldest first."""
    data = files.read_file(directory / COMPACTION, _FILE_BYTES_MAX)
    return (parse_points(data) if data else None) or []


def save_points(directory: Path, files: Files, points: list[CleanPoint]) -> None:
    """Replace the file. What it says must be true of files that are synced; that it is lost itself is no harm."""
    files.replace_file(directory / COMPACTION, format_points(points), durable=False)


def tombstones_before(points: list[CleanPoint], now_ms: int, delete_retention_ms: int) -> int:
    """Records without a value may go that lie below this offset."""
    return max((point.end_offset for point in points if now_ms - point.wall_ms >= delete_retention_ms), default=0)


def with_point(
    points: list[CleanPoint], new: CleanPoint, dropped_before: int, delete_retention_ms: int
) -> list[CleanPoint]:
    """The points after a round that ended with `new` and dropped the tombstones below `dropped_before`."""
    kept = [point for point in points if dropped_before < point.end_offset <= new.end_offset]
    kept = [point for point in kept if point.wall_ms <= new.wall_ms]
    if len(kept) > 1 and new.wall_ms - kept[-2].wall_ms < delete_retention_ms // POINTS_APART:
        kept.pop()
    return [*kept, new]
