"""Copies of one partition on a bad host: the real state machines of leaders and followers among a modelled coordinator,
logs that lose what was not synced, and a network that loses, repeats and reorders.

Guarantees to the tests that use it: one seed gives one history; after every event the promises (replication_promises)
were checked. Between two processes any message is lost, repeated or overtaken; what the coordinator says is said again
until it is answered. Deaths are proven before anybody is elected, unless the world has zombies.
"""

from __future__ import annotations

import random
from typing import Any

from tests.replication_coordinator import AlterIsr, Coordinator, Grant, GrantAnswer
from tests.replication_log import ViolationError, Written
from tests.replication_node import COORDINATOR, Node
from tests.replication_promises import Promises
from zbroker.config.schema import TopicConfig
from zbroker.core.partition import ACKS_ALL, ACKS_FSYNC, ACKS_LEADER, ACKS_NONE

_MS = 1_000_000
_ACKS = (ACKS_ALL, ACKS_ALL, ACKS_ALL, ACKS_FSYNC, ACKS_LEADER, ACKS_NONE)
_REST_STEPS_MAX = 400


def _below(rng: random.Random, count: int) -> int:
    """What `rng.randrange(count)` draws, in a third of the time."""
    bits = count.bit_length()
    drawn = rng.getrandbits(bits)
    while drawn >= count:
        drawn = rng.getrandbits(bits)
    return drawn


class World:
    """See the module. `step` makes one random thing happen; `heal` ends all faults and waits for rest."""

    def __init__(
        self,
        seed: int = 0,
        *,
        copies: int = 3,
        min_insync: int = 2,
        loss: float = 0.0,
        replay: float = 0.0,
        fault_rate: float = 0.015,
        has_zombies: bool = False,
        has_power_cuts: bool = False,
        node_class: type[Node] = Node,
    ) -> None:
        self.random = random.Random(seed)
        self.config = TopicConfig(min_insync_replicas=min_insync)
        self.min_insync = min(min_insync, copies)
        self.lag_max_ms = 1_000
        self.loss, self.replay, self.fault_rate = loss, replay, fault_rate
        self.has_zombies, self.has_power_cuts = has_zombies, has_power_cuts
        self.tail_chance = 0.7
        self.now_ns = _MS
        self.events = 0
        self.written = Written()
        self.network: list[tuple[int, int, Any]] = []  # (from, to, message)
        self.cut: set[tuple[int, int]] = set()  # one way
        self.unproven: set[tuple[int, int]] = set()  # deaths that the coordinator has not seen yet
        self.zombies: set[int] = set()
        self.next_value = 0
        self._owes_grants = True
        numbers = tuple(range(copies))
        self.coordinator = Coordinator(numbers, min_insync)
        self.promises = Promises(self.coordinator, lambda: self.nodes, has_zombies=has_zombies)
        self.nodes = [node_class(self, number) for number in numbers]
        for node in self.nodes:
            self.start(node)

    # --- what nodes do -----------------------------------------------------------------------------------------------

    def send(self, source: int, target: int, message: Any) -> None:
        if target < 0 or (source, target) in self.cut or (self.loss and self.random.random() < self.loss):
            return
        self.network.append((source, target, message))
        if self.replay and self.random.random() < self.replay:
            self.network.append((source, target, message))

    def complete_tail(self, node: Node, grant: Grant) -> int:
        """The new leader reads what the dead one left; give the highest high watermark on any board.

        Not only on the predecessor's: that one may have been elected and died before it led. What a later leader shows
        does not count: it is of another log, when the new leader was deposed before it was told that it leads.
        """
        dead = self.nodes[grant.predecessor] if grant.predecessor >= 0 else node
        if dead is not node and not dead.is_suspect and self.random.random() < self.tail_chance:
            node.complete_from(dead.log, grant.leader_epoch)
        return max(one.board for one in self.nodes if one.board_epoch <= grant.leader_epoch)

    # --- life and death ----------------------------------------------------------------------------------------------

    def start(self, node: Node) -> None:
        """Start a process. It registers until it is heard, and only after the death before it was proven."""
        self.prove(node.number)
        node.start()
        self.coordinator.registered(node.number, node.incarnation)
        self.spread()

    def kill(self, node: Node, *, is_lossy: bool = False) -> None:
        """End a process; `is_lossy`: with it goes what was not on its disk."""
        self.promises.count("lossy kills" if is_lossy else "kills")
        self.unproven.add((node.number, node.incarnation))
        for value in node.die():
            del self.promises.unanswered[value]
        self.zombies.discard(node.number)
        if is_lossy:
            self.promises.loses(node.number)
            node.is_suspect = True
            node.board = 0
            node.log.lose(self.random)

    def prove(self, number: int) -> None:
        """The coordinator learns of this process's death, if it is dead."""
        for dead in [one for one in self.unproven if one[0] == number]:
            self.unproven.discard(dead)
            self.coordinator.died(*dead)
        self.promises.look_at_isr(self.unproven)
        self.spread()

    def power_cut(self) -> None:
        """All die at once, and lose what was not on the disk."""
        self.promises.count("power cuts")
        for node in self.nodes:
            if node.is_up:
                self.kill(node)
            node.board = 0
            node.is_suspect = False
            node.log.lose(self.random)
        self.unproven.clear()
        self.network.clear()
        self.promises.lossy.clear()
        self.promises.is_after_power_cut = True
        self.coordinator.power_cut()

    def spread(self) -> None:
        """The coordinator says what was not answered, unless it is under way."""
        grants = self.coordinator.grants()
        self._owes_grants = bool(grants)
        if grants:
            waiting = {message for _, _, message in self.network if type(message) is Grant}
            for grant in grants:
                if grant not in waiting:
                    self.send(COORDINATOR, grant.to, grant)

    # --- events ------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Make one random thing happen."""
        self.events += 1
        rng, network = self.random, self.network
        self.now_ns += int(rng.random() * 8 * _MS)
        chance = rng.random()
        if chance < self.fault_rate:
            self._fault()
        elif chance < 0.25:
            self._produce()
        elif chance < 0.45 or not network:
            self._pass_time(self.nodes[_below(rng, len(self.nodes))])
        else:
            self.deliver(_below(rng, len(network)))

    def deliver(self, index: int) -> None:
        """Hand over one message; one for a paused process waits, one for a dead process is lost."""
        network = self.network
        source, target, message = network[index]
        node = None if target == COORDINATOR else self.nodes[target]
        if node is not None and node.is_paused:
            return
        network[index] = network[-1]
        network.pop()
        if node is None:
            self._coordinate(source, message)
        elif node.is_up:
            node.deliver(message)

    def _coordinate(self, source: int, message: Any) -> None:
        if isinstance(message, GrantAnswer):
            self.coordinator.answered(message)
        elif isinstance(message, AlterIsr):
            self.send(COORDINATOR, source, self.coordinator.alter(message))
        self.promises.look_at_isr(self.unproven)
        self.spread()

    def _produce(self) -> None:
        leaders = [node for node in self.nodes if node.leader is not None and not node.is_paused]
        if leaders:
            node = leaders[_below(self.random, len(leaders))]
            self.produce(node, _ACKS[_below(self.random, len(_ACKS))])

    def produce(self, node: Node, acks: int) -> int:
        """Give a leader a record; give its value."""
        self.next_value += 1
        self.promises.unanswered[self.next_value] = acks
        node.produce((self.next_value, acks))
        return self.next_value

    def _pass_time(self, node: Node) -> None:
        if node.is_up and not node.is_paused:
            if node.flushing_to is not None and self.random.random() < 0.5:
                node.flushed()
            else:
                node.tick()
        if self._owes_grants:
            self.spread()

    def _fault(self) -> None:
        rng = self.random
        node = self.nodes[rng.randrange(len(self.nodes))]
        chance = rng.random()
        if not node.is_up:
            self.start(node) if chance < 0.7 else self.prove(node.number)
        elif node.is_paused:
            # A process that hangs is killed before another leads, or it goes on.
            self.kill(node) if chance < 0.5 else node.resume()
        elif chance < 0.25:
            self._kill_somehow(node)
        elif chance < 0.35:
            node.is_paused = True
        elif chance < 0.55:
            self.cut.add((rng.randrange(len(self.nodes)), rng.randrange(len(self.nodes))))
        elif chance < 0.80:
            self.cut.clear()
        elif chance < 0.88:
            self.coordinator.move()
            self.spread()
        elif chance < 0.92:
            node.trim()
        elif chance < 0.96 and self.has_zombies and node.number == self.coordinator.leader:
            self.zombies.add(node.number)
            self.coordinator.died(node.number, node.incarnation)
            self.spread()
        elif self.has_power_cuts and chance > 0.98:
            self.power_cut()

    def _kill_somehow(self, node: Node) -> None:
        # As many as replication is to survive: of those that may lead, fewer than min_insync have lost something.
        lossy = self.promises.lossy
        eligible = {*self.coordinator.isr, *self.coordinator.elr} - set(lossy)
        has_budget = node.number in lossy or (len(lossy) < self.min_insync - 1 and len(eligible) >= self.min_insync)
        has_budget = has_budget and not self.coordinator.must_compare
        self.kill(node, is_lossy=has_budget and self.random.random() < 0.5)

    # --- the end -----------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """End all faults; raise `ViolationError` unless all copies become alike, in sync and fully readable."""
        self.loss = self.replay = 0.0
        self.cut.clear()
        for node in self.nodes:
            node.is_paused = False
            if node.number in self.zombies:
                self.kill(node)
        for node in self.nodes:
            if not node.is_up:
                self.start(node)
        for _ in range(_REST_STEPS_MAX):
            if self.is_at_rest():
                return
            self.settle()
        raise ViolationError(f"no rest: {self.describe()}")

    def settle(self) -> None:
        """Deliver everything that is under way, in order, then let a fifth of a second pass."""
        held: list[tuple[int, int, Any]] = []
        for _ in range(10_000):
            if not self.network:
                break
            source, target, message = self.network.pop(0)
            self.events += 1
            if target == COORDINATOR:
                self._coordinate(source, message)
            elif self.nodes[target].is_paused:
                held.append((source, target, message))
            elif self.nodes[target].is_up:
                self.nodes[target].deliver(message)
        self.network += held
        self.now_ns += 200 * _MS
        for node in self.nodes:
            self.events += 1
            if node.flushing_to is not None:
                node.flushed()
            if node.is_up and not node.is_paused:
                node.tick()
        self.spread()

    def is_at_rest(self) -> bool:
        """Whether all copies are alike, in sync and fully readable, and nobody waits."""
        number = self.coordinator.leader
        one = self.nodes[number].leader if number >= 0 else None
        if one is None or len(self.coordinator.isr) < len(self.nodes) or self.network:
            return False
        ends = {node.log.log_end for node in self.nodes}
        waiting = [value for value, acks in self.promises.unanswered.items() if acks != ACKS_NONE]
        if ends != {one.high_watermark} or waiting:
            return False
        first = max(node.log.base for node in self.nodes)
        logs = [node.log.slice(first, one.log_end) for node in self.nodes]
        if any(log != logs[0] for log in logs):
            raise ViolationError("at rest, and the logs differ")
        return True

    def describe(self) -> str:
        """The state in words, for a failure."""
        one = self.coordinator
        lines = [
            f"epoch {one.leader_epoch} leader {one.leader} isr {one.isr} elr {one.elr} version {one.partition_epoch}",
            f"under way: {self.network[:5]}; unanswered: {dict(list(self.promises.unanswered.items())[:5])}",
        ]
        for node in self.nodes:
            role = node.leader or node.follower
            state = f"{role.state} epoch {role.leader_epoch} hw {role.high_watermark}" if role else "none"
            lines.append(
                f"{node.number} up {node.is_up}: {state}; {node.log.base}..{node.log.log_end} {node.log.starts}"
            )
        return "\n".join(lines)
