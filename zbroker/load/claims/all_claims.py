"""The claims by their names, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from zbroker.load.bench_runs import Found
from zbroker.load.claims import copies, promises, rates
from zbroker.load.claims.claim import Claim, Measure, Scope
from zbroker.load.results import Table

CLAIMS: Final[dict[str, Measure]] = {
    "million": rates.million,
    "milliseconds": promises.milliseconds,
    "zero-loss": promises.zero_loss,
    "batching": rates.batching,
    "compression": rates.compression,
    "zero-copy": rates.zero_copy,
    "four-copies": copies.four_copies,
    "sequential": copies.sequential,
    "index": copies.index_lookup,
    "partitions": rates.partitions_ceiling,
    "tail": copies.tail_reads,
}


def measure_claims(scope: Scope, names: Sequence[str], begin: Callable[[str], None] = lambda _: None) -> list[Claim]:
    """Measure these claims one after another; `begin` is told each name before."""
    found = []
    for name in names:
        begin(name)
        found.append(CLAIMS[name](scope))
    return found


def found_of(claims: Sequence[Claim]) -> Found:
    """The claims as figures, plots, and a table of verdicts."""
    table = Table(
        title="the claims, and what was measured",
        columns=["CLAIM", "SAID", "HOLDS WHEN", "MEASURED", "VERDICT"],
        rows=[[one.name, one.said, one.rule, one.measured, one.verdict] for one in claims],
    )
    rows = []
    for one in claims:
        for row in one.figures:
            row.what = f"{one.name}: {row.what}"
            rows.append(row)
    return Found(rows, [table], [plot for one in claims for plot in one.plots])
