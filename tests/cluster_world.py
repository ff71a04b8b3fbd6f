"""A broker without processes: the coordinator's real state machine among a modelled log, board, router and workers.

Guarantees to the tests that use it: one seed gives one history; every rule of elections is checked after every step,
from outside, by a model that knows only who has which copy open. Messages between two processes are lost, but keep
their order, as they do over the router's sockets; between different pairs, deaths and timeouts, any order comes; the
metadata log refuses appends; workers and the coordinator die; the power goes, and with it what was not synced.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from tests.cluster_model import Board, Key, Worker, site
from zbroker import ids
from zbroker.clock import NS_PER_MS
from zbroker.config.schema import ServerConfig
from zbroker.core import cluster_events as ev
from zbroker.core import effects as do
from zbroker.core.cluster import Cluster
from zbroker.core.cluster_state import Standing
from zbroker.core.entries import AnyEntry
from zbroker.core.image import Image
from zbroker.errors import DiskFullError, FencedLeaderEpochError, StaleIncarnationError, StorageError
from zbroker.wire.inner_messages import GrantResult, PartitionGrant
from zbroker.wire.messages import Message


class World:
    """See the module. `step` makes one random thing happen; `heal` ends all faults and waits for rest."""

    def __init__(
        self,
        seed: int = 0,
        *,
        workers: int = 2,
        config: ServerConfig | None = None,
        loss: float = 0.0,
        log_failures: float = 0.0,
        open_failures: float = 0.0,
    ) -> None:
        self.random = random.Random(seed)
        self.config = config or ServerConfig()
        self.fixed_workers = workers
        self.loss, self.log_failures, self.open_failures = loss, log_failures, open_failures
        self.now_ns = 0
        self.boot = 1
        self.log: list[AnyEntry] = []
        self.synced = 0
        self.workers: dict[int, Worker] = {}  # live ones by number
        self.lingering: list[Worker] = []  # live ones whose number another has now
        self.under_way: dict[str, deque[Callable[[], None]]] = {}
        self.granted: dict[tuple[int, int, int], int] = {}  # (topic id, partition, epoch) -> incarnation
        self.epochs: dict[Key, int] = {}  # highest epoch that any worker took
        self.copy_keys: dict[int, Key] = {}
        self.ends: dict[int, tuple[int, int]] = {}  # by copy: last epoch, log end
        self.told: dict[Key, PartitionGrant] = {}  # what the newest leader was told last
        self.topic_names: dict[int, str] = {}
        self.removed_copies: set[int] = set()
        self.removed_boards: set[int] = set()
        self.answers: dict[object, list[do.Reply]] = {}
        self.asked = 0
        self.effects: list[do.Effect] = []
        self._next_pid = 100
        self._timeouts = 0
        self.cluster: Cluster | None = None
        self.board = Board()
        self.start_coordinator()

    # --- the coordinator ---------------------------------------------------------------------------------------------

    def start_coordinator(self) -> None:
        """A new coordinator reads the log, and finds the boards of the workers that live."""
        self.board = Board()
        self.cluster = Cluster(self.config, site(), self.fixed_workers, self.board.claim, Image.replayed(self.log))
        boards = [(worker.number, worker.incarnation) for worker in self._alive()]
        try:
            self.take(ev.Started("cluster-id", f"boot-{self.boot}", boards))
        except DiskFullError:
            self.kill_coordinator()  # it ends, and its supervisor starts it again
        self.take(ev.Connected())

    def kill_coordinator(self) -> None:
        """Its memory is gone; the log's bytes are not. Who asked it gets no answer."""
        self.cluster = None
        self.under_way.clear()

    def take(self, event: ev.Event) -> None:
        """Give the coordinator an event, and do what it wants."""
        if self.cluster is None:
            return
        effects = self.cluster.handle(event, self.now_ns)
        for effect in effects:
            self.effects.append(effect)
            self.perform(effect)
        self.check()

    def perform(self, effect: do.Effect) -> None:
        match effect:
            case do.AppendEntries():
                self._append(effect)
            case do.SyncLog():
                self.post("sync", self._sync)
            case do.WatchProcess():
                if effect.incarnation not in {worker.incarnation for worker in self._alive()}:
                    self._dies_soon(Worker(effect.number, effect.incarnation))
            case do.FenceProcess():
                assert all(worker.incarnation != effect.incarnation for worker in self.workers.values())
                for old in [one for one in self.lingering if one.incarnation == effect.incarnation]:
                    self._dies_soon(old)
            case do.SendAnnounce():
                self.send(f"to {effect.number}", lambda: self.register(effect.number), lambda: None)
            case do.SendGrant():
                self.send(f"to {effect.number}", lambda: self._grant(effect), lambda: self._grant_lost(effect))
            case do.SendRevoke():
                self.send(f"to {effect.number}", lambda: self._revoke(effect), lambda: self._revoke_lost(effect))
            case do.SendReconfigure():
                self.send(
                    f"to {effect.number}",
                    lambda: self._reconfigure(effect),
                    lambda: self._reconfigured(effect, False),
                )
            case do.Reply():
                if isinstance(effect.request, str):
                    self._registered(effect)
                else:
                    self.answers.setdefault(effect.request, []).append(effect)
            case do.PublishLeader():
                slot = (effect.topic_id, effect.partition)
                self.board.claim(*slot)
                self.board.leaders[slot] = (effect.leader_epoch, effect.number, effect.incarnation)
            case do.ForgetPartition():
                self.board.slots.pop((effect.topic_id, effect.partition), None)
                self.board.leaders.pop((effect.topic_id, effect.partition), None)
            case do.DeleteCopy():
                self._delete_copy(effect.copy_id)
            case do.RemoveBoard():
                assert all(worker.incarnation != effect.incarnation for worker in self._alive())
                self.removed_boards.add(effect.incarnation)
            case do.PublishWanted():
                self.board.wanted = effect.numbers
            case do.PublishReady():
                assert not self.board.is_ready, "ready is said once"
                self.board.is_ready = True

    def _append(self, effect: do.AppendEntries) -> None:
        if self.random.random() < self.log_failures:
            self.take(ev.AppendFailed(DiskFullError("no room in the metadata log")))
            return
        self.log.extend(effect.entries)
        if effect.durable:
            self.synced = len(self.log)
        self.take(ev.EntriesAppended())

    def _sync(self) -> None:
        self.synced = len(self.log)
        self.take(ev.LogSynced())

    def _delete_copy(self, copy_id: int) -> None:
        assert self.cluster is not None
        assert copy_id not in self.cluster.image.copy_ids(), f"copy {copy_id} is removed, and its topic exists"
        for worker in self._alive():
            for key, (held, _) in worker.open.items():
                assert held != copy_id, f"copy {copy_id} of {key} is removed while worker {worker.number} has it open"
        self.removed_copies.add(copy_id)

    # --- messages ----------------------------------------------------------------------------------------------------

    def post(self, way: str, deliver: Callable[[], None]) -> None:
        """Deliver later: after what goes the same way, in any order with the rest."""
        self.under_way.setdefault(way, deque()).append(deliver)

    def send(self, way: str, deliver: Callable[[], None], if_lost: Callable[[], None]) -> None:
        """Deliver, or lose it: then the sender's time runs out."""
        if self.random.random() < self.loss:
            self._timeouts += 1
            self.post(f"timeout {self._timeouts}", if_lost)
        else:
            self.post(way, deliver)

    def deliver_one(self) -> bool:
        """Let something arrive that is first on its way. False: nothing is under way."""
        if not self.under_way:
            return False
        way = self.random.choice(list(self.under_way))
        first = self.under_way[way].popleft()
        if not self.under_way[way]:
            del self.under_way[way]
        first()
        return True

    def settle(self, turns_max: int = 20_000) -> None:
        """Deliver what is under way, and what comes of it."""
        for _ in range(turns_max):
            if not self.deliver_one():
                return
        raise AssertionError("the messages never end")

    # --- workers -----------------------------------------------------------------------------------------------------

    def start_worker(self, number: int) -> Worker:
        """A new incarnation of a worker, which registers."""
        assert number not in self.workers
        self._next_pid += 1
        self.workers[number] = Worker(number, self._next_pid << 22 | self._next_pid)
        self.register(number)
        return self.workers[number]

    def register(self, number: int) -> None:
        """A live worker says what it holds."""
        worker = self.workers.get(number)
        if worker is not None:
            self._register(worker)

    def _register(self, worker: Worker) -> None:
        if worker not in self._alive():
            return
        register = worker.register()
        self.send(
            f"from {worker.incarnation}",
            lambda: self.take(ev.ProcessRegistered(f"worker {worker.incarnation}", register)),
            lambda: self._register(worker),
        )

    def _registered(self, reply: do.Reply) -> None:
        for worker in list(self.lingering):
            if reply.error == StaleIncarnationError.code and reply.request == f"worker {worker.incarnation}":
                self._dies_soon(worker)  # it ends itself

    def kill_worker(self, number: int) -> None:
        """SIGKILL. The coordinator hears of it later, perhaps after its successor has registered."""
        worker = self.workers.pop(number)
        self._dies_soon(worker)

    def supersede_worker(self, number: int) -> None:
        """A second process of a number, while the first one still lives: its lock was taken from it."""
        self.lingering.append(self.workers.pop(number))
        self.start_worker(number)

    def _alive(self) -> list[Worker]:
        return [*self.workers.values(), *self.lingering]

    def _dies_soon(self, worker: Worker) -> None:
        def die() -> None:
            if worker in self.lingering:
                self.lingering.remove(worker)
            self.take(ev.ProcessDied(worker.number, worker.incarnation))

        self.post(f"death {worker.incarnation}", die)

    def _live(self, number: int, incarnation: int) -> Worker | None:
        worker = self.workers.get(number)
        return worker if worker is not None and worker.incarnation == incarnation else None

    def _grant_lost(self, effect: do.SendGrant) -> None:
        self.take(ev.GrantAnswered(effect.number, effect.incarnation, effect.grants, None))

    def _grant(self, effect: do.SendGrant) -> None:
        worker = self._live(effect.number, effect.incarnation)
        if worker is None:
            self._grant_lost(effect)
            return
        results = [self._open(worker, grant) for grant in effect.grants]
        answered = ev.GrantAnswered(effect.number, effect.incarnation, effect.grants, results)
        self.send(f"from {effect.incarnation}", lambda: self.take(answered), lambda: self._grant_lost(effect))

    def _open(self, worker: Worker, grant: PartitionGrant) -> GrantResult:
        key = (grant.topic_id, grant.partition)
        held = worker.open.get(key) or worker.following.get(key)
        error = 0
        if held is not None and held[1] > grant.leader_epoch:
            error = FencedLeaderEpochError.code
        elif held is None and self.random.random() < self.open_failures:
            error = StorageError.code
        if error:
            return GrantResult(*key, error, "cannot be opened", -1, -1)
        for other in self._alive():
            same = [found for found in (other.open.get(key), other.following.get(key)) if found is not None]
            assert other is worker or all(found[0] != grant.copy_id for found in same), "a copy is open twice"
        assert self.copy_keys.setdefault(grant.copy_id, key) == key, "a copy id is permanent"
        assert grant.copy_id not in self.removed_copies, "a removed copy is granted"
        worker.settings[grant.topic_id] = grant.config
        if grant.leader == worker.number:
            return self._begin_to_lead(worker, grant, key)
        worker.open.pop(key, None)
        worker.following[key] = (grant.copy_id, grant.leader_epoch)
        return self._result(grant, key)

    def _result(self, grant: PartitionGrant, key: Key) -> GrantResult:
        last_epoch, log_end = self.ends.get(grant.copy_id, (-1, 0))
        return GrantResult(*key, 0, "", 0, log_end, last_epoch)

    def _begin_to_lead(self, worker: Worker, grant: PartitionGrant, key: Key) -> GrantResult:
        for other in self._alive():
            assert other is worker or key not in other.open, f"{key} is granted while {other.incarnation} leads it"
        self._note_epoch(worker, grant, key)
        worker.following.pop(key, None)
        worker.open[key] = (grant.copy_id, grant.leader_epoch)
        self.told[key] = grant
        self.ends[grant.copy_id] = (grant.leader_epoch, self.ends.get(grant.copy_id, (-1, 0))[1] + 1)
        return self._result(grant, key)

    def _note_epoch(self, worker: Worker, grant: PartitionGrant, key: Key) -> None:
        incarnation = self.granted.setdefault((*key, grant.leader_epoch), worker.incarnation)
        assert incarnation == worker.incarnation, f"epoch {grant.leader_epoch} of {key} has two leaders"
        assert grant.leader_epoch >= self.epochs.get(key, -1), f"epochs of {key} go back"
        assert grant.copy_id in grant.isr, "a leader is not in sync"
        self.epochs[key] = grant.leader_epoch

    def _revoke_lost(self, effect: do.SendRevoke) -> None:
        self.take(ev.RevokeAnswered(effect.number, effect.incarnation, effect.revocations, False))

    def _revoke(self, effect: do.SendRevoke) -> None:
        worker = self._live(effect.number, effect.incarnation)
        if worker is None:
            self._revoke_lost(effect)
            return
        for one in effect.revocations:
            worker.open.pop((one.topic_id, one.partition), None)
            worker.following.pop((one.topic_id, one.partition), None)
        self.take(ev.RevokeAnswered(effect.number, effect.incarnation, effect.revocations, True))

    def _reconfigure(self, effect: do.SendReconfigure) -> None:
        worker = self._live(effect.number, effect.incarnation)
        if worker is not None and effect.topic_id in {topic_id for topic_id, _ in (*worker.open, *worker.following)}:
            worker.settings[effect.topic_id] = effect.config
        self._reconfigured(effect, worker is not None)

    def _reconfigured(self, effect: do.SendReconfigure, is_done: bool) -> None:
        self.take(ev.ReconfigureAnswered(effect.number, effect.incarnation, effect.topic_id, is_done))

    # --- clients, time, power ----------------------------------------------------------------------------------------

    def ask(self, body: Message, timeout_ms: int = 30_000) -> int:
        """A client asks; its number, under which the answers are."""
        self.asked += 1
        self.take(ev.Asked(self.asked, body, timeout_ms))
        return self.asked

    def answer(self, body: Message, timeout_ms: int = 30_000) -> do.Reply:
        """Ask, let everything come to rest, and give the answer."""
        number = self.ask(body, timeout_ms)
        self.settle()
        assert len(self.answers.get(number, [])) == 1, f"answers: {self.answers.get(number)}"
        return self.answers[number][0]

    def tick(self, ms: int = 100) -> None:
        """Time goes on; what was appended is synced by then."""
        self.now_ns += ms * NS_PER_MS
        self.synced = len(self.log)
        self.take(ev.Ticked())

    def cut_power(self) -> None:
        """Everything dies, and what was not synced is gone, or a part of it."""
        self.kill_coordinator()
        self.workers.clear()
        self.lingering.clear()
        del self.log[self.random.randint(self.synced, len(self.log)) :]
        self.synced = len(self.log)
        self.boot += 1

    # --- what must always hold ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """The rules, seen from outside."""
        opened: dict[Key, Worker] = {}
        for worker in self._alive():
            for key in worker.open:
                assert key not in opened, f"{key} is open in workers {opened[key].number} and {worker.number}"
                opened[key] = worker
        if self.cluster is None:
            return
        image, state = self.cluster.image, self.cluster.state
        standings = [state.leadership(partition.key).standing for partition in image.partitions()]
        assert state.are_all_led() == all(standing is Standing.LEADING for standing in standings)
        for topic in image.topics.values():
            assert self.topic_names.setdefault(topic.topic_id, topic.name) == topic.name, "a topic id is used twice"
        for key, (epoch, _, incarnation) in self.board.leaders.items():
            if incarnation is not None:
                assert self.granted.get((*key, epoch)) == incarnation, f"{key}: the board shows who was not granted it"

    def check_replay(self) -> None:
        """Replaying the log, or its snapshot, gives the image that is there."""
        if self.cluster is not None:
            facts = self.cluster.image.facts()
            assert Image.replayed(self.log).facts() == facts
            assert Image.replayed(self.cluster.image.snapshot()).facts() == facts


def worker(index: int) -> int:
    """A worker's process number."""
    return ids.worker_number(index)
