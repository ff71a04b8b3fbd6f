"""The sticky assignor: balanced, with the fewest moves.

Balanced: the sum of the squares of the members' loads is the least possible. Where all subscribe alike, that means that
loads differ by one at most; where they do not, that no chain of moves makes two loads more alike. Fewest moves: among
all balanced assignments, one in which the most partitions stay with who owns them.

Where all subscribe alike, counting is enough, in O(partitions). Else the assignment is a flow from partitions to
members of least cost (loads first, moves second), and one is optimal if and only if its residual graph has no cycle of
negative cost (Klein 1967): cycles are looked for with Bellman and Ford's algorithm and turned over until there is none.
For more than `EXACT_WORK_MAX` members times members times partitions, only loads are made optimal that way that single
moves can reach; then moves may be more than the fewest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

Key: TypeAlias = tuple[int, int]
EXACT_WORK_MAX: Final = 200_000


def sticky(
    topics: Mapping[str, frozenset[int]], owned: Mapping[str, Iterable[Key]], partition_counts: Mapping[int, int]
) -> dict[str, list[Key]]:
    """Who gets what: `topics` and `owned` by member id, in the order in which the members joined."""
    if not topics:
        return {}
    wanted = {topic_id for of_one in topics.values() for topic_id in of_one}
    keys = [
        (topic_id, number)
        for topic_id, count in sorted(partition_counts.items())
        if topic_id in wanted
        for number in range(count)
    ]
    owner_of: dict[Key, str] = {}
    known = set(keys)
    for member_id, of_one in owned.items():
        for key in sorted(of_one):
            if key in known and key[0] in topics[member_id]:
                owner_of.setdefault(key, member_id)
    wanted &= partition_counts.keys()
    if all(wanted <= of_one for of_one in topics.values()):
        return _counted(list(topics), keys, owner_of)
    held = _dealt(topics, keys, owner_of)
    if len(topics) ** 2 * len(keys) <= EXACT_WORK_MAX:
        _Flow(topics, owner_of, held).optimize()
    else:
        _level(topics, held)
    return {member_id: sorted(held[member_id]) for member_id in topics}


def _counted(members: list[str], keys: list[Key], owner_of: Mapping[Key, str]) -> dict[str, list[Key]]:
    """All subscribe alike: who owns most keeps one more, and what is over goes to who has least."""
    share, rest = divmod(len(keys), len(members))
    kept: dict[str, list[Key]] = {member_id: [] for member_id in members}
    free = []
    for key in keys:
        owner = owner_of.get(key)
        if owner is None:
            free.append(key)
        else:
            kept[owner].append(key)
    room = dict.fromkeys(members, share)
    for member_id in sorted(members, key=lambda one: -len(kept[one]))[:rest]:
        room[member_id] += 1
    for member_id, has in kept.items():
        free.extend(has[room[member_id] :])
        del has[room[member_id] :]
    free.sort(reverse=True)
    for member_id, has in kept.items():
        while len(has) < room[member_id]:
            has.append(free.pop())
        has.sort()
    assert not free, f"{len(free)} partitions are left"
    return kept


def _dealt(topics: Mapping[str, frozenset[int]], keys: list[Key], owner_of: Mapping[Key, str]) -> dict[str, set[Key]]:
    """Everybody keeps what it has; what nobody has goes to the one with the least, topics with few readers first."""
    held: dict[str, set[Key]] = {member_id: set() for member_id in topics}
    readers = {topic_id: [one for one in topics if topic_id in topics[one]] for topic_id in {key[0] for key in keys}}
    for key, owner in owner_of.items():
        held[owner].add(key)
    free = [key for key in keys if key not in owner_of]
    for key in sorted(free, key=lambda key: (len(readers[key[0]]), key)):
        held[min(readers[key[0]], key=lambda one: len(held[one]))].add(key)
    return held


def _level(topics: Mapping[str, frozenset[int]], held: dict[str, set[Key]]) -> None:
    """Move single partitions from the fuller to the emptier while that helps."""
    readers: dict[int, list[str]] = {}
    for member_id, of_one in topics.items():
        for topic_id in of_one:
            readers.setdefault(topic_id, []).append(member_id)
    is_changed = True
    while is_changed:
        is_changed = False
        for giver in sorted(held, key=lambda one: -len(held[one])):
            for key in sorted(held[giver]):
                taker = min(readers[key[0]], key=lambda one: len(held[one]))
                if len(held[taker]) + 2 <= len(held[giver]):
                    held[giver].discard(key)
                    held[taker].add(key)
                    is_changed = True


class _Flow:
    """The residual graph: an edge from a member to another is a partition that could go that way.

    The last node is the hub: a way through it changes two members' loads by one.
    """

    def __init__(
        self, topics: Mapping[str, frozenset[int]], owner_of: Mapping[Key, str], held: dict[str, set[Key]]
    ) -> None:
        self._members = list(topics)
        self._topics = [topics[one] for one in self._members]
        self._owner_of = owner_of
        self._held = [held[one] for one in self._members]
        # One unit of balance outweighs all moves together.
        self._load_cost = 1 + 2 * sum(map(len, self._held))

    def optimize(self) -> None:
        """Turn over cycles of negative cost until there is none."""
        while cycle := self._negative_cycle():
            hub = len(self._members)
            moves = []
            for giver, taker, key in cycle:
                if hub not in (giver, taker):
                    assert key is not None
                    moves.append((giver, taker, key))
            for giver, taker, key in moves:
                self._held[giver].discard(key)
                self._held[taker].add(key)

    def _edges(self) -> list[tuple[int, int, int, Key | None]]:
        """(from, to, cost, partition), the cheapest partition for each pair."""
        hub = len(self._members)
        edges: list[tuple[int, int, int, Key | None]] = []
        for giver, has in enumerate(self._held):
            load = len(has)
            edges.append((giver, hub, (2 * load + 1) * self._load_cost, None))
            if load:
                edges.append((hub, giver, (1 - 2 * load) * self._load_cost, None))
            best: dict[int, tuple[int, Key]] = {}
            for key in sorted(has):
                owner = self._owner_of.get(key)
                leaves = owner == self._members[giver]
                for taker, of_one in enumerate(self._topics):
                    if taker == giver or key[0] not in of_one:
                        continue
                    cost = leaves - (owner == self._members[taker])
                    if taker not in best or cost < best[taker][0]:
                        best[taker] = (cost, key)
            edges.extend((giver, taker, cost, key) for taker, (cost, key) in best.items())
        return edges

    def _negative_cycle(self) -> list[tuple[int, int, Key | None]]:
        edges = self._edges()
        nodes = len(self._members) + 1
        distance = [0] * nodes
        came: list[tuple[int, int, Key | None] | None] = [None] * nodes
        last = -1
        for _ in range(nodes):
            last = -1
            for giver, taker, cost, key in edges:
                if distance[giver] + cost < distance[taker]:
                    distance[taker] = distance[giver] + cost
                    came[taker] = (giver, taker, key)
                    last = taker
            if last < 0:
                return []
        node = last
        for _ in range(nodes):  # back onto the cycle, from wherever behind it this is
            step = came[node]
            assert step is not None
            node = step[0]
        cycle = []
        start = node
        while True:
            step = came[node]
            assert step is not None
            cycle.append(step)
            node = step[0]
            if node == start:
                return cycle
