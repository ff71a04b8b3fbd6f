"""Put a rewritten segment in the place of others, so that a death at any point leaves one or the other.

ORDER. The new segment is written aside and synced; it takes the name `BASE-END.swap`, and the directory is synced: from
then on a start completes what a death interrupts. Then the old files are renamed out of the way and the new one takes
the name of the first; a reader that has an old one mapped keeps its bytes.

Guarantees: `complete_swaps` may itself be interrupted and called again: it ends with the same files. Indexes are left
out, because they are hints and a start makes them anew.
"""

from __future__ import annotations

from pathlib import Path

from zbroker.storage.files import Files
from zbroker.storage.layout import parse_segment_name, parse_swap_name, segment_name


def complete_swaps(directory: Path, files: Files) -> int:
    """Finish what a dead process had begun to replace; how many segments took their place."""
    names = files.list_directory(directory)
    found = [(name, swap) for name in names if (swap := parse_swap_name(name)) is not None]
    for name, (base_offset, next_offset) in found:
        for other in names:
            parsed = parse_segment_name(other)
            if parsed is not None and base_offset <= parsed[0] < next_offset:
                files.unlink(directory / other)
        files.fsync_directory(directory)
        files.rename(directory / name, directory / segment_name(base_offset))
        files.fsync_directory(directory)
    return len(found)


def drop_swaps(directory: Path, files: Files) -> None:
    """Give up what was about to replace others; the caller syncs the directory."""
    for name in files.list_directory(directory):
        if parse_swap_name(name) is not None:
            files.unlink(directory / name)
