"""Histories to test the checker with: correct ones by seed, from a model of a log that is always right."""

from __future__ import annotations

import random

from zbroker.check.history import Call, Kind, Op, Read, Sent


class CorrectLog:
    """Clients that send and poll a log without a flaw; time-outs and failures of sends are told as what they are."""

    def __init__(self, seed: int, *, keys: int = 3, senders: int = 3, readers: int = 3) -> None:
        self._rng = random.Random(seed)
        self._keys = [f"t:{number}" for number in range(keys)]
        self._log: dict[str, list[tuple[int, str, int]]] = {key: [] for key in self._keys}  # (offset, value, epoch)
        self._next_offset = dict.fromkeys(self._keys, 0)
        self._epoch = dict.fromkeys(self._keys, 0)
        self._senders = list(range(senders))
        self._readers = list(range(100, 100 + readers))
        self._counters: dict[int, int] = dict.fromkeys(self._senders, 0)
        self._positions: dict[int, dict[str, int]] = {}
        self._now_ns = 0
        self.history: list[Op] = []

    def run(self, records: int) -> list[Op]:
        """Send about so many records, then drain."""
        rng = self._rng
        while sum(map(len, self._log.values())) < records:
            if rng.random() < 0.5:
                self._send()
            else:
                self._poll(rng.choice(self._readers))
            if rng.random() < 0.01:
                self._epoch[rng.choice(self._keys)] += 1
        self._drain()
        return self.history

    def _times(self) -> tuple[int, int]:
        self._now_ns += self._rng.randrange(1, 100)
        invoke_ns = self._now_ns
        self._now_ns += self._rng.randrange(1, 100)
        return invoke_ns, self._now_ns

    def _send(self) -> None:
        rng = self._rng
        sender, key = rng.choice(self._senders), rng.choice(self._keys)
        values = []
        for _ in range(rng.randrange(1, 6)):
            values.append(f"{sender}-{self._counters[sender]}")
            self._counters[sender] += 1
        kind = rng.choices([Kind.OK, Kind.INFO, Kind.FAIL], [90, 5, 5])[0]
        is_written = kind is Kind.OK or (kind is Kind.INFO and rng.random() < 0.5)
        self._next_offset[key] += rng.random() < 0.02  # a control batch leaves a hole
        sends = []
        for value in values:
            offset = None
            if is_written:
                offset = self._next_offset[key]
                self._next_offset[key] += 1
                self._log[key].append((offset, value, self._epoch[key]))
            sends.append(Sent(key, value, offset if kind is Kind.OK else None))
        invoke_ns, complete_ns = self._times()
        self.history.append(Op(sender, Call.SEND, kind, invoke_ns, complete_ns, tuple(sends)))

    def _poll(self, reader: int) -> None:
        if reader not in self._positions:
            self._positions[reader] = dict.fromkeys(self._keys, 0)
            self.history.append(Op(reader, Call.ASSIGN, Kind.OK, *self._times(), assigned=tuple(self._keys)))
        at = self._positions[reader]
        polls: dict[str, list[Read]] = {}
        for key in self._rng.sample(self._keys, self._rng.randrange(1, len(self._keys) + 1)):
            found = self._log[key][at[key] : at[key] + self._rng.randrange(1, 20)]
            if found:
                at[key] += len(found)
                polls[key] = [Read(*one) for one in found]
        watermarks = {key: self._next_offset[key] for key in polls}
        self.history.append(Op(reader, Call.POLL, Kind.OK, *self._times(), polls=polls, watermarks=watermarks))

    def _drain(self) -> None:
        keys = tuple(self._keys)
        self.history.append(Op(999, Call.ASSIGN, Kind.OK, *self._times(), assigned=keys))
        polls = {key: [Read(*one) for one in found] for key, found in self._log.items() if found}
        self.history.append(Op(999, Call.POLL, Kind.OK, *self._times(), polls=polls))
