"""Claims about copies, caches and disks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from zbroker.client.admin import AdminClient
from zbroker.load.bench_crew import Measured
from zbroker.load.bench_runs import Spec, consume_once, filled_topic
from zbroker.load.bench_target import Target, own_broker
from zbroker.load.claims.claim import Claim, Scope, judged, middle
from zbroker.load.disk import disk_figures, profile
from zbroker.load.file_server import served
from zbroker.load.results import Plot, Series, figure
from zbroker.load.rounds import median, run_rounds, spread, spread_of
from zbroker.load.scale import ScalePlan, one_run
from zbroker.load.seeks import seek_us

GROWTH_MAX = 2.0
DISK_SHARE_MAX = 0.01


def four_copies(scope: Scope) -> Claim:
    """S-062..S-064: bytes that pass calls on files, and switches of context, for each byte that is read.

    The kernel counts what passes `read` and `write`; what libzmq passes through sockets comes on top and is not in it.
    """
    with own_broker() as target:
        base = Spec(records=scope.records, mode="batches", seed=scope.seed)
        with filled_topic(base, target) as (topic, partitions):
            path = _log_of(target, topic)

            def read(transport: str) -> Callable[[], dict[str, float]]:
                spec = Spec(records=scope.records, mode="batches", transport=transport, seed=scope.seed)
                return lambda: _copied(consume_once(spec, target, topic, partitions))

            found = run_rounds(
                {
                    "mapped": read("auto"),
                    "by messages": read("zmq"),
                    "bare read and send": lambda: served("read", path),
                    "bare sendfile": lambda: served("sendfile", path),
                },
                scope.rounds,
                warm_up_rounds=int(scope.rounds > 1),
            )
    switches = {name: median(rounds, "switches_per_mb") for name, rounds in found.items()}
    passed = {name: median(found[name], "passed") for name in ("mapped", "by messages")}
    rows = [
        figure(f"context switches, {name}", switches[name], "per MB", spread=spread(rounds, "switches_per_mb"))
        for name, rounds in found.items()
    ]
    rows += [
        figure(f"bytes through calls on files, {name}", value, "for each byte read") for name, value in passed.items()
    ]
    return Claim(
        name="4 copies and their switches",
        said="the traditional path copies four times; with zero copy one context switch is left",
        rule="a mapped reader passes no bytes through calls on files (below 0.02 a byte), and switches context less "
        "often than a bare loop of read and send does",
        measured=f"{passed['mapped']:.3f} bytes for each byte through calls on files, {passed['by messages']:.1f} by "
        "messages (their sockets not counted); "
        + ", ".join(f"{value:.2f} switches a MB {name}" for name, value in switches.items()),
        verdict=judged(passed["mapped"] < 0.02 and switches["mapped"] < switches["bare read and send"]),
        figures=rows,
    )


def _copied(run: Measured) -> dict[str, float]:
    used = [usage for name, usage in run.usages().items() if name != "coordinator"]
    payload = sum(one.bytes for one in run.of("consumer"))
    return {
        "passed": sum(one.read_bytes + one.written_bytes for one in used) / payload,
        "switches_per_mb": sum(one.switches for one in used) / payload * 1e6,
        "records_per_s": run.rate("consumer"),
    }


def _log_of(target: Target, topic: str) -> Path:
    with AdminClient(bootstrap_servers=target.bootstrap_servers) as admin:
        directory = admin.describe_topics([topic])[topic].partitions[0].directory
    return next(iter(sorted(Path(directory).glob("*.log"))))


def sequential(scope: Scope) -> Claim:
    """S-030, S-051: the disk itself, by pieces in a row and by pieces anywhere."""
    seconds = 1.0 if scope.rounds > 1 else 0.1
    scope.disk.mkdir(parents=True, exist_ok=True)
    rounds = [profile(scope.disk, scope.disk_bytes, scope.seed + number, seconds) for number in range(scope.rounds)]
    at = {name: middle([one[name] for one in rounds]) for name in rounds[0]}
    large, small, anywhere = at["sequential, 1 MiB"], at["sequential, 4 KiB"], at["random, 4 KiB"]
    way = "O_DIRECT" if rounds[0]["is direct"] else "O_DSYNC"
    return Claim(
        name="sequential writes",
        said="a log that only appends is fast, because a disk's head does not move",
        rule="4 KiB pieces in a row are at least twice as fast as 4 KiB pieces anywhere",
        measured=f"{small / anywhere:.2f} x for pieces of 4 KiB ({small:.0f} and {anywhere:.0f} MB/s, {way}); pieces "
        f"of 1 MiB in a row {large:.0f} MB/s, {large / anywhere:.0f} x",
        verdict=judged(small >= 2 * anywhere),
        figures=disk_figures(rounds),
    )


def index_lookup(scope: Scope) -> Claim:
    """S-038, S-040: from `seek` to any offset to the first batch, in logs of several lengths."""
    found: dict[int, list[float]] = {}
    with own_broker(config={"topics": {"segment_bytes": 64 << 20}}) as target:
        for records in scope.log_records:
            spec = Spec(records=records, seed=scope.seed)
            with filled_topic(spec, target) as (topic, _):
                found[records] = [seek_us(target, topic, records, scope.seed + n) for n in range(scope.rounds)]
    cost = {records: spread_of(values) for records, values in found.items()}
    first, last = (cost[records].median for records in (scope.log_records[0], scope.log_records[-1]))
    growth = scope.log_records[-1] / scope.log_records[0]
    return Claim(
        name="index lookup",
        said="a sparse index finds any offset quickly, however long the log",
        rule=f"a seek costs less than {GROWTH_MAX:g} x as much in the longest log as in the shortest",
        measured=f"{first:.0f} us among {scope.log_records[0]:,} records, {last:.0f} us among "
        f"{scope.log_records[-1]:,} ({growth:.0f} times as many): {last / first:.2f} x",
        verdict=judged(last < GROWTH_MAX * first),
        figures=[
            figure(f"seek and first record, {records:,} records", one.median, "us", spread=one)
            for records, one in cost.items()
        ],
        plots=[
            Plot(
                name="index",
                title="Seek to any offset and the first record",
                x_label="records in the log",
                y_label="us (median)",
                series=[
                    Series(
                        name="seek",
                        x=[float(records) for records in cost],
                        y=[one.median for one in cost.values()],
                        low=[one.low for one in cost.values()],
                        high=[one.high for one in cost.values()],
                    )
                ],
                is_log_x=True,
            )
        ],
    )


def tail_reads(scope: Scope) -> Claim:
    """S-049: produced and consumed at once, with the data on a disk: what the disk is asked for."""
    plan = ScalePlan(workers=[1], partitions=[1], records=scope.records, seed=scope.seed, directory=scope.disk)
    runs = [one_run(plan, 1, 1) for _ in range(scope.rounds)]
    read = [sum(one.disk_read_bytes for one in run.usages().values()) for run in runs]
    size_bytes = sum(one.bytes for one in runs[0].of("consumer"))
    share = max(read) / size_bytes
    return Claim(
        name="tail reads never touch the disk",
        said="when consumers keep up, all reads come from the page cache",
        rule=f"at most {DISK_SHARE_MAX:.0%} of the bytes that were read come from the disk",
        measured=f"{max(read):,} of {size_bytes:,} bytes came from the disk, in the worst of {scope.rounds} rounds",
        verdict=judged(share <= DISK_SHARE_MAX),
        figures=[
            figure("bytes read by the consumer", size_bytes, "B"),
            figure("bytes that all processes read from the disk", max(read), "B"),
        ],
    )
