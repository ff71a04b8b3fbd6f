"""What groups cost, measured with members that are processes: joining, a member's death, restarts, a commit per record.

Every time is of the one monotonic clock of the host, taken where the thing happens: a takeover ends when the new owner
has the first record in hand.
"""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from zbroker.check.findings import Anomaly
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.load.group_client import READ, TAKEN
from zbroker.load.group_crew import GroupCrew, Member

NS_PER_MS: Final = 1_000_000
WRITE_INTERVAL_S: Final = 0.01
FILL_BATCH: Final = 10_000
FILL_BYTES: Final = 100
KILL_WITHIN_S: Final = 0.03


class Restarts(msgspec.Struct):
    """What restarts of all members, one after the other, came to. `needless`: revocations of partitions that stayed in
    the group with a member, beyond those that a newcomer's share takes."""

    records: int
    twice: int
    left_out: int
    revocations: int
    needless: int


class Regained(msgspec.Struct):
    """What kills of the coordinator amid rebalances came to; times until every partition had its one member."""

    stable_ms: list[float]
    double_owners: int
    commits_back: int


class CommitRates(msgspec.Struct):
    """Records a second of one member with and without a commit for each, and what the call itself takes."""

    with_commits_per_s: float
    without_per_s: float
    call_us: float


class Writing:
    """A thread that writes a record to each partition every 10 ms. A context manager; `counts` when it has ended."""

    def __init__(self, servers: str, topic: str, partitions: int) -> None:
        self._topic = topic
        self._producer = Producer(bootstrap_servers=servers, linger_ms=0)
        self._is_due = threading.Event()
        self._is_ending = False
        self._thread = threading.Thread(target=self._run, name="writing")
        self.counts = dict.fromkeys(range(partitions), 0)

    def _run(self) -> None:
        while not self._is_ending:
            self._is_due.wait(WRITE_INTERVAL_S)
            self._is_due.clear()
            for partition in self.counts:
                self._producer.send(self._topic, b"%d" % self.counts[partition], partition=partition)
                self.counts[partition] += 1
        self._producer.flush()

    def write_now(self) -> None:
        """Do not wait for the next time."""
        self._is_due.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_ending = True
        self._thread.join()
        self._producer.close()


def make_filled(servers: str, topic: str, partitions: int, records: int) -> None:
    """Create a topic with so many records of 100 bytes in each partition."""
    with AdminClient(bootstrap_servers=servers) as admin:
        admin.create_topics([NewTopic(topic, num_partitions=partitions)])
    with Producer(bootstrap_servers=servers) as producer:
        for first in range(0, records, FILL_BATCH):
            numbers = range(first, min(first + FILL_BATCH, records))
            values = [(b"%d" % number).ljust(FILL_BYTES, b".") for number in numbers]
            for partition in range(partitions):
                producer.send_many(topic, values, partition=partition)
        producer.flush()


def join_latency(servers: str, topic: str, rounds: int, **settings: Any) -> list[float]:
    """Milliseconds from just before `Consumer(group_id=...)` of a new group to its first record, sorted."""
    found = []
    for number in range(rounds):
        begun_ns = time.monotonic_ns()
        group_id = f"{topic}-{begun_ns}-{number}"
        with Consumer(
            topic, group_id=group_id, bootstrap_servers=servers, auto_offset_reset="earliest", **settings
        ) as consumer:
            records = consumer.consume(1, timeout_ms=30_000)
            found.append((time.monotonic_ns() - begun_ns) / NS_PER_MS)
            assert records, "no record within 30 s"
    return sorted(found)


def takeovers(
    servers: str,
    crew: GroupCrew,
    topic: str,
    members: int,
    kills: int,
    rng: random.Random,
    advance: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """Kill members one after the other; milliseconds until the last of its partitions was read by another, sorted.

    A record is written to each partition every 10 ms and just after a kill: there always is one to take over with.
    """
    for _ in range(members):
        crew.start()
    found = []
    with Writing(servers, topic, crew.partitions) as writing:
        for _ in range(kills):
            crew.wait_until_shared()
            crew.wait_until(lambda: all(_reads(one, one.owned) for one in crew.living), "every partition read")
            victim = rng.choice(crew.living)
            had = set(victim.owned)
            at_ns = victim.kill()
            writing.write_now()
            victim.wait()
            crew.wait_until(lambda: _read_since(crew.living, had, at_ns) is not None, "read by another")  # noqa: B023
            last_ns = _read_since(crew.living, had, at_ns)
            assert last_ns is not None
            found.append((last_ns - at_ns) / NS_PER_MS)
            crew.start()
            advance(1)
    return sorted(found)


def _reads(member: Member, partitions: set[int]) -> bool:
    """Whether it has read of each of these since it was given something last."""
    seen: set[int] = set()
    for event in reversed(member.events):
        if event[0] == READ:
            seen.add(event[2])
        elif event[0] == TAKEN or seen >= partitions:
            break
    return seen >= partitions


def _read_since(members: list[Member], partitions: set[int], at_ns: int) -> int | None:
    """When the last of these was read by one of the members for the first time since then; None: not all were."""
    first: dict[int, int] = {}
    for member in members:
        for event in reversed(member.events):
            if event[1] < at_ns:
                break
            if event[0] == READ and event[2] in partitions:
                first[event[2]] = min(event[1], first.get(event[2], event[1]))
    return max(first.values()) if first.keys() == partitions else None


def rolling_restart(servers: str, crew: GroupCrew, topic: str, members: int, *, static: bool = False) -> Restarts:
    """Let each of the members leave and another come, one after the other, while records are written."""
    revocations = needless = 0
    names = [f"instance-{number}" for number in range(members)] if static else [None] * members
    current = [_start(crew, name) for name in names]
    crew.wait_until_shared()
    with Writing(servers, topic, crew.partitions) as writing:
        for index, name in enumerate(names):
            others = [one for one in current if one is not current[index]]
            before = sum(one.revoked_count for one in others)
            current[index].stop()
            if not static:
                crew.wait_until_shared()
                taken = sum(one.revoked_count for one in others) - before
                needless += taken  # whoever stays has nothing to give up
                revocations += taken
                before += taken
            current[index] = _start(crew, name)
            crew.wait_until_shared()
            taken = sum(one.revoked_count for one in others) - before
            revocations += taken
            needless += taken if static else max(0, taken - len(current[index].owned))
    crew.wait_until(lambda: crew.left_out(writing.counts) == 0, "every record read")
    for member in crew.living:
        member.stop()
    records = sum(writing.counts.values())
    return Restarts(records, crew.read_twice(), crew.left_out(writing.counts), revocations, needless)


def _start(crew: GroupCrew, instance_id: str | None) -> Member:
    return crew.start() if instance_id is None else crew.start(group_instance_id=instance_id)


def coordinator_kills(
    servers: str, crew: GroupCrew, topic: str, kill: Callable[[], None], kills: int, rng: random.Random
) -> Regained:
    """Kill the coordinator a little after a member has begun to join or to leave, so many times."""
    for _ in range(3):
        crew.start()
    stable_ms = []
    with Writing(servers, topic, crew.partitions):
        for number in range(kills):
            newcomer = crew.start(goes=False) if number % 2 == 0 else None
            crew.wait_until(lambda: _is_shared_but(crew, newcomer), "shared before a kill")  # noqa: B023
            if newcomer is not None:
                newcomer.go()
            else:
                rng.choice(crew.living).ask_to_leave()
            time.sleep(rng.uniform(0, KILL_WITHIN_S))  # at any point of the rebalance
            at_ns = time.monotonic_ns()
            kill()
            crew.wait_until(lambda: crew.is_shared and len(crew.living) == 3 + (number + 1) % 2, "shared")  # noqa: B023
            changed = [event[1] for one in crew.living for event in one.events if event[0] == TAKEN]
            stable_ms.append(max(0.0, (max(changed) - at_ns) / NS_PER_MS))
    for member in crew.living:
        member.stop()
    crew.look()
    report = crew.report()
    return Regained(sorted(stable_ms), report.counts[Anomaly.DOUBLE_OWNER], report.counts[Anomaly.COMMIT_REGRESS])


def _is_shared_but(crew: GroupCrew, newcomer: Member | None) -> bool:
    others = [one for one in crew.living if one is not newcomer]
    return sorted(number for one in others for number in one.owned) == list(range(crew.partitions))


def commit_rates(servers: str, topic: str, records: int, rounds: int) -> CommitRates:
    """One member reads a filled topic of one partition, with and without a commit for each record: the best rounds."""
    without = with_commits = 0.0
    call_us = float("inf")
    for number in range(rounds):
        without = max(without, _rate(servers, topic, records, f"without-{number}", commits=False))
        with_commits = max(with_commits, _rate(servers, topic, records, f"with-{number}", commits=True))
        call_us = min(call_us, _call_us(servers, topic, f"call-{number}"))
    return CommitRates(with_commits, without, call_us)


def _consumer(servers: str, topic: str, group_id: str) -> Consumer[Any, Any]:
    settings: dict[str, Any] = {"auto_offset_reset": "earliest", "enable_auto_commit": False}
    return Consumer(topic, group_id=f"{group_id}-{time.monotonic_ns()}", bootstrap_servers=servers, **settings)


def _rate(servers: str, topic: str, records: int, group_id: str, *, commits: bool) -> float:
    with _consumer(servers, topic, group_id) as consumer:
        commit = consumer.commit
        (first,) = consumer.consume(1, timeout_ms=30_000)
        commit(first)
        gc.collect()
        count = size_bytes = 0
        begun_s = time.perf_counter()
        while count < records - 1:
            found = consumer.consume(500, timeout_ms=30_000)
            assert found, f"{count} of {records} records came"
            count += len(found)
            if commits:
                for record in found:
                    size_bytes += len(record.value or b"")
                    commit(record)
            else:
                for record in found:
                    size_bytes += len(record.value or b"")
        return count / (time.perf_counter() - begun_s)


def _call_us(servers: str, topic: str, group_id: str, repeats: int = 200) -> float:
    with _consumer(servers, topic, group_id) as consumer:
        records = consumer.consume(500, timeout_ms=30_000)
        commit = consumer.commit
        best = float("inf")
        for _ in range(repeats):
            begun_ns = time.perf_counter_ns()
            for record in records:
                commit(record)
            best = min(best, (time.perf_counter_ns() - begun_ns) / len(records) / 1_000)
        return best


def crew_of(directory: Path, servers: str, topic: str, partitions: int, group_id: str) -> GroupCrew:
    """Members of a group, each on its own, that are not started yet."""
    directory.mkdir(parents=True, exist_ok=True)
    return GroupCrew(directory, topic, partitions, bootstrap_servers=servers, group_id=group_id)
