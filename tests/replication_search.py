"""Every history of a small world of copies, breadth first, on the real state machines of leaders and followers.

A state is everything that can matter later, as bytes: two histories that lead to one state are followed once. In each
state every next thing happens in turn: the oldest message arrives, or one from another sender overtakes it, or one is
lost, a leader gets a record, a flush ends, time passes for a process, a process dies (with or without what it has sent,
and what was not on its disk), its death is proven, it starts again. How often each may happen is bounded (`Bounds`),
when is not.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import zlib
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.replication_coordinator import Grant, GrantAnswer
from tests.replication_log import MemoryLog
from tests.replication_node import COORDINATOR, Node
from tests.replication_script import Script
from zbroker.core.partition import ACKS_ALL, ACKS_FSYNC

_MS = 1_000_000
_TICK_NS = 400 * _MS  # longer than the lag that is allowed, shorter than what counts as a pause of the observer
_LAG_MAX_MS = 300
_OF_NODE = frozenset({"world", "number", "log", "_stream_effects"})  # the same in all states, or kept apart
Action = tuple[str, int, int]


class Bounds(NamedTuple):
    """How often what may happen in one history."""

    acks: tuple[int, ...] = (ACKS_ALL, ACKS_FSYNC, ACKS_ALL)  # of each record
    elections: int = 2
    deaths: int = 2
    lossy_deaths: int = 1
    ticks: int = 1
    drops: int = 0
    overtakes: int = 1


class _Searched(Script):
    """A world whose time is what has happened in it, so that the order of unrelated things leaves no trace."""

    def __init__(self, bounds: Bounds, *, has_tails: bool, node_class: type[Node]) -> None:
        super().__init__(copies=3, min_insync=2, node_class=node_class)
        self.bounds = bounds
        self.tail_chance = float(has_tails)
        self.lag_max_ms = _LAG_MAX_MS
        self.random = _Whole()  # type: ignore[assignment]  # a crash loses everything that was not synced
        self.began_ns = self.now_ns
        self.elections_before = self.coordinator.elections
        self.done: Counter[str] = Counter()

    def spread(self) -> None:
        """Say nothing again whose answer is under way."""
        waiting = [message for _, _, message in self.network]
        for grant in self.coordinator.grants():
            answer = (grant.to, grant.incarnation, grant.leader_epoch, grant.partition_epoch)
            if not any(one == grant or (type(one) is GrantAnswer and one[:4] == answer) for one in waiting):
                self.send(COORDINATOR, grant.to, grant)

    def deliver(self, index: int) -> None:
        """Hand over one message; one for a dead process is lost."""
        source, target, message = self.network.pop(index)
        if target == COORDINATOR:
            self._coordinate(source, message)
        elif self.nodes[target].is_up:
            self.nodes[target].deliver(message)

    # --- what may happen ---------------------------------------------------------------------------------------------

    def actions(self) -> Iterator[Action]:
        """Everything that may happen next."""
        done, bounds = self.done, self.bounds
        pairs = dict.fromkeys((source, target) for source, target, _ in self.network)
        for place, (source, target) in enumerate(pairs):
            if place == 0:
                yield "deliver", source, target
            elif done["overtake"] < bounds.overtakes:
                yield "overtake", source, target
            if done["drop"] < bounds.drops and self._is_between_copies(source, target):
                yield "drop", source, target
        for node in self.nodes:
            yield from self._actions_of(node)

    def _is_between_copies(self, source: int, target: int) -> bool:
        return source < len(self.nodes) and target < len(self.nodes) and self.nodes[target].is_up

    def _actions_of(self, node: Node) -> Iterator[Action]:
        done, bounds, number = self.done, self.bounds, node.number
        if not node.is_up:
            yield "start", number, 0
            if any(one == number for one, _ in self.unproven):
                yield "prove", number, 0
            return
        if node.flushing_to is not None:
            yield "flush", number, 0
        if node.leader is not None and done["produce"] < len(bounds.acks):
            yield "produce", number, 0
        if done["tick"] < bounds.ticks:
            yield "tick", number, 0
        elections = self.coordinator.elections - self.elections_before
        may_elect = elections < bounds.elections or number != self.coordinator.leader
        if may_elect and sum(done[death] for death in _DEATHS) < bounds.deaths:
            yield "kill", number, 0
            if any(source == number for source, _, _ in self.network):
                yield "silence", number, 0
            if done["lossy kill"] < bounds.lossy_deaths and self._may_lose(node):
                yield "lossy kill", number, 0

    def _may_lose(self, node: Node) -> bool:
        """As many as replication is to survive: see `World._kill_somehow`."""
        lossy = self.promises.lossy
        eligible = {*self.coordinator.isr, *self.coordinator.elr} - set(lossy)
        return node.number in lossy or (len(lossy) < self.min_insync - 1 and len(eligible) >= self.min_insync)

    def do(self, action: Action) -> None:
        """Let it happen. Raises AssertionError when it breaks a promise."""
        what, number, detail = action
        self.done[what] += 1
        if what in ("deliver", "overtake", "drop"):
            index = next(at for at, one in enumerate(self.network) if one[:2] == (number, detail))
            if what == "drop":
                del self.network[index]
                return
            self.done["grant"] += type(self.network[index][2]) is Grant
            self._set_time()
            self.deliver(index)
            return
        self._set_time()
        node = self.nodes[number]
        if what == "produce":
            self.produce(node, self.bounds.acks[self.done["produce"] - 1])
        elif what == "flush":
            node.flushed()
        elif what == "tick":
            node.tick()
            self.spread()
        elif what in ("kill", "silence", "lossy kill"):
            if what != "kill":  # it had sent nothing yet of what it wanted to send
                self.network = [one for one in self.network if one[0] != number]
            self.kill(node, is_lossy=what == "lossy kill")
        elif what == "prove":
            self.prove(number)
        else:
            self.start(node)

    def _set_time(self) -> None:
        done = self.done
        elections = self.coordinator.elections - self.elections_before
        turns = (done["start"] + elections) * 100 + done["grant"]
        self.now_ns = self.began_ns + done["tick"] * _TICK_NS + turns * _MS // 100

    # --- states ------------------------------------------------------------------------------------------------------

    def freeze(self) -> bytes:
        """Everything that can matter later; two worlds with the same bytes have the same future."""
        promises = self.promises
        self._share(is_tied=False)
        state = (
            [{name: value for name, value in vars(node).items() if name not in _OF_NODE} for node in self.nodes],
            [[getattr(node.log, name) for name in _OF_LOG] for node in self.nodes],
            vars(self.coordinator) | {"alive": _sorted(self.coordinator.alive)},
            self.network,
            sorted(self.unproven),
            self.next_value,
            _sorted(self.written._known),
            [_sorted(getattr(promises, name)) for name in _OF_PROMISES],
            list(promises.committed),
            bool(promises.counts.get("lossy kills")),
            sorted((what, self.done[what]) for what in _COUNTED if self.done[what]),
        )
        buffer = io.BytesIO()
        pickler = pickle.Pickler(buffer, 5)
        pickler.fast = True  # without memory of what was written before, equal states have equal bytes
        pickler.dump(state)
        self._share(is_tied=True)
        return buffer.getvalue()

    def _share(self, *, is_tied: bool) -> None:
        """Tie the machines to what they have in common with others, or untie them."""
        config: Any = self.config if is_tied else None
        for node in self.nodes:
            log: Any = node.log if is_tied else None
            if node.follower is not None:
                node.follower._history, node.follower._config = log, config
            if node.leader is not None and node.streams is not None:
                node.leader.config, node.streams._history = config, log

    def thaw(self, frozen: bytes) -> None:
        """Be the world again that was frozen."""
        nodes, logs, coordinator, network, unproven, next_value, known, maps, committed, has_lost, done = pickle.loads(
            frozen
        )
        for node, fields, log in zip(self.nodes, nodes, logs, strict=True):
            vars(node).update(fields)
            for name, value in zip(_OF_LOG, log, strict=True):
                setattr(node.log, name, value)
        vars(self.coordinator).update(coordinator)
        self.network, self.unproven, self.next_value = network, set(unproven), next_value
        self.written._known = known
        for name, value in zip(_OF_PROMISES, maps, strict=True):
            setattr(self.promises, name, value)
        self.promises.committed = committed
        self.promises.counts = {"lossy kills": 1} if has_lost else {}
        self.done = Counter(dict(done))
        self._share(is_tied=True)
        self._set_time()


_OF_LOG = [name for name in MemoryLog.__slots__ if name != "written"]
_OF_PROMISES = ("on_disk", "lossy", "unanswered", "_leaders", "_boards")
_DEATHS = ("kill", "silence", "lossy kill")
_COUNTED = ("produce", "tick", *_DEATHS, "drop", "overtake", "start", "grant")


def _sorted(known: dict[Any, Any]) -> dict[Any, Any]:
    return dict(sorted(known.items()))


class _Whole:
    """Draws the upper end of a range: a crash loses all that was not synced; a tail is there or is not."""

    def uniform(self, low: float, high: float) -> float:
        return high

    def random(self) -> float:
        return 0.5


class Found(NamedTuple):
    """What a search came to."""

    states: int
    steps: int
    deepest: int
    is_complete: bool
    seen: frozenset[str]


def search(
    bounds: Bounds, states_max: int, *, has_tails: bool = False, node_class: type[Node] = Node, heal_every: int = 0
) -> Found:
    """Look at every state that the bounds allow, nearest first, at most `states_max`.

    From every `heal_every`th state everything is healed, and must come to rest. Raises AssertionError with the shortest
    way to a state that breaks a promise.
    """
    world = _Searched(bounds, has_tails=has_tails, node_class=node_class)
    first = world.freeze()
    ways: dict[bytes, tuple[bytes, Action]] = {}
    known = {_hash(first)}
    frontier = deque([(0, zlib.compress(first, 1))])
    steps = deepest = 0
    seen: set[str] = set()
    while frontier and len(known) < states_max:
        deepest, packed = frontier.popleft()
        frozen = zlib.decompress(packed)
        here = _hash(frozen)
        world.thaw(frozen)
        for action in list(world.actions()):
            world.thaw(frozen)
            steps += 1
            seen.add(action[0])
            try:
                world.do(action)
                after = world.freeze()
                name = _hash(after)
                if name in known:
                    continue
                if heal_every and len(known) % heal_every == 0:
                    world.heal()
            except AssertionError as error:
                raise AssertionError(f"{error}\nafter {_way(ways, here)} {action}\n{world.describe()}") from error
            known.add(name)
            ways[name] = (here, action)
            frontier.append((deepest + 1, zlib.compress(after, 1)))
    return Found(len(known), steps, deepest, not frontier, frozenset(seen))


def _hash(frozen: bytes) -> bytes:
    return hashlib.blake2b(frozen, digest_size=12).digest()


def _way(ways: dict[bytes, tuple[bytes, Action]], here: bytes) -> list[Action]:
    found: list[Action] = []
    while here in ways:
        here, action = ways[here]
        found.append(action)
    return found[::-1]
