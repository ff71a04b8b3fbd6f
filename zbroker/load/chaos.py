"""Chaos with a check: clients under load, faults by seed, and a judgement of everything that the clients were told.

    run_chaos(plan, target, directory) -> ChaosReport

The load: producers that send batches to random partitions, readers that read them all the while, each a process of its
own that may be hit as well. The faults: SIGKILL, SIGSTOP and SIGTERM of the broker's processes and of the clients, a
quarter of the time none. At the end everything is healed and one reader that nobody disturbs reads every partition from
its start; then the history checker looks for records that were acknowledged and are gone, came twice or out of order,
and for the rest of its anomalies. The same seed draws the same faults; what they hit still depends on the host.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec

from zbroker.check.checker import check
from zbroker.check.findings import Contract
from zbroker.check.history import Call, Kind, Op, save
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.load.chaos_history import Clients, count
from zbroker.load.crew import DRAIN_PROCESS, Crew
from zbroker.load.faults import Fault, Faults, KindOfFault, broker_processes, role_of
from zbroker.load.moves import Mover
from zbroker.load.plan import ChaosError, Disturb, Plan, Target

HISTORY_RECORDS_MAX: Final = 400_000  # above, only the counting checker: the other would take minutes
QUIET_SHARE: Final = 0.25
HEAL_TIMEOUT_S: Final = 60.0
WAIT_WINDOW_S: Final = 5.0
NS: Final = 1_000_000_000


class ChaosReport(msgspec.Struct):
    """What a run came to. `wait`: for each fault of a broker process, the longest that a producer waited for an
    acknowledgement in the seconds after it."""

    seed: int
    seconds: float
    faults: dict[str, int]
    sent: int
    acknowledged: int
    read: int
    lost: int
    duplicated: int
    reordered: int
    violations: dict[str, int]
    examples: list[str]
    longest_wait_ms: float
    wait_p50_ms: float
    wait_p99_ms: float
    waits_ms: list[float]
    refusals: dict[str, int]
    unfinished_clients: int
    moves: dict[str, int] = {}
    slowest_move_ms: float = 0.0
    history: str = ""

    @property
    def is_sound(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.duplicated or self.reordered or self.violations or self.unfinished_clients)


Watch = Callable[[str, float], None]
"""Told what happens and how much of the run is over, from 0 to 1."""


def run_chaos(
    plan: Plan,
    target: Target,
    directory: Path,
    watch: Watch = lambda what, share: None,
    disturbances: Sequence[Disturb] = (),
) -> ChaosReport:
    """Make a run against a broker that answers; the clients' files go to `directory`. Raises ChaosError, or
    what the broker answers."""
    rng = random.Random(plan.seed)
    places = _create_topics(plan, target)
    crew = Crew(plan, target.bootstrap_servers, places, directory)
    kinds: dict[KindOfFault, int] = {"kill": plan.kills, "pause": plan.pauses, "restart": plan.restarts}
    faults = Faults(rng, kinds, pause_max_s=plan.pause_max_s, roles=plan.roles)
    mover = Mover()
    if plan.move_interval_s:
        disturbances = [*disturbances, mover.over]
    try:
        crew.start()
        crew.wait_until_at_work()
        began_ns = time.monotonic_ns()
        with ExitStack() as going_on:
            for disturb in disturbances:
                going_on.enter_context(disturb(plan, target, places))
            _strike(plan, rng, target, crew, faults, watch)
        faults.heal()
        ended_ns = time.monotonic_ns()
        watch("healing", 1.0)
        _wait_until_whole(plan, target)
        watch("draining", 1.0)
        unfinished = crew.finish()
    finally:
        faults.heal()
        crew.kill()
    watch("checking", 1.0)
    clients = Clients()
    for process, path in crew.paths.items():
        clients.add(process, path)
    paused = crew.paused_by(faults.done)
    report = _judge(plan, clients, faults.done, (began_ns, ended_ns), paused, unfinished, directory)
    report.moves, report.slowest_move_ms = dict(mover.done), mover.slowest_ms
    return report


def _create_topics(plan: Plan, target: Target) -> list[tuple[str, int]]:
    names = [f"chaos-{plan.seed}-{number}" for number in range(plan.topics)]
    config = {
        "min.insync.replicas": str(plan.min_insync_replicas),
        "segment.bytes": str(plan.segment_bytes),
        "max.message.bytes": str(plan.segment_bytes),
    }
    with AdminClient(bootstrap_servers=target.bootstrap_servers) as admin:
        admin.create_topics([NewTopic(name, plan.partitions, plan.replication_factor, config) for name in names])
    return [(name, partition) for name in names for partition in range(plan.partitions)]


def _strike(plan: Plan, rng: random.Random, target: Target, crew: Crew, faults: Faults, watch: Watch) -> None:
    start_s = time.monotonic()
    next_s = start_s + 2 * plan.fault_interval_s
    while (now_s := time.monotonic()) < start_s + plan.duration_s or len(faults.done) < plan.faults_min:
        if plan.faults_max and len(faults.done) >= plan.faults_max:
            break
        faults.wake_due()
        crew.replace_dead(rng)
        if now_s >= next_s and any((plan.kills, plan.pauses, plan.restarts)):
            next_s = now_s + rng.expovariate(1 / plan.fault_interval_s)
            if rng.random() < QUIET_SHARE:
                next_s += plan.fault_interval_s
            fault = faults.strike({**broker_processes(target.boards_dir), **crew.processes()})
            if fault is not None:
                watch(f"{fault.kind} {fault.name}", min(1.0, (now_s - start_s) / plan.duration_s))
        time.sleep(0.02)


def _wait_until_whole(plan: Plan, target: Target) -> None:
    """Wait until every partition has a leader, and as many copies as it shall have, all in sync."""
    deadline_s = time.monotonic() + HEAL_TIMEOUT_S
    names = [f"chaos-{plan.seed}-{number}" for number in range(plan.topics)]
    with AdminClient(bootstrap_servers=target.bootstrap_servers) as admin:
        while True:
            found = [p for topic in admin.describe_topics(names).values() for p in topic.partitions]
            if all(p.leader is not None and len(p.isr) == len(p.replicas) == plan.replication_factor for p in found):
                return
            if time.monotonic() > deadline_s:
                raise ChaosError(f"not whole again {HEAL_TIMEOUT_S:.0f} s after the last fault: {found}")
            time.sleep(0.05)


def _judge(
    plan: Plan,
    clients: Clients,
    faults: list[Fault],
    span_ns: tuple[int, int],
    paused: set[int],
    unfinished: int,
    directory: Path,
) -> ChaosReport:
    history = clients.history()
    counted = count(history, DRAIN_PROCESS).summary()
    violations: dict[str, int] = {}
    examples = list(counted.examples)
    if sum(len(op.sends) for op in history) <= HISTORY_RECORDS_MAX:
        contract = Contract(is_atomic=True, keeps_acknowledged=plan.acks in ("all", "fsync"))
        report = check(history, contract)
        violations = {anomaly.value: found for anomaly, found in report.violations.items()}
        examples += [f"{anomaly.value}: {one}" for anomaly in report.violations for one in report.examples[anomaly]]
    waits = sorted(_waits_ms(clients, faults, paused))
    tally: dict[str, int] = {}
    for fault in faults:
        name = f"{fault.kind} {role_of(fault.name)}"
        tally[name] = tally.get(name, 0) + 1
    result = ChaosReport(
        seed=plan.seed,
        seconds=(span_ns[1] - span_ns[0]) / NS,
        faults=tally,
        sent=sum(len(op.sends) for op in history),
        acknowledged=counted.acknowledged,
        read=counted.read,
        lost=counted.lost.total,
        duplicated=counted.duplicated,
        reordered=counted.reordered,
        violations=violations,
        examples=examples,
        longest_wait_ms=max(waits, default=0.0),
        wait_p50_ms=percentile(waits, 50),
        wait_p99_ms=percentile(waits, 99),
        waits_ms=[round(wait, 1) for wait in waits],
        refusals=clients.refusals,
        unfinished_clients=unfinished,
    )
    if not result.is_sound:
        result.history = _keep(history, directory)
    return result


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Of values in rising order, the one that so many percent do not exceed; 0 of none."""
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0


def _waits_ms(clients: Clients, faults: list[Fault], paused: set[int]) -> Iterator[float]:
    """For each fault of a broker process: the longest that a producer waited for an acknowledgement in the seconds
    after it. Producers that were paused themselves do not count."""
    spans = [
        (op.invoke_ns, op.complete_ns)
        for op in clients.ops
        if op.call is Call.SEND and op.kind is Kind.OK and op.process not in paused
    ]
    for fault in faults:
        if role_of(fault.name) in ("producer", "consumer"):
            continue
        until_ns = fault.at_ns + int(WAIT_WINDOW_S * NS)
        found = (end - begin for begin, end in spans if end > fault.at_ns and begin < until_ns)
        yield max(found, default=0) / 1e6


def _keep(history: list[Op], directory: Path) -> str:
    path = directory / "history.jsonl"
    save(history, path)
    return str(path)
