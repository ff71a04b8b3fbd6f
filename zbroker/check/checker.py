"""The history checker: every anomaly that a history proves.

Guarantees: a finding is proved by the history alone; nothing is guessed about operations whose outcome is unknown. It
is linear in the number of records but for sorting: 100,000 records take seconds. Above a million records use
`streaming`. The definitions are Jepsen's (jepsen/tests/kafka.clj), written down in `findings.Anomaly`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence

from zbroker.check.cycles import components, graph_of, read_edges, time_edges, write_edges
from zbroker.check.findings import Anomaly, Contract, Report
from zbroker.check.groups import check_groups
from zbroker.check.history import Call, Kind, Op, Read
from zbroker.check.versions import Versions


def check(history: Sequence[Op], contract: Contract | None = None) -> Report:
    """Judge a history that ends with a drain: every key read from its start by a client that nothing disturbed."""
    contract = contract or Contract()
    report = Report(contract)
    versions = Versions(history)
    report.sent_count = sum(len(op.sends) for op in history)
    report.acknowledged_count = sum(len(op.sends) for op in history if op.kind is Kind.OK)
    report.read_count = sum(map(len, versions.read_ok.values()))
    _check_log(versions, report)
    _check_sends(history, versions, report)
    _check_reads(history, versions, report)
    _check_losses(history, versions, report)
    _check_clients(history, versions, report)
    _check_watermarks(history, report)
    _check_epochs(history, report)
    _check_cycles(history, versions, report)
    check_groups(history, report)
    _measure_lag(history, report)
    return report


def _check_log(versions: Versions, report: Report) -> None:
    for key, found in versions.offsets.items():
        for offset, values in found.items():
            if len(values) > 1:
                report.add(Anomaly.INCONSISTENT_OFFSETS, f"{key} offset {offset}: {sorted(values)}")
    for (key, value), offsets in versions.places.items():
        if len(offsets) > 1:
            report.add(Anomaly.DUPLICATE, f"{key}: {value} at offsets {offsets}")


def _check_sends(history: Sequence[Op], versions: Versions, report: Report) -> None:
    latest: dict[tuple[int, str], tuple[int, str]] = {}
    for op in history:
        if not op.sends or op.kind is Kind.FAIL:
            continue
        inside: dict[str, tuple[int, str]] = {}
        for sent in op.sends:
            index = versions.first.get((sent.key, sent.value))
            if index is None:
                continue
            before = inside.get(sent.key)
            if before is None:
                earlier = latest.get((op.process, sent.key))
                if earlier is not None and index <= earlier[0]:
                    text = f"{sent.key}: client {op.process} sent {sent.value} after {earlier[1]}"
                    report.add(Anomaly.NONMONOTONIC_SEND, f"{text}; the log has it before")
            elif index <= before[0]:
                report.add(Anomaly.INT_NONMONOTONIC_SEND, f"{sent.key}: {sent.value} lies before {before[1]}")
            elif index - before[0] > 1:
                report.add(Anomaly.INT_SEND_SKIP, f"{sent.key}: something lies between {before[1]} and {sent.value}")
            inside[sent.key] = (index, sent.value)
        for key, found in inside.items():
            earlier = latest.get((op.process, key))
            if earlier is None or found[0] > earlier[0]:
                latest[op.process, key] = found


def _check_reads(history: Sequence[Op], versions: Versions, report: Report) -> None:
    failed = {(sent.key, sent.value) for op in history if op.kind is Kind.FAIL for sent in op.sends}
    for op in history:
        own = {(sent.key, sent.value) for sent in op.sends} if op.call is Call.TXN else set()
        for key, reads in op.polls.items():
            for read in reads:
                if (key, read.value) not in versions.sent_by:
                    report.add(Anomaly.PHANTOM, f"{key} offset {read.offset}: {read.value}")
                elif (key, read.value) in failed and op.kind is Kind.OK:
                    report.add(Anomaly.ABORTED_READ, f"{key} offset {read.offset}: {read.value}")
                if (key, read.value) in own:
                    report.add(Anomaly.PRECOMMITTED_READ, f"{key}: {read.value}")


def _check_losses(history: Sequence[Op], versions: Versions, report: Report) -> None:
    bounds = {
        key: max((index for value in values if (index := versions.first.get((key, value))) is not None), default=-1)
        for key, values in versions.read_ok.items()
    }
    for op in history:
        if not op.sends or not versions.must_be_done(op):
            continue
        for sent in op.sends:
            if sent.value in versions.read_ok[sent.key]:
                continue
            place = f"{sent.key} offset {sent.offset}: {sent.value} of client {op.process}"
            last = versions.last.get((sent.key, sent.value))
            if last is not None and last <= bounds.get(sent.key, -1):
                report.add(Anomaly.LOST_WRITE, place)
            if op.kind is Kind.OK:
                report.add(Anomaly.UNSEEN, place)


def _check_clients(history: Sequence[Op], versions: Versions, report: Report) -> None:
    positions: dict[int, dict[str, int]] = defaultdict(dict)
    consumed: dict[int, Counter[tuple[str, str]]] = {}
    for op in history:
        at = positions[op.process]
        if op.call in (Call.ASSIGN, Call.SUBSCRIBE):
            for key in [key for key in at if key not in op.assigned]:
                del at[key]
            if op.call is Call.SUBSCRIBE:
                consumed.setdefault(op.process, Counter())
            else:
                consumed.pop(op.process, None)
        for key, reads in op.polls.items():
            if not reads:
                continue
            index_of = versions.index_of[key]
            indexes = [index_of[read.offset] for read in reads]
            if key in op.rebalanced:
                at.pop(key, None)
            else:
                _check_inside(key, reads, indexes, report)
            if key in at and indexes[0] - at[key] > 1:
                report.add(Anomaly.POLL_SKIP, f"{key}: client {op.process} jumped to offset {reads[0].offset}")
            elif key in at and indexes[0] - at[key] < 1:
                report.add(Anomaly.NONMONOTONIC_POLL, f"{key}: client {op.process} went back to {reads[0].offset}")
            if op.kind is Kind.OK:
                at[key] = indexes[-1]
                if op.process in consumed:
                    consumed[op.process].update((key, read.value) for read in reads)
    for process, counts in consumed.items():
        for (key, value), count in counts.items():
            if count > 1:
                report.add(Anomaly.CONSUMED_TWICE, f"{key}: {value} {count} times by client {process}")


def _check_inside(key: str, reads: Sequence[Read], indexes: Sequence[int], report: Report) -> None:
    for number in range(1, len(indexes)):
        step = indexes[number] - indexes[number - 1]
        if step > 1:
            report.add(Anomaly.INT_POLL_SKIP, f"{key}: {reads[number - 1].offset} to {reads[number].offset}")
        elif step < 1:
            report.add(Anomaly.INT_NONMONOTONIC_POLL, f"{key}: {reads[number - 1].offset} to {reads[number].offset}")


def _check_watermarks(history: Sequence[Op], report: Report) -> None:
    seen: dict[tuple[int, str], int] = {}
    for op in history:
        for key, watermark in op.watermarks.items():
            before = seen.get((op.process, key), -1)
            if watermark < before:
                report.add(Anomaly.WATERMARK_REGRESS, f"{key}: client {op.process} saw {before}, then {watermark}")
            seen[op.process, key] = watermark
            for read in op.polls.get(key, ()):
                if read.offset >= watermark:
                    report.add(Anomaly.WATERMARK_REGRESS, f"{key}: offset {read.offset} with watermark {watermark}")


def _check_epochs(history: Sequence[Op], report: Report) -> None:
    found: dict[str, dict[int, int]] = defaultdict(dict)
    for op in history:
        for key, reads in op.polls.items():
            epochs = found[key]
            for read in reads:
                if read.epoch >= 0 and epochs.setdefault(read.offset, read.epoch) != read.epoch:
                    what = f"{key} offset {read.offset}: epochs {epochs[read.offset]} and {read.epoch}"
                    report.add(Anomaly.EPOCH_REGRESS, what)
    for key, epochs in found.items():
        before = -1
        for offset in sorted(epochs):
            if epochs[offset] < before:
                report.add(Anomaly.EPOCH_REGRESS, f"{key} offset {offset}: epoch {epochs[offset]} after {before}")
            before = max(before, epochs[offset])


def _check_cycles(history: Sequence[Op], versions: Versions, report: Report) -> None:
    # A send of several records that is no single batch may lie on both sides of another's: its order says nothing.
    torn = set() if report.contract.is_atomic else {n for n, op in enumerate(history) if len(op.sends) > 1}
    writes = [(a, b) for a, b in write_edges(versions) if a not in torn and b not in torn]
    times = list(time_edges(history))
    known: set[int] = set()
    for component in components(graph_of(iter(writes), iter(times))):
        known.update(component)
        report.add(Anomaly.WRITE_CYCLE, _named(history, component))
    reads = [(a, b) for a, b in read_edges(history, versions) if a not in torn]
    for component in components(graph_of(iter(writes), iter(times), iter(reads))):
        if not known.issuperset(component):
            report.add(Anomaly.WRITE_READ_CYCLE, _named(history, component))


def _named(history: Sequence[Op], component: Sequence[int]) -> str:
    numbers = sorted(component)[:6]
    return ", ".join(
        f"#{number} {history[number].call.value} of client {history[number].process}" for number in numbers
    )


def _measure_lag(history: Sequence[Op], report: Report) -> None:
    """The longest time for which a poll missed what another client knew already."""
    known: dict[str, dict[int, int]] = defaultdict(dict)
    for op in history:
        if op.kind is Kind.OK:
            for sent in op.sends:
                if sent.offset is not None:
                    at_ns = known[sent.key].get(sent.offset, op.complete_ns)
                    known[sent.key][sent.offset] = min(at_ns, op.complete_ns)
    for key, times in known.items():
        offsets = sorted(times)
        earliest = [times[offset] for offset in offsets]
        for index in range(len(earliest) - 2, -1, -1):
            earliest[index] = min(earliest[index], earliest[index + 1])
        for op in history:
            reads = op.polls.get(key)
            if reads and op.kind is Kind.OK:
                index = bisect_right(offsets, max(read.offset for read in reads))
                if index < len(offsets):
                    report.worst_lag_ns = max(report.worst_lag_ns, op.invoke_ns - earliest[index])
