"""Moves of copies under load: one request after another, in a thread of its own, drawn from the run's seed.

Guarantees: when `over` ends nothing is being moved any more, or ChaosError is raised. What a broken broker refuses is
no finding here: requests meet dead processes by design. Whether the moves were made is in `done`.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from zbroker.client.admin import AdminClient
from zbroker.client.descriptions import PartitionDescription
from zbroker.errors import BrokerError
from zbroker.ids import TopicPartition
from zbroker.load.plan import ChaosError, Plan, Target

MOVES_SHARE: Final = 8
DONE_TIMEOUT_S: Final = 60.0
_REQUEST_MS: Final = 15_000
_LOOK_S: Final = 0.05
_ROLES_WITH_COPIES: Final = ("worker", "replica")


class Mover:
    """Moves copies, empties processes and sends leaders back. `done`: how often each; `slowest_ms`: of one of them."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.slowest_ms = 0.0
        self._end = threading.Event()
        self._failure: BaseException | None = None

    @contextmanager
    def over(self, plan: Plan, target: Target, places: list[tuple[str, int]]) -> Iterator[None]:
        """Move for as long as this lasts; then wait until all of it is done."""
        thread = threading.Thread(target=self._run, args=(plan, target, places), name="mover")
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()
        if self._failure is not None:
            raise ChaosError(f"moves: {self._failure}") from self._failure

    def _run(self, plan: Plan, target: Target, places: list[tuple[str, int]]) -> None:
        rng = random.Random(f"moves {plan.seed}")
        topics = sorted({topic for topic, _ in places})
        kinds = {"move": MOVES_SHARE, "drain": plan.drains, "elect": plan.elections}
        try:
            with AdminClient(bootstrap_servers=target.bootstrap_servers) as admin:
                while not self._end.wait(plan.move_interval_s):
                    kind = rng.choices(list(kinds), list(kinds.values()))[0]
                    began_s = time.monotonic()
                    if self._ask(admin, kind, topics, rng) and self._wait_until_done(admin, plan, topics):
                        self.done[kind] += 1
                        self.slowest_ms = max(self.slowest_ms, (time.monotonic() - began_s) * 1_000)
        except BaseException as error:
            self._failure = error

    def _ask(self, admin: AdminClient, kind: str, topics: list[str], rng: random.Random) -> bool:
        """Ask for one. False: it was refused, or it is not known whether it was begun."""
        try:
            if kind == "elect":
                return bool(admin.elect_leaders(timeout_ms=_REQUEST_MS, raise_errors=False))
            alive = [p.name for p in admin.describe_processes() if p.name.startswith(_ROLES_WITH_COPIES)]
            if kind == "drain":
                return bool(admin.drain(rng.choice(alive), timeout_ms=_REQUEST_MS))
            topic = rng.choice(topics)
            partition = rng.choice(_partitions(admin, [topic]))
            held = [copy.process for copy in partition.copies]
            free = sorted(set(alive) - set(held))
            if not free:
                return False
            place = TopicPartition(topic, partition.partition)
            admin.move(place, rng.choice(free), source=rng.choice(held), timeout_ms=_REQUEST_MS)
        except BrokerError:
            return False
        return True

    def _wait_until_done(self, admin: AdminClient, plan: Plan, topics: list[str]) -> bool:
        """Wait until no partition has a copy too many. False: the run is over before; then the run itself waits."""
        return _wait_for(
            lambda: all(len(one.replicas) == plan.replication_factor for one in _partitions(admin, topics)),
            self._end.is_set,
        )


def _wait_for(is_done: Callable[[], bool], is_over: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + DONE_TIMEOUT_S
    while not is_over():
        try:
            if is_done():
                return True
        except BrokerError:
            pass  # Nobody answers just now: processes are being killed.
        if time.monotonic() > deadline_s:
            raise ChaosError(f"a move is not done after {DONE_TIMEOUT_S:.0f} s")
        time.sleep(_LOOK_S)
    return False


def _partitions(admin: AdminClient, topics: list[str]) -> list[PartitionDescription]:
    return [one for topic in admin.describe_topics(topics).values() for one in topic.partitions]
