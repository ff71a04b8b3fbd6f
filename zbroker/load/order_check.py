"""Did every record arrive once and in order? A running checksum for each key, on both sides.

Two sides that saw the same records of a key in the same order have the same (count, checksum); a record that is
missing, doubled, altered or out of order gives another checksum, but for a chance of one in four thousand million.
Memory is one pair a key, whatever the number of records.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping


class OrderCheck:
    """Counts and chained checksums by key."""

    def __init__(self, chains: Mapping[str, tuple[int, int]] | None = None) -> None:
        self._chains: dict[str, tuple[int, int]] = {key: (pair[0], pair[1]) for key, pair in (chains or {}).items()}

    def add(self, key: str, values: Iterable[bytes]) -> None:
        """Count records of a key, in their order."""
        count, checksum = self._chains.get(key, (0, 0))
        for value in values:
            # The length is part of the chain: "ab", "c" and "a", "bc" are different records.
            checksum = zlib.crc32(value, zlib.crc32(len(value).to_bytes(4, "little"), checksum))
            count += 1
        self._chains[key] = (count, checksum)

    def merge(self, other: OrderCheck) -> None:
        """Take over another check's keys. A key may be in one of them only: chains cannot be joined."""
        shared = self._chains.keys() & other._chains.keys()
        assert not shared, f"both sides saw {sorted(shared)[:3]}"
        self._chains.update(other._chains)

    @property
    def records(self) -> int:
        """How many records were counted."""
        return sum(count for count, _ in self._chains.values())

    def differences(self, received: OrderCheck) -> list[str]:
        """What `received` lacks, has too much or has otherwise: one sentence a key; empty when equal."""
        found = []
        for key in sorted(self._chains.keys() | received._chains.keys()):
            sent_count, sent_sum = self._chains.get(key, (0, 0))
            got_count, got_sum = received._chains.get(key, (0, 0))
            if sent_count != got_count:
                found.append(f"{key}: {sent_count} records sent, {got_count} received")
            elif sent_sum != got_sum:
                found.append(f"{key}: the {sent_count} records received are not those sent, or not in their order")
        return found

    def as_chains(self) -> dict[str, tuple[int, int]]:
        """Counts and checksums by key, as `OrderCheck(chains)` takes them."""
        return dict(self._chains)
