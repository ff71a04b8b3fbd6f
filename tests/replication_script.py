"""A world of copies in which only what a test says happens: messages are picked, dropped and cut off by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.replication_log import Item
from tests.replication_node import Node
from tests.replication_world import World
from zbroker.core import follower_events as fv

MS = 1_000_000


class Script(World):
    """A world in which only what the test says happens. Every process is up, copy 0 leads, all are in sync."""

    def __init__(self, copies: int = 3, min_insync: int = 2, node_class: type[Node] = Node) -> None:
        super().__init__(copies=copies, min_insync=min_insync, fault_rate=0.0, node_class=node_class)
        self.tail_chance = 0.0
        self.rest()

    def rest(self, rounds: int = 12) -> None:
        """Let everything that is under way arrive, and two seconds pass."""
        for _ in range(rounds):
            self.settle()

    def only(self, wanted: Callable[[int, int, Any], bool]) -> None:
        """Deliver the messages that `wanted` picks, and what follows from them, until none is left."""
        while True:
            found = [index for index, one in enumerate(self.network) if wanted(*one)]
            if not found:
                return
            self.deliver(found[0])

    def drop(self, wanted: Callable[[int, int, Any], bool] = lambda *_: True) -> None:
        self.network = [one for one in self.network if not wanted(*one)]

    def cut_off(self, number: int) -> None:
        """Nothing passes between this copy and the others; the coordinator is still heard."""
        others = [node.number for node in self.nodes if node.number != number]
        self.cut |= {(number, other) for other in others} | {(other, number) for other in others}

    def die(self, number: int, *, is_lossy: bool = False) -> None:
        """A death that the coordinator sees at once."""
        self.kill(self.nodes[number], is_lossy=is_lossy)
        self.prove(number)

    @property
    def leader(self) -> Node:
        node = self.nodes[self.coordinator.leader]
        assert node.leader is not None
        return node

    def logs(self) -> list[list[Item]]:
        return [node.log.items for node in self.nodes]

    def is_answered(self, value: int) -> bool:
        return value not in self.promises.unanswered


def batches_to(number: int) -> Callable[[int, int, Any], bool]:
    return lambda source, target, message: target == number and isinstance(message, fv.Entry)
