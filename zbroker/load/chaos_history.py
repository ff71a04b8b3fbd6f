"""From the files that the clients of a chaos run wrote to one history."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from zbroker.check.history import Call, Kind, Op, Read, Sent
from zbroker.check.streaming import CounterChecker
from zbroker.load.chaos_client import ACKNOWLEDGED, ASSIGNED, FINISHED, POLLED, REFUSED, SENT

NEVER_NS = (1 << 63) - 1


def events_of(path: Path) -> Iterator[list[Any]]:
    """The events of a client, oldest first. A last line that its death cut short is left out."""
    decoder = msgspec.json.Decoder(list[Any])
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    for line in data.split(b"\n")[:-1]:
        yield decoder.decode(line)


class Clients:
    """What all clients of a run did: `add` each one's file, then ask."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.finished: set[int] = set()
        self.refusals: dict[str, int] = {}

    def add(self, process: int, path: Path) -> None:
        """Take a client's events in."""
        sent: dict[int, list[Any]] = {}
        outcomes: dict[int, list[Any]] = {}
        for event in events_of(path):
            match event[0]:
                case str() as kind if kind == SENT:
                    sent[event[1]] = event
                case str() as kind if kind in (ACKNOWLEDGED, REFUSED):
                    outcomes[event[1]] = event
                case str() as kind if kind == POLLED:
                    reads = {key: [Read(*one) for one in found] for key, found in event[3].items()}
                    self.ops.append(
                        Op(process, Call.POLL, Kind.OK, event[1], event[2], polls=reads, watermarks=event[4])
                    )
                case str() as kind if kind == ASSIGNED:
                    self.ops.append(Op(process, Call.ASSIGN, Kind.OK, event[1], event[1], assigned=tuple(event[2])))
                case str() as kind if kind == FINISHED:
                    self.finished.add(process)
        for number, event in sent.items():
            self.ops.append(self._send(process, event, outcomes.get(number)))

    def _send(self, process: int, event: list[Any], outcome: list[Any] | None) -> Op:
        _, _, invoke_ns, key, first, count = event
        offsets: list[int | None] = [None] * count
        kind, complete_ns = Kind.INFO, NEVER_NS
        if outcome is not None and outcome[0] == ACKNOWLEDGED:
            kind, complete_ns = Kind.OK, outcome[2]
            # A repeat whose place the leader has forgotten is acknowledged with offset -1.
            offsets = [base + index if base >= 0 else None for base, length in outcome[3] for index in range(length)]
        elif outcome is not None:
            # What became of it is not known: an attempt before the last may have been appended.
            self.refusals[outcome[3]] = self.refusals.get(outcome[3], 0) + 1
        sends = tuple(Sent(key, f"{process}-{first + index}", offsets[index]) for index in range(count))
        return Op(process, Call.SEND, kind, invoke_ns, complete_ns, sends)

    def history(self) -> list[Op]:
        """All operations in the order in which they began."""
        return sorted(self.ops, key=lambda op: (op.invoke_ns, op.process))


def count(history: Iterable[Op], drain: int) -> CounterChecker:
    """The same history for the counting checker: acknowledgements of all, reads of the client `drain` alone."""
    checker = CounterChecker()
    for op in history:
        if op.kind is Kind.OK:
            for sent in op.sends:
                producer, _, counter = sent.value.partition("-")
                checker.acknowledged(producer, sent.key, int(counter))
        if op.process == drain:
            for key, reads in op.polls.items():
                for read in reads:
                    producer, _, counter = read.value.partition("-")
                    checker.read(producer, key, int(counter))
    return checker
