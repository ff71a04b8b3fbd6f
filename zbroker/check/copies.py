"""Whether the copies of a partition hold the same bytes.

Guarantees: files are opened read-only and nothing is locked; copies are compared batch by batch over the offsets that
all of them have, so that one that is behind, or has let old segments go, is no difference. Each copy compacts its own
files when it comes to it: they are compared behind the last batch that has lost records in one of the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from zbroker.dump.segments import dump_batches, find_copies


def copies_of_partitions(roots: Iterable[Path]) -> dict[str, list[Path]]:
    """`t00000001-0` -> directories of its copies, in all data directories."""
    found: dict[str, list[Path]] = {}
    for root in roots:
        for directory in find_copies(root) if root.is_dir() else ():
            found.setdefault(directory.name, []).append(directory)
    return found


def compare_copies(roots: Iterable[Path]) -> list[str]:
    """A line for each difference between two copies of a partition; none: they are alike."""
    differences = []
    for name, directories in sorted(copies_of_partitions(roots).items()):
        contents = {directory: _batches(directory) for directory in directories}
        for one, other in pairwise(contents):
            differences += _compare(name, one, contents[one], other, contents[other])
    return differences


def _batches(directory: Path) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for batch in dump_batches(directory):
        if batch.header.is_compacted:
            found.clear()
        else:
            found[batch.header.base_offset] = batch.data
    return found


def _compare(name: str, one: Path, first: dict[int, bytes], other: Path, second: dict[int, bytes]) -> list[str]:
    if not first or not second:
        return []
    begin = max(min(first), min(second))
    end = min(max(first), max(second))
    wanted = [offset for offset in sorted({*first, *second}) if begin <= offset <= end]
    for offset in wanted:
        if first.get(offset) != second.get(offset):
            return [f"{name}: {one.parent.name} and {other.parent.name} differ from offset {offset} on"]
    return []
