"""Cycles among operations: each must come before the other, so no order of them explains what was seen.

Edges: ww, the writers of neighbouring values of a log; wr, from a value's writer to its readers; process, from an
operation of a client to its next; realtime, from an operation that had ended to one that began later. Of the real-time
edges only a transitive reduction is made, by a frontier of ended operations (Jepsen's Elle does the same). Strongly
connected components by Tarjan's algorithm, without recursion.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from zbroker.check.history import Kind, Op
from zbroker.check.versions import Versions

Graph = dict[int, set[int]]


def write_edges(versions: Versions) -> Iterator[tuple[int, int]]:
    """(earlier, later) writers of values that stand next to each other."""
    for key, order in versions.order.items():
        before: int | None = None
        for values in order:
            writers = [w for value in values if (w := versions.sent_by.get((key, value))) is not None]
            if len(writers) != 1:
                before = None
                continue
            if before is not None and before != writers[0]:
                yield before, writers[0]
            before = writers[0]


def read_edges(history: Sequence[Op], versions: Versions) -> Iterator[tuple[int, int]]:
    """(writer, reader) of each value that was read."""
    for number, op in enumerate(history):
        if op.kind is Kind.OK:
            for key, reads in op.polls.items():
                for read in reads:
                    writer = versions.sent_by.get((key, read.value))
                    if writer is not None and writer != number:
                        yield writer, number


def time_edges(history: Sequence[Op]) -> Iterator[tuple[int, int]]:
    """(ended, begun later), reduced; a client's own operations are ordered by the same rule."""
    events = []
    for number, op in enumerate(history):
        # At the same moment what begins comes first: neither is known to be the earlier one.
        events.append((op.invoke_ns, 0, number))
        if op.kind is Kind.OK:
            events.append((op.complete_ns, 1, number))
    events.sort()
    frontier: set[int] = set()
    behind: dict[int, frozenset[int]] = {}
    for _, is_end, number in events:
        if not is_end:
            behind[number] = frozenset(frontier)
            for earlier in frontier:
                yield earlier, number
        else:
            frontier -= behind[number]
            frontier.add(number)


def graph_of(edges: Iterator[tuple[int, int]], *more: Iterator[tuple[int, int]]) -> Graph:
    """The graph of some edges."""
    graph: Graph = defaultdict(set)
    for found in (edges, *more):
        for earlier, later in found:
            graph[earlier].add(later)
            graph.setdefault(later, set())
    return graph


def components(graph: Graph) -> list[list[int]]:
    """The strongly connected components of more than one node."""
    number_of: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    found: list[list[int]] = []
    for root in graph:
        if root in number_of:
            continue
        number_of[root] = low[root] = len(number_of)
        stack.append(root)
        on_stack.add(root)
        work = [(root, iter(graph[root]))]
        while work:
            node, following = work[-1]
            for later in following:
                if later not in number_of:
                    number_of[later] = low[later] = len(number_of)
                    stack.append(later)
                    on_stack.add(later)
                    work.append((later, iter(graph[later])))
                    break
                if later in on_stack:
                    low[node] = min(low[node], number_of[later])
            else:
                work.pop()
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[node])
                if low[node] == number_of[node]:
                    component = _popped(stack, on_stack, node)
                    if len(component) > 1:
                        found.append(component)
    return found


def _popped(stack: list[int], on_stack: set[int], node: int) -> list[int]:
    component = []
    while True:
        last = stack.pop()
        on_stack.discard(last)
        component.append(last)
        if last == node:
            return component
