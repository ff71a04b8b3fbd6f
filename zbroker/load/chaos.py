"""Chaos with a check: clients under load, faults by seed, and a judgement of everything that the clients were told.

    run_chaos(plan, target, directory) -> ChaosReport

The load: producers that send batches to random partitions, readers that read them all the while, each a process of its
own that may be hit as well. The faults: SIGKILL, SIGSTOP and SIGTERM of the broker's processes and of the clients, a
quarter of the time none. At the end everything is healed and one reader that nobody disturbs reads every partition from
its start; then the history checker looks for records that were acknowledged and are gone, came twice or out of order,
and for the rest of its anomalies. The same seed draws the same faults; what they hit still depends on the host.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count as numbers
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from zbroker import ids
from zbroker.check.checker import check
from zbroker.check.findings import Contract
from zbroker.check.history import Call, Kind, Op, save
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.load.chaos_client import Task
from zbroker.load.chaos_history import Clients, count
from zbroker.load.faults import Fault, Faults, KindOfFault, broker_processes, role_of

DRAIN_PROCESS: Final = 0
HISTORY_RECORDS_MAX: Final = 400_000  # above, only the counting checker: the other would take minutes
RESTART_MAX_S: Final = 2.0
QUIET_SHARE: Final = 0.25
HEAL_TIMEOUT_S: Final = 60.0
CLIENT_TIMEOUT_S: Final = 120.0
WAIT_WINDOW_S: Final = 5.0
NS: Final = 1_000_000_000


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One chaos run. Times in seconds, as their names say; the defaults are the load L1 of the test programme."""

    seed: int
    duration_s: float = 60.0
    fault_interval_s: float = 1.2
    kills: int = 3
    pauses: int = 1
    restarts: int = 0
    pause_max_s: float = 3.0
    faults_max: int = 0
    roles: frozenset[str] = frozenset({"router", "worker", "replica", "coordinator", "producer", "consumer"})
    topics: int = 2
    partitions: int = 4
    replication_factor: int = 3
    min_insync_replicas: int = 2
    acks: str = "all"
    producers: int = 4
    consumers: int = 2
    records_per_s: int = 1_000
    segment_bytes: int = 256 << 10


class Target(Protocol):
    """The broker that is tried."""

    @property
    def bootstrap_servers(self) -> str:
        """Its address."""

    @property
    def boards_dir(self) -> Path:
        """Where its processes keep their boards."""


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
    refusals: dict[str, int]
    unfinished_clients: int
    history: str = ""

    @property
    def is_sound(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.duplicated or self.reordered or self.violations or self.unfinished_clients)


class ChaosError(RuntimeError):
    """The run could not be made: the broker or a client did not do what a run needs."""


Watch = Callable[[str, float], None]
"""Told what happens and how much of the run is over, from 0 to 1."""


class Crew:
    """The client processes of a run."""

    def __init__(self, plan: Plan, bootstrap_servers: str, places: list[tuple[str, int]], directory: Path) -> None:
        self._plan = plan
        self._bootstrap_servers = bootstrap_servers
        self._places = places
        self._directory = directory
        self._numbers = numbers(1)
        self._running: dict[str, tuple[int, subprocess.Popen[bytes]]] = {}
        self._due: dict[str, float] = {}  # name -> when to start it again
        self._started: list[tuple[str, int, int]] = []  # name, its number, when
        self.paths: dict[int, Path] = {}

    def start(self) -> None:
        """Start every producer and consumer."""
        for index in range(self._plan.producers):
            self._start(f"producer-{index}")
        for index in range(self._plan.consumers):
            self._start(f"consumer-{index}")

    def _start(self, name: str) -> None:
        process = next(self._numbers)
        self._started.append((name, process, time.monotonic_ns()))
        self._running[name] = (process, self._spawn(role_of(name), process, f"{name}-{process}"))

    def _spawn(self, role: str, process: int, name: str) -> subprocess.Popen[bytes]:
        plan, path = self._plan, self._directory / f"{name}.jsonl"
        settings: dict[str, Any] = {"bootstrap_servers": self._bootstrap_servers}
        # Half of the clients share memory with the broker, half of them send and fetch messages.
        settings["transport"] = "auto" if process % 2 else "zmq"
        if role == "producer":
            settings |= {
                "acks": plan.acks,
                "delivery_timeout_ms": 120_000,
                "enable_idempotence": plan.acks in ("all", "fsync"),
            }
        else:
            settings |= {"auto_offset_reset": "earliest"}
        task = Task(
            role="producer" if role == "producer" else "consumer",
            process=process,
            path=str(path),
            partitions=self._places,
            settings=settings,
            seed=plan.seed * 1_000_003 + process,
            records_per_s=max(1, plan.records_per_s // max(1, plan.producers)),
        )
        self.paths[process] = path
        with (self._directory / f"{name}.log").open("wb") as errors:
            command = [sys.executable, "-m", "zbroker.load.chaos_client", msgspec.json.encode(task).decode()]
            return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors, stdout=errors)

    def processes(self) -> dict[str, int]:
        """name -> incarnation of the clients that live."""
        found = {}
        for name, (_, process) in self._running.items():
            with contextlib.suppress(ProcessLookupError):
                if process.poll() is None:
                    found[name] = ids.incarnation_of(process.pid)
        return found

    def paused_by(self, faults: list[Fault]) -> set[int]:
        """The numbers of the clients that were paused."""
        paused = [(fault.name, fault.at_ns) for fault in faults if fault.kind == "pause"]
        return {
            max(number for name, number, since_ns in self._started if name == hit and since_ns <= at_ns)
            for hit, at_ns in paused
            if role_of(hit) in ("producer", "consumer")
        }

    def replace_dead(self, rng: random.Random) -> None:
        """Start clients again that were killed, some time after; each comes back as somebody new."""
        now_s = time.monotonic()
        for name, (_, process) in list(self._running.items()):
            if process.poll() is None:
                continue
            if process.returncode != -9:
                raise ChaosError(f"{name} ended by itself with {process.returncode}:\n{self._last_lines(name)}")
            self._due.setdefault(name, now_s + rng.uniform(0, RESTART_MAX_S))
            if self._due[name] <= now_s:
                del self._due[name]
                _close(process)
                self._start(name)

    def _last_lines(self, name: str) -> str:
        number = self._running[name][0]
        return (self._directory / f"{name}-{number}.log").read_text(errors="replace")[-2_000:]

    def finish(self) -> int:
        """Let the producers end, then the consumers, then drain. How many did not end as they should."""
        bad = 0
        for role in ("producer", "consumer"):
            found = [p for name, (_, p) in self._running.items() if role_of(name) == role]
            bad += sum(not _end(process) for process in found)
        drain = self._spawn("consumer", DRAIN_PROCESS, "drain")
        bad += not _end(drain)
        return bad

    def kill(self) -> None:
        """End whatever still runs."""
        for _, process in self._running.values():
            if process.poll() is None:
                process.kill()
            _close(process)


def _end(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.communicate(b"finish\n", timeout=CLIENT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    return process.returncode in (0, -9)


def _close(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def run_chaos(plan: Plan, target: Target, directory: Path, watch: Watch = lambda what, share: None) -> ChaosReport:
    """Make a run against a broker that answers; the clients' files go to `directory`. Raises ChaosError, or
    what the broker answers."""
    rng = random.Random(plan.seed)
    places = _create_topics(plan, target)
    crew = Crew(plan, target.bootstrap_servers, places, directory)
    kinds: dict[KindOfFault, int] = {"kill": plan.kills, "pause": plan.pauses, "restart": plan.restarts}
    faults = Faults(rng, kinds, pause_max_s=plan.pause_max_s, roles=plan.roles)
    try:
        crew.start()
        began_ns = time.monotonic_ns()
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
    return _judge(plan, clients, faults.done, (began_ns, ended_ns), paused, unfinished, directory)


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
    while (now_s := time.monotonic()) < start_s + plan.duration_s:
        if plan.faults_max and len(faults.done) >= plan.faults_max:
            break
        faults.wake_due()
        crew.replace_dead(rng)
        if now_s >= next_s:
            next_s = now_s + rng.expovariate(1 / plan.fault_interval_s)
            if rng.random() < QUIET_SHARE:
                next_s += plan.fault_interval_s
            fault = faults.strike({**broker_processes(target.boards_dir), **crew.processes()})
            if fault is not None:
                watch(f"{fault.kind} {fault.name}", (now_s - start_s) / plan.duration_s)
        time.sleep(0.02)


def _wait_until_whole(plan: Plan, target: Target) -> None:
    """Wait until every partition has a leader and all its copies in sync."""
    deadline_s = time.monotonic() + HEAL_TIMEOUT_S
    names = [f"chaos-{plan.seed}-{number}" for number in range(plan.topics)]
    with AdminClient(bootstrap_servers=target.bootstrap_servers) as admin:
        while True:
            found = [p for topic in admin.describe_topics(names).values() for p in topic.partitions]
            if all(p.leader is not None and len(p.isr) == len(p.replicas) for p in found):
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
        wait_p50_ms=statistics.median(waits) if waits else 0.0,
        wait_p99_ms=waits[min(len(waits) - 1, len(waits) * 99 // 100)] if waits else 0.0,
        refusals=clients.refusals,
        unfinished_clients=unfinished,
    )
    if not result.is_sound:
        result.history = _keep(history, directory)
    return result


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
