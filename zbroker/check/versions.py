"""The order of values in each partition, as far as the history tells it: the ground that every judgement stands on.

log(key) maps an offset to the values seen there, from sends that must have been done (ok, or unknown with a value that
an ok poll returned) and from all polls, whatever became of them. Offsets that hold nothing (control batches, deleted
records) leave no gap: positions are dense indexes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from zbroker.check.history import Kind, Op


class Versions:
    """What is known of the values of a history. Indexes are dense positions in log(key)."""

    def __init__(self, history: Sequence[Op]) -> None:
        self.read_ok: dict[str, set[str]] = defaultdict(set)
        self.sent_by: dict[tuple[str, str], int] = {}  # (key, value) -> number of the operation
        self.polled_keys: set[str] = set()
        self._note_what_was_read(history)
        self.offsets: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        self._note_offsets(history)
        self.order: dict[str, list[set[str]]] = {}
        self.first: dict[tuple[str, str], int] = {}
        self.last: dict[tuple[str, str], int] = {}
        self.places: dict[tuple[str, str], list[int]] = defaultdict(list)
        self.index_of: dict[str, dict[int, int]] = {}
        for key, found in self.offsets.items():
            self._order(key, found)

    def _note_what_was_read(self, history: Sequence[Op]) -> None:
        for number, op in enumerate(history):
            for sent in op.sends:
                self.sent_by[sent.key, sent.value] = number
            if op.kind is Kind.OK:
                for key, reads in op.polls.items():
                    self.read_ok[key].update(read.value for read in reads)

    def _note_offsets(self, history: Sequence[Op]) -> None:
        for op in history:
            if op.sends and self.must_be_done(op):
                for sent in op.sends:
                    if sent.offset is not None:
                        self.offsets[sent.key][sent.offset].add(sent.value)
            for key, reads in op.polls.items():
                values = self.offsets[key]
                for read in reads:
                    values[read.offset].add(read.value)

    def must_be_done(self, op: Op) -> bool:
        """Whether an operation's sends are in the log for certain."""
        if op.kind is Kind.OK:
            return True
        return op.kind is Kind.INFO and any(sent.value in self.read_ok[sent.key] for sent in op.sends)

    def _order(self, key: str, found: dict[int, set[str]]) -> None:
        indexes = {}
        self.order[key] = order = []
        for index, offset in enumerate(sorted(found)):
            indexes[offset] = index
            values = found[offset]
            order.append(values)
            for value in values:
                self.first.setdefault((key, value), index)
                self.last[key, value] = index
                self.places[key, value].append(offset)
        self.index_of[key] = indexes
