"""The anomalies that the checker knows, which of them a contract allows, and what was found."""

from __future__ import annotations

from collections import defaultdict
from enum import Enum
from typing import Final

from msgspec import Struct

EXAMPLES_MAX: Final = 8


class Anomaly(Enum):
    """Names as in Jepsen's kafka workload; the last five are zbroker's own."""

    INCONSISTENT_OFFSETS = "inconsistent-offsets"  # one offset carries two values
    DUPLICATE = "duplicate"  # one value at two offsets
    ABORTED_READ = "G1a"  # a value was read whose send failed
    LOST_WRITE = "lost-write"  # something behind it was read, it never was
    UNSEEN = "unseen"  # acknowledged, and never read until the end
    POLL_SKIP = "poll-skip"  # between two polls of a client, records were left out
    NONMONOTONIC_POLL = "nonmonotonic-poll"  # between two polls of a client, it went back
    INT_POLL_SKIP = "int-poll-skip"  # the same inside one poll
    INT_NONMONOTONIC_POLL = "int-nonmonotonic-poll"
    NONMONOTONIC_SEND = "nonmonotonic-send"  # a client's later send lies before its earlier one
    INT_NONMONOTONIC_SEND = "int-nonmonotonic-send"  # the same inside one send
    INT_SEND_SKIP = "int-send-skip"  # another's record lies between two of one send
    PRECOMMITTED_READ = "precommitted-read"  # a transaction read what it sent itself
    WRITE_CYCLE = "G0"  # sends that each precede the other
    WRITE_READ_CYCLE = "G1c"  # sends and polls that each precede the other
    CONSUMED_TWICE = "consume-counts"  # one value twice by one subscribed client
    PHANTOM = "phantom"  # a value that nobody sent
    WATERMARK_REGRESS = "hw-regress"  # a high watermark went back, or a record behind it was given out
    EPOCH_REGRESS = "epoch-regress"  # leader epochs go back as offsets go on
    COMMIT_REGRESS = "commit-regress"  # what a group has committed went back, or an old owner's commit was taken
    DOUBLE_OWNER = "double-owner"  # two members of a group had one partition at one time


class Contract(Struct, frozen=True):
    """What was promised, and thereby which anomalies are none.

    With `is_subscribed`, positions may move in a rebalance; without `is_idempotent`, a retried send may stand twice;
    with `acks` below "all", an acknowledged record may go down with its leader; `is_atomic`: one send is one batch.
    """

    is_subscribed: bool = False
    is_idempotent: bool = True
    has_transactions: bool = False
    keeps_acknowledged: bool = True
    is_atomic: bool = False

    def allows(self, anomaly: Anomaly) -> bool:
        """Whether it is no violation."""
        allowed = set()
        if self.is_subscribed:
            allowed |= {Anomaly.POLL_SKIP, Anomaly.NONMONOTONIC_POLL}
        if not self.is_idempotent:
            allowed |= {Anomaly.DUPLICATE, Anomaly.CONSUMED_TWICE}
        if not self.keeps_acknowledged:
            allowed |= {Anomaly.LOST_WRITE, Anomaly.UNSEEN}
        if not self.is_atomic:
            allowed |= {Anomaly.INT_SEND_SKIP}
        if self.has_transactions:
            allowed |= {Anomaly.WRITE_CYCLE}
        return anomaly in allowed


class Report:
    """Findings by kind: how many, and the first few in words."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.counts: dict[Anomaly, int] = defaultdict(int)
        self.examples: dict[Anomaly, list[str]] = defaultdict(list)
        self.worst_lag_ns = 0
        self.sent_count = self.acknowledged_count = self.read_count = 0

    def add(self, anomaly: Anomaly, what: str) -> None:
        """Something was found."""
        self.counts[anomaly] += 1
        if len(self.examples[anomaly]) < EXAMPLES_MAX:
            self.examples[anomaly].append(what)

    @property
    def violations(self) -> dict[Anomaly, int]:
        """What was found and not allowed."""
        return {anomaly: count for anomaly, count in self.counts.items() if not self.contract.allows(anomaly)}

    @property
    def is_sound(self) -> bool:
        """Whether the contract was kept."""
        return not self.violations

    def __str__(self) -> str:
        lines = [f"{self.acknowledged_count} acknowledged of {self.sent_count} sent, {self.read_count} values read"]
        for anomaly, count in sorted(self.counts.items(), key=lambda item: item[0].value):
            note = " (allowed)" if self.contract.allows(anomaly) else ""
            lines.append(f"{anomaly.value}{note}: {count}")
            lines += [f"    {what}" for what in self.examples[anomaly]]
        return "\n".join(lines)
