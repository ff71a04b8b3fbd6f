"""The coordinator's decisions: who leads what, and when. No I/O, no clock, no randomness of its own.

Rules, each with its reason:
- An election is in the metadata log before its grant is sent: a forgotten leader could write beside the next one.
- A leader epoch is used once: every grant to a new incarnation has a higher one.
- Nothing is granted while the incarnation before may live: only a death seen by pidfd, or a newer incarnation that
  holds the same process lock, frees a partition.
- A coordinator that comes back believes what a registered process says it holds only when the log says the same.
- A copy whose process does not come back within `ADOPTION_DELAY_MS` is given to another process: only the map from
  copies to processes changes, no byte moves.

State: the image (what the log says) and, for each partition, whether its leader was asked, leads, or failed.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from msgspec import Struct

from zbroker.clock import NS_PER_MS
from zbroker.config.schema import ServerConfig
from zbroker.config.topic import effective, to_texts
from zbroker.core.effects import (
    AppendEntries,
    Effect,
    PublishLeader,
    PublishReady,
    PublishWanted,
    SendGrant,
    SendRevoke,
    WatchProcess,
)
from zbroker.core.entries import Adopted, AnyEntry, Elected
from zbroker.core.image import Image, Partition
from zbroker.ids import process_name, worker_number
from zbroker.wire.messages import GrantResult, Held, PartitionGrant, ProcessInfo, Register, Revocation

ADOPTION_DELAY_MS = 10_000
GRANT_RETRY_MS = 1_000
GRANTS_PER_MESSAGE_MAX = 64


class Standing(Enum):
    """How a partition's leadership stands."""

    VACANT = "vacant"  # no live process has the copy
    ASKED = "asked"  # granted, not answered
    LEADING = "leading"  # the process answered that it leads
    FAILED = "failed"  # the process answered that it cannot


class Process(Struct):
    """A registered process."""

    number: int
    incarnation: int
    board: str
    lane_socket: str
    alive: bool = True
    died_ns: int = 0

    def info(self) -> ProcessInfo:
        """What metadata says of it."""
        name = process_name(self.number)
        state = "running" if self.alive else "dead"
        return ProcessInfo(self.number, name, self.incarnation, self.board, self.lane_socket, state)


class Leadership(Struct):
    """What is known of a partition's leader beyond the log."""

    standing: Standing = Standing.VACANT
    error: int = 0
    message: str = ""
    retry_ns: int = 0


class Cluster:
    """See the module. Every method that changes something returns the effects, in their order."""

    def __init__(self, config: ServerConfig, fixed_workers: int) -> None:
        """`fixed_workers`: how many workers the settings want; 0: a worker for each partition."""
        self.config = config
        self.fixed_workers = fixed_workers
        self.image = Image()
        self.processes: dict[int, Process] = {}
        self.leaderships: dict[tuple[int, int], Leadership] = {}
        self.cells: dict[tuple[int, int], int] = {}
        self._ready = False

    def leadership(self, partition: Partition) -> Leadership:
        """How a partition's leadership stands."""
        found = self.leaderships.get(partition.key)
        if found is None:
            found = self.leaderships[partition.key] = Leadership()
        return found

    def record(self, entries: list[AnyEntry], *, durable: bool) -> AppendEntries:
        """Apply new entries to the image, and give the effect that writes them down. It comes before what follows."""
        for entry in entries:
            self.image.apply(entry)
        return AppendEntries(entries, durable)

    def wanted(self) -> list[int]:
        """The worker processes that should run."""
        if self.fixed_workers:
            return [worker_number(index) for index in range(self.fixed_workers)]
        return sorted({partition.owner for partition in self.image.partitions()})

    def start(self, now_ns: int) -> list[Effect]:
        """After the replay: show what is wanted, and nobody's leadership until processes register."""
        effects: list[Effect] = [PublishWanted(self.wanted())]
        for partition in self.image.partitions():
            effects.append(PublishLeader(*partition.key, max(partition.leader_epoch, 0), None, None))
        # A process that never comes back after this start is given as long as one that dies now.
        for number in {partition.owner for partition in self.image.partitions()}:
            self.processes.setdefault(number, Process(number, 0, "", "", alive=False, died_ns=now_ns))
        return effects + self._ready_if_so()

    def registered(self, register: Register, now_ns: int) -> list[Effect]:
        """A process says that it is up, and what it leads."""
        known = self.processes.get(register.number)
        effects: list[Effect] = []
        if known is not None and known.alive and known.incarnation != register.incarnation:
            # It holds the lock that the older one held, so the older one is dead, whatever order the news come in.
            effects += self.died(register.number, known.incarnation, now_ns)
        if known is None or known.incarnation != register.incarnation or not known.alive:
            process = Process(register.number, register.incarnation, register.board, register.lane_socket)
            self.processes[register.number] = process
            effects.append(WatchProcess(process.number, process.incarnation, process.board, process.lane_socket))
        effects += self._take_holdings(register)
        mine = [p for p in self.image.partitions() if p.owner == register.number]
        vacant = [p for p in mine if self.leadership(p).standing in (Standing.VACANT, Standing.ASKED)]
        return effects + self._elect(vacant, now_ns) + self._ready_if_so()

    def _take_holdings(self, register: Register) -> list[Effect]:
        effects: list[Effect] = []
        strangers = []
        for held in register.holding:
            partition = self.image.partition(held.topic_id, held.partition)
            if partition is None or partition.owner != register.number or partition.copy_id != held.copy_id:
                strangers.append(Revocation(held.topic_id, held.partition, delete=partition is None))
            elif (
                self._agrees(partition, held, register.incarnation)
                and self.leadership(partition).standing is not Standing.LEADING
            ):
                effects += self._lead(partition)
        if strangers:
            effects.append(SendRevoke(register.number, strangers))
        return effects

    @staticmethod
    def _agrees(partition: Partition, held: Held, incarnation: int) -> bool:
        return partition.leader_epoch == held.leader_epoch and partition.leader_incarnation == incarnation

    def died(self, number: int, incarnation: int, now_ns: int) -> list[Effect]:
        """A process has ended."""
        process = self.processes.get(number)
        if process is None or process.incarnation != incarnation or not process.alive:
            return []
        process.alive = False
        process.died_ns = now_ns
        effects: list[Effect] = []
        for partition in self.image.partitions():
            if partition.owner == number:
                self.leaderships[partition.key] = Leadership()
                effects.append(PublishLeader(*partition.key, max(partition.leader_epoch, 0), None, None))
        return effects

    def elect(self, partitions: Iterable[Partition], now_ns: int) -> list[Effect]:
        """Elect the owners of partitions that have no leader, where they live."""
        return self._elect(list(partitions), now_ns)

    def _elect(self, partitions: list[Partition], now_ns: int) -> list[Effect]:
        by_owner: dict[int, list[Partition]] = {}
        for partition in partitions:
            owner = self.processes.get(partition.owner)
            if owner is not None and owner.alive:
                by_owner.setdefault(partition.owner, []).append(partition)
        if not by_owner:
            return []
        entries: list[AnyEntry] = []
        grants: list[Effect] = []
        for number, found in by_owner.items():
            incarnation = self.processes[number].incarnation
            epochs = [(p.topic_id, p.partition, p.leader_epoch + 1) for p in found]
            entries.append(Elected(number, incarnation, epochs))
        appended = self.record(entries, durable=False)
        for number, found in by_owner.items():
            incarnation = self.processes[number].incarnation
            for partition in found:
                self.leaderships[partition.key] = Leadership(Standing.ASKED)
            for first in range(0, len(found), GRANTS_PER_MESSAGE_MAX):
                part = [self.grant_of(p) for p in found[first : first + GRANTS_PER_MESSAGE_MAX]]
                grants.append(SendGrant(number, incarnation, part))
        return [appended, *grants]

    def grant_of(self, partition: Partition) -> PartitionGrant:
        """The grant of a partition's newest epoch."""
        topic = self.image.topics[partition.topic_id]
        return PartitionGrant(
            topic_id=partition.topic_id,
            partition=partition.partition,
            topic=topic.name,
            copy_id=partition.copy_id,
            directory=partition.directory,
            leader_epoch=partition.leader_epoch,
            coordinator_cell=self.cells.get(partition.key, 0),
            config=to_texts(effective(self.config.topics, topic.config)),
        )

    def grant_answered(
        self,
        number: int,
        incarnation: int,
        grants: list[PartitionGrant],
        results: list[GrantResult] | None,
        now_ns: int,
    ) -> list[Effect]:
        """A process answered a grant; None: it did not answer in time, and is asked again with the same epochs."""
        process = self.processes.get(number)
        if process is None or not process.alive or process.incarnation != incarnation:
            return []
        if results is None:
            still = [g for g in grants if self._is_asked(g)]
            return [SendGrant(number, incarnation, still)] if still else []
        effects: list[Effect] = []
        for grant, result in zip(grants, results, strict=False):
            partition = self.image.partition(grant.topic_id, grant.partition)
            if partition is None or not self._is_asked(grant):
                continue
            if result.error == 0:
                effects += self._lead(partition)
            else:
                retry_ns = now_ns + GRANT_RETRY_MS * NS_PER_MS
                failed = Leadership(Standing.FAILED, result.error, result.message, retry_ns)
                self.leaderships[partition.key] = failed
        return effects + self._ready_if_so()

    def _is_asked(self, grant: PartitionGrant) -> bool:
        partition = self.image.partition(grant.topic_id, grant.partition)
        if partition is None or partition.leader_epoch != grant.leader_epoch:
            return False
        return self.leadership(partition).standing is Standing.ASKED

    def _lead(self, partition: Partition) -> list[Effect]:
        self.leaderships[partition.key] = Leadership(Standing.LEADING)
        number, incarnation = partition.owner, partition.leader_incarnation
        return [PublishLeader(*partition.key, partition.leader_epoch, number, incarnation)]

    def tick(self, now_ns: int) -> list[Effect]:
        """Time went on: try failed grants again, and give away the copies of processes that stay away."""
        due = [
            partition
            for partition in self.image.partitions()
            if (found := self.leadership(partition)).standing is Standing.FAILED and found.retry_ns <= now_ns
        ]
        return self._elect(due, now_ns) + self._adopt(now_ns) + self._ready_if_so()

    def _adopt(self, now_ns: int) -> list[Effect]:
        if not self.fixed_workers:
            return []  # such a worker exists for its partition alone: the supervisor brings it back
        away = {
            process.number
            for process in self.processes.values()
            if not process.alive and now_ns - process.died_ns >= ADOPTION_DELAY_MS * NS_PER_MS
        }
        live = sorted(number for number, process in self.processes.items() if process.alive)
        orphans = [partition for partition in self.image.partitions() if partition.owner in away]
        if not orphans or not live:
            return []
        load = dict.fromkeys(live, 0)
        for partition in self.image.partitions():
            if partition.owner in load:
                load[partition.owner] += 1
        given: dict[int, list[int]] = {}
        for partition in orphans:
            heir = min(live, key=lambda number: (load[number], number))
            load[heir] += 1
            given.setdefault(heir, []).append(partition.copy_id)
        entries: list[AnyEntry] = [Adopted(heir, copy_ids) for heir, copy_ids in given.items()]
        return [self.record(entries, durable=True), *self._elect(orphans, now_ns)]

    def is_settled(self, partition: Partition) -> bool:
        """Whether nothing more is expected to happen to a partition's leadership soon."""
        return self.leadership(partition).standing in (Standing.LEADING, Standing.FAILED)

    def _ready_if_so(self) -> list[Effect]:
        if self._ready:
            return []
        wanted = self.wanted()
        if not all((found := self.processes.get(number)) is not None and found.alive for number in wanted):
            return []
        owned = [p for p in self.image.partitions() if (o := self.processes.get(p.owner)) is not None and o.alive]
        if not all(self.is_settled(partition) for partition in owned):
            return []
        self._ready = True
        return [PublishReady()]
