"""Claims about rates: a million a second, batching, compression, zero copy, partitions."""

from __future__ import annotations

from collections.abc import Callable

from zbroker.client.consumer import Consumer
from zbroker.load.bench_crew import Measured
from zbroker.load.bench_runs import Spec, consume_once, filled_topic, produce_once
from zbroker.load.bench_target import Target, own_broker
from zbroker.load.claims.claim import Claim, Scope, judged
from zbroker.load.results import Figure, figure
from zbroker.load.rounds import Rounds, best, run_rounds, spread
from zbroker.load.scale import ScalePlan, figures_of, one_run

GROUP_MEMBERS = 4
SETTLE_POLLS = 400
TEXT_BYTES = 1_000


def _turns(scope: Scope, contenders: dict[str, Callable[[], dict[str, float]]]) -> dict[str, Rounds]:
    return run_rounds(contenders, scope.rounds, warm_up_rounds=int(scope.rounds > 1))


def _rate(run: Measured, kind: str = "producer") -> dict[str, float]:
    return {"records_per_s": run.rate(kind)}


def _rows(found: dict[str, Rounds]) -> list[Figure]:
    rows = []
    for name, rounds in found.items():
        rates = spread(rounds, "records_per_s", 1e-6)
        rows.append(figure(name, rates.best, "M records/s", spread=rates))
    return rows


def million(scope: Scope) -> Claim:
    """S-001: a million records a second, by one producer, one worker and one consumer."""

    def produced(mode: str, size_bytes: int, share: int) -> Callable[[], dict[str, float]]:
        spec = Spec(records=max(1, scope.records // share), size_bytes=size_bytes, mode=mode, seed=scope.seed)  # type: ignore[arg-type]
        return lambda: _rate(produce_once(spec, target))

    plan = ScalePlan(workers=[1], partitions=[1], records=scope.records, seed=scope.seed)

    def end_to_end() -> dict[str, float]:
        return {"records_per_s": figures_of(one_run(plan, 1, 1), plan.size_bytes)["read_per_s"]}

    with own_broker() as target:
        found = _turns(
            scope,
            {
                "produced and consumed at once, send_many, 100 B": end_to_end,
                "produced, send_many, 100 B": produced("send_many", 100, 1),
                "produced, sender, 100 B": produced("sender", 100, 2),
                "produced, send, 100 B": produced("send", 100, 2),
                "produced, send_many, 1,000 B": produced("send_many", 1_000, 4),
            },
        )
    rates = {name: best(rounds, "records_per_s") / 1e6 for name, rounds in found.items()}
    through = next(iter(rates.values()))
    return Claim(
        name="million-level TPS",
        said="sequential writes and zero copy give millions of records a second",
        rule="a million records of 100 bytes a second from a producer to a consumer, by one worker",
        measured=f"{through:.2f} M/s through the log; "
        + ", ".join(f"{name.removeprefix('produced, ')} {rate:.2f} M/s" for name, rate in list(rates.items())[1:]),
        verdict=judged(through >= 1),
        figures=_rows(found),
    )


def batching(scope: Scope) -> Claim:
    """S-080: a batch against a record at a time, the same calls."""

    def produced(batch_bytes: int, share: int) -> Callable[[], dict[str, float]]:
        spec = Spec(records=max(1, scope.records // share), batch_bytes=batch_bytes, mode="send", seed=scope.seed)
        return lambda: _rate(produce_once(spec, target))

    with own_broker() as target:
        found = _turns(
            scope,
            {"a batch for each record": produced(1, 20), "batches of 16 KiB": produced(16_384, 2)},
        )
    one, many = (best(rounds, "records_per_s") for rounds in found.values())
    return Claim(
        name="batching 3 to 5 x",
        said="batches give 3 to 5 times the throughput, by fewer requests",
        rule="batches of 16 KiB give at least 3 times the records of a batch for each record",
        measured=f"{many / one:.1f} x: {many / 1e6:.2f} M/s against {one / 1e6:.3f} M/s",
        verdict=judged(many / one >= 3),
        figures=_rows(found),
    )


def compression(scope: Scope) -> Claim:
    """S-084, S-087: LZ4 on and off, with text, in memory and on the disk."""
    found: dict[str, Rounds] = {}
    for place, directory in (("memory", None), ("disk", scope.disk)):
        with own_broker(directory=directory) as target:
            found |= _turns(
                scope,
                {f"{codec}, {place}": _with_codec(scope, target, codec) for codec in ("none", "lz4")},
            )
    rates = {name: best(rounds, "records_per_s") for name, rounds in found.items()}
    ratios = {place: rates[f"lz4, {place}"] / rates[f"none, {place}"] for place in ("memory", "disk")}
    saved = found["none, memory"][-1]["stored_bytes"] / max(1.0, found["lz4, memory"][-1]["stored_bytes"])
    return Claim(
        name="LZ4 2 x",
        said="compression doubles throughput, because less is transferred",
        rule=f"LZ4 at least doubles the rate of text records of {TEXT_BYTES:,} bytes, in memory or on the disk",
        measured=f"{ratios['memory']:.2f} x in memory, {ratios['disk']:.2f} x on the disk; "
        f"the log takes {saved:.1f} times less room",
        verdict=judged(max(ratios.values()) >= 2),
        figures=[*_rows(found), figure("bytes stored without LZ4, to those with it", saved, "x")],
    )


def _with_codec(scope: Scope, target: Target, codec: str) -> Callable[[], dict[str, float]]:
    spec = Spec(
        records=max(1, scope.records // 4), size_bytes=TEXT_BYTES, mode="send_many", compression=codec, content="text",
        seed=scope.seed,
    )  # fmt: skip

    def run() -> dict[str, float]:
        measured = produce_once(spec, target)
        return {**_rate(measured), "stored_bytes": float(measured.broker["worker-0"].written_bytes)}

    return run


def zero_copy(scope: Scope) -> Claim:
    """S-060, S-061: one log read by mapping and by messages."""
    found: dict[str, Rounds] = {}
    with own_broker() as target:
        base = Spec(records=scope.records, mode="batches", seed=scope.seed)
        with filled_topic(base, target) as (topic, partitions):

            def read(transport: str) -> Callable[[], dict[str, float]]:
                spec = Spec(records=scope.records, mode="batches", transport=transport, seed=scope.seed)
                return lambda: _rate(consume_once(spec, target, topic, partitions), "consumer")

            found = _turns(scope, {"by messages": read("zmq"), "by mapping": read("auto")})
    copied, mapped = (best(rounds, "records_per_s") for rounds in found.values())
    return Claim(
        name="zero copy 2 to 3 x",
        said="zero copy reads 2 to 3 times as fast, because the CPU copies less",
        rule="reading the mapped log is at least twice as fast as having it sent",
        measured=f"{mapped / copied:.1f} x: {mapped / 1e6:.1f} M/s against {copied / 1e6:.1f} M/s",
        verdict=judged(mapped / copied >= 2),
        figures=_rows(found),
    )


def partitions_ceiling(scope: Scope) -> Claim:
    """S-016: how many members of a group get work, and what a second worker gives with one partition and with two."""
    active = {count: _members_with_work(count) for count in (1, 2, GROUP_MEMBERS, 2 * GROUP_MEMBERS)}
    plan = ScalePlan(workers=[2], partitions=[1, 2], records=scope.records, seed=scope.seed)

    def run(partitions: int) -> Callable[[], dict[str, float]]:
        return lambda: figures_of(one_run(plan, 2, partitions), plan.size_bytes)

    found = _turns(scope, {"2 workers, 1 partition": run(1), "2 workers, 2 partitions": run(2)})
    one, two = (best(rounds, "records_per_s") for rounds in found.values())
    seen = ", ".join(f"{members} with {count}" for count, members in active.items())
    return Claim(
        name="partitions bound concurrency",
        said="the number of partitions decides how many consumers of a group work",
        rule=f"of {GROUP_MEMBERS} members as many have work as there are partitions, and never more",
        measured=f"of {GROUP_MEMBERS} members work: {seen} partitions; a second partition gives two workers "
        f"{two / one:.2f} x the rate",
        verdict=judged(all(members == min(count, GROUP_MEMBERS) for count, members in active.items())),
        figures=[
            *_rows(found),
            *(figure(f"members with work, {count} partitions", members, "") for count, members in active.items()),
        ],
    )


def _members_with_work(partitions: int) -> int:
    with own_broker() as target, target.topic("group", partitions) as (topic, _):
        members = [
            Consumer(topic, bootstrap_servers=target.bootstrap_servers, group_id="claim") for _ in range(GROUP_MEMBERS)
        ]
        try:
            for _ in range(SETTLE_POLLS):
                for member in members:
                    member.poll(timeout_ms=5)
                owned = [member.assignment() for member in members]
                is_all = sum(map(len, owned)) == partitions
                if is_all and sum(map(bool, owned)) == min(partitions, GROUP_MEMBERS):
                    break
            return sum(map(bool, owned))
        finally:
            for member in members:
                member.close()
