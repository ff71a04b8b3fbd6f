"""Claims about delay and loss."""

from __future__ import annotations

from pathlib import Path

from zbroker.load.bench_runs import Spec, end_to_end
from zbroker.load.bench_target import own_broker
from zbroker.load.chaos import run_chaos
from zbroker.load.claims.claim import Claim, Scope, judged
from zbroker.load.plan import Plan
from zbroker.load.results import figure
from zbroker.shm.owned_directory import OwnedDirectory

RATE = 1_000.0
LIMIT_MS = 10.0


def milliseconds(scope: Scope) -> Claim:
    """From when a record was due to a consumer that slept, at a steady rate."""
    with own_broker() as target:
        records = min(3_000, scope.records // 100)
        spec = Spec(records=records, mode="send", rate=RATE, rounds=scope.rounds, seed=scope.seed)
        found = end_to_end(spec, target)
    at = {row.what: row.value / 1000 for row in found.rows}
    p50, p99, p999 = (at[f"end to end, p{percent}"] for percent in ("50", "99", "99.9"))
    return Claim(
        name="millisecond latency",
        said="the page cache answers within milliseconds",
        rule=f"99 of 100 records are in a consumer's hands within {LIMIT_MS:.0f} ms of when they were due, "
        f"at {RATE:,.0f} a second",
        measured=f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, p99.9 {p999:.2f} ms",
        verdict=judged(p99 <= LIMIT_MS),
        figures=[row for row in found.rows if row.what.startswith(("end to end", "producer was late"))],
        plots=found.plots,
    )


def zero_loss(scope: Scope) -> Claim:
    """The chaos test: processes are killed and paused under load, then every record is checked."""
    plan = Plan(seed=scope.seed, duration_s=scope.faults_s, fault_interval_s=scope.fault_interval_s)
    with (
        own_broker(workers=2, replicas=2) as target,
        OwnedDirectory.make("zbroker-claims-") as directory,
    ):
        assert target.boards_dir is not None
        report = run_chaos(plan, _Target(target.bootstrap_servers, target.boards_dir), directory)
    faults = sum(report.faults.values())
    return Claim(
        name="zero loss",
        said="copies lose no record",
        rule="processes are killed and paused under load, and no acknowledged record is lost, doubled or out of order",
        measured=f"{faults} faults in {report.seconds:.0f} s, {report.acknowledged:,} records acknowledged: "
        f"{report.lost} lost, {report.duplicated} twice, {report.reordered} out of order",
        verdict=judged(report.is_sound and faults > 0),
        figures=[
            figure("faults", faults, ""),
            figure("records acknowledged", report.acknowledged, ""),
            figure("lost", report.lost, "", target="<= 0"),
            figure("twice", report.duplicated, "", target="<= 0"),
            figure("out of order", report.reordered, "", target="<= 0"),
            figure("longest wait for an acknowledgement after a fault", report.longest_wait_ms, "ms"),
        ],
    )


class _Target:
    def __init__(self, bootstrap_servers: str, boards_dir: Path) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.boards_dir = boards_dir
