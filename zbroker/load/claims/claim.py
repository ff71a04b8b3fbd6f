"""A claim and its verdict, and what all of them are measured with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from zbroker.load.results import Figure, Plot

Verdict = Literal["holds", "does not hold"]


class Scope(Struct, kw_only=True):
    """How much is done for each claim. `disk` is a directory on the disk that claims about disks are measured on."""

    disk: Path
    records: int = 400_000
    rounds: int = 3
    seed: int = 1
    faults_s: float = 20.0
    fault_interval_s: float = 1.0
    log_records: list[int]
    disk_bytes: int = 256 << 20

    @classmethod
    def whole(cls, disk: Path, seed: int, rounds: int) -> Scope:
        """What figures are taken from."""
        return cls(disk=disk, seed=seed, rounds=rounds, log_records=[10_000, 100_000, 1_000_000, 4_000_000])

    @classmethod
    def small(cls, disk: Path, seed: int) -> Scope:
        """Enough to see that everything runs."""
        return cls(
            disk=disk, records=8_000, rounds=1, seed=seed, faults_s=3.0, fault_interval_s=0.3,
            log_records=[2_000, 8_000], disk_bytes=4 << 20,
        )  # fmt: skip


class Claim(Struct, kw_only=True):
    """What came out. `rule` says when the claim holds, `measured` in a sentence what was seen."""

    name: str
    said: str
    rule: str
    measured: str
    verdict: Verdict
    figures: list[Figure]
    plots: list[Plot] = []


Measure = Callable[[Scope], Claim]


def judged(holds: bool) -> Verdict:
    """The verdict's words."""
    return "holds" if holds else "does not hold"


def middle(values: Sequence[float]) -> float:
    """The median; there is at least one."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
