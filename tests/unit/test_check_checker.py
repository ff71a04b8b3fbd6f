"""T01: the checker finds every anomaly that is planted, and nothing in histories without one."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.histories import CorrectLog
from zbroker.check.checker import check
from zbroker.check.findings import Anomaly, Contract
from zbroker.check.history import Call, Kind, Op, Read, Sent, load, save
from zbroker.check.streaming import CounterChecker

RECORDS = 3_000
replace = msgspec.structs.replace


def correct(seed: int, records: int = RECORDS) -> list[Op]:
    return CorrectLog(seed).run(records)


def drain_of(history: list[Op]) -> int:
    return len(history) - 1


def pick(history: list[Op], rng: random.Random, wanted: Callable[[Op], bool]) -> int:
    return rng.choice([number for number, op in enumerate(history) if wanted(op)])


def is_ok_send(op: Op) -> bool:
    return op.call is Call.SEND and op.kind is Kind.OK


def is_long_poll(op: Op) -> bool:
    return op.call is Call.POLL and op.process != 999 and any(len(reads) > 4 for reads in op.polls.values())


def long_key(op: Op) -> str:
    return max(op.polls, key=lambda key: len(op.polls[key]))


def with_reads(op: Op, key: str, reads: list[Read]) -> Op:
    return replace(op, polls={**op.polls, key: reads})


def everywhere(history: list[Op], key: str, change: Callable[[list[Read]], list[Read]]) -> None:
    """Change what every reader saw of a key."""
    for number, op in enumerate(history):
        if key in op.polls:
            history[number] = with_reads(op, key, change(op.polls[key]))


def plant_inconsistent_offsets(history: list[Op], rng: random.Random) -> None:
    number = pick(history, rng, is_long_poll)
    op = history[number]
    key = long_key(op)
    reads = list(op.polls[key])
    reads[2] = Read(reads[2].offset, "0-0" if reads[2].value != "0-0" else "1-0", reads[2].epoch)
    history[number] = with_reads(op, key, reads)


def plant_duplicate(history: list[Op], rng: random.Random) -> None:
    op = history[drain_of(history)]
    key = long_key(op)
    reads = op.polls[key]
    again = Read(reads[-1].offset + 1, rng.choice(reads[:-1]).value, reads[-1].epoch)
    history[drain_of(history)] = with_reads(op, key, [*reads, again])


def plant_aborted_read(history: list[Op], rng: random.Random) -> None:
    history_of_read = {read.value for read in history[drain_of(history)].polls["t:0"]}
    number = pick(history, rng, lambda op: is_ok_send(op) and op.sends[0].value in history_of_read)
    history[number] = replace(history[number], kind=Kind.FAIL)


def lose(history: list[Op], rng: random.Random, *, at_end: bool) -> None:
    key = "t:1"
    reads = history[drain_of(history)].polls[key]
    known = {sent.value for op in history if is_ok_send(op) for sent in op.sends}
    candidates = [read for read in (reads[-1:] if at_end else reads[: len(reads) // 2]) if read.value in known]
    gone = rng.choice(candidates)
    everywhere(history, key, lambda found: [read for read in found if read.value != gone.value])


def plant_lost_write(history: list[Op], rng: random.Random) -> None:
    lose(history, rng, at_end=False)


def plant_unseen(history: list[Op], rng: random.Random) -> None:
    invoke_ns = history[-1].invoke_ns - 1
    sent = Sent("t:2", "7-0", 1 << 40)
    history.insert(drain_of(history), Op(7, Call.SEND, Kind.OK, invoke_ns, invoke_ns + 1, (sent,)))


def plant_poll_skip(history: list[Op], rng: random.Random) -> None:
    seen: set[tuple[int, str]] = set()
    for number, op in enumerate(history):
        if is_long_poll(op) and (op.process, long_key(op)) in seen:
            key = long_key(op)
            history[number] = with_reads(op, key, op.polls[key][2:])
            return
        seen.update((op.process, key) for key in op.polls)


def plant_nonmonotonic_poll(history: list[Op], rng: random.Random) -> None:
    number = pick(history, rng, is_long_poll)
    history.insert(number + 1, history[number])


def plant_int_poll_skip(history: list[Op], rng: random.Random) -> None:
    number = pick(history, rng, is_long_poll)
    op = history[number]
    reads = op.polls[long_key(op)]
    history[number] = with_reads(op, long_key(op), [*reads[:1], *reads[2:]])


def plant_int_nonmonotonic_poll(history: list[Op], rng: random.Random) -> None:
    number = pick(history, rng, is_long_poll)
    op = history[number]
    reads = op.polls[long_key(op)]
    history[number] = with_reads(op, long_key(op), [reads[1], reads[0], *reads[2:]])


def swap_values(history: list[Op], key: str, one: str, other: str) -> None:
    swapped = {one: other, other: one}
    everywhere(history, key, lambda reads: [Read(r.offset, swapped.get(r.value, r.value), r.epoch) for r in reads])
    for number, op in enumerate(history):
        if any(sent.value in swapped for sent in op.sends):
            history[number] = replace(op, sends=tuple(replace(sent, offset=None) for sent in op.sends))


def plant_nonmonotonic_send(history: list[Op], rng: random.Random) -> None:
    sends = [op for op in history if is_ok_send(op) and op.process == 0 and op.sends[0].key == "t:0"]
    one, other = sends[3].sends[-1].value, sends[9].sends[0].value
    swap_values(history, "t:0", one, other)


def plant_int_nonmonotonic_send(history: list[Op], rng: random.Random) -> None:
    number = pick(history, rng, lambda op: is_ok_send(op) and len(op.sends) > 2)
    sends = history[number].sends
    swap_values(history, sends[0].key, sends[0].value, sends[1].value)


def plant_int_send_skip(history: list[Op], rng: random.Random) -> None:
    sends = [op for op in history if is_ok_send(op) and len(op.sends) > 1 and op.sends[0].key == "t:0"]
    swap_values(history, "t:0", sends[3].sends[-1].value, sends[4].sends[0].value)


def plant_precommitted_read(history: list[Op], rng: random.Random) -> None:
    number = pick(history, rng, is_ok_send)
    op = history[number]
    key = op.sends[0].key
    found = {read.value: read for read in history[drain_of(history)].polls[key]}
    history[number] = replace(op, call=Call.TXN, polls={key: [found[op.sends[0].value]]})


def plant_write_cycle(history: list[Op], rng: random.Random) -> None:
    # Two clients, one after the other in time, whose records lie the other way round in the log.
    times = history[-1].invoke_ns
    log = [Read(1 << 30, "8-0", 99), Read((1 << 30) + 1, "7-0", 99)]
    sends = [
        Op(7, Call.SEND, Kind.OK, times - 40, times - 30, (Sent("t:0", "7-0"),)),
        Op(8, Call.SEND, Kind.OK, times - 20, times - 10, (Sent("t:0", "8-0"),)),
    ]
    history[-1:-1] = sends
    op = history[-1]
    history[-1] = with_reads(op, "t:0", [*op.polls["t:0"], *log])


def plant_write_read_cycle(history: list[Op], rng: random.Random) -> None:
    # A poll that had ended before the send of what it returned began.
    drain = history[-1]
    last = drain.polls["t:0"][-1]
    number = next(n for n, op in enumerate(history) if any(sent.value == last.value for sent in op.sends))
    op = history[number]
    early = Op(50, Call.POLL, Kind.OK, op.invoke_ns - 3, op.invoke_ns - 2, polls={"t:0": [last]})
    history.insert(number, early)


def plant_consumed_twice(history: list[Op], rng: random.Random) -> None:
    number = pick(history, rng, is_long_poll)
    op = history[number]
    times = history[-1].complete_ns
    subscribed = Op(60, Call.SUBSCRIBE, Kind.OK, times + 1, times + 2, assigned=tuple(op.polls))
    poll = replace(op, process=60, invoke_ns=times + 3, complete_ns=times + 4, watermarks={})
    history += [subscribed, poll, replace(poll, rebalanced=tuple(op.polls))]


def plant_phantom(history: list[Op], rng: random.Random) -> None:
    op = history[-1]
    reads = op.polls["t:0"]
    history[-1] = with_reads(op, "t:0", [*reads, Read(reads[-1].offset + 1, "nobody-1", reads[-1].epoch)])


def plant_watermark_regress(history: list[Op], rng: random.Random) -> None:
    number = pick(history, rng, is_long_poll)
    op = history[number]
    key = long_key(op)
    history[number] = replace(op, watermarks={**op.watermarks, key: op.polls[key][-1].offset})


def plant_epoch_regress(history: list[Op], rng: random.Random) -> None:
    op = history[-1]
    reads = list(op.polls["t:0"])
    reads[-1] = Read(reads[-1].offset, reads[-1].value, -1)
    reads[-2] = Read(reads[-2].offset, reads[-2].value, 1 << 20)
    reads.append(Read(reads[-1].offset + 1, reads[0].value, 3))
    history[-1] = with_reads(op, "t:0", reads)


def group_of_two(history: list[Op]) -> tuple[int, list[Op]]:
    """Two members, one after the other, that commit what they read of t:0; when they end."""
    at = history[-1].complete_ns
    reads = history[-1].polls["t:0"]
    half = len(reads) // 2
    found = []
    for process, part, own_ns in ((70, reads[:half], at + 10), (71, reads[half:], at + 110)):
        offset = part[-1].offset + 1
        found += [
            Op(process, Call.OWN, Kind.OK, own_ns, own_ns + 90, assigned=("t:0",), group="g"),
            Op(process, Call.POLL, Kind.OK, own_ns + 10, own_ns + 20, polls={"t:0": part}),
            Op(process, Call.COMMIT, Kind.OK, own_ns + 30, own_ns + 40, commits={"t:0": offset}, group="g"),
        ]
    return at + 200, found


def plant_commit_regress(history: list[Op], rng: random.Random) -> None:
    _, ops = group_of_two(history)
    if rng.random() < 0.5:
        ops[5] = replace(ops[5], commits={"t:0": 1})
    else:  # the first member's commit counts although it has the partition no more
        ops[2] = replace(ops[2], invoke_ns=ops[3].invoke_ns + 50, complete_ns=ops[3].invoke_ns + 60)
    history += ops


def plant_double_owner(history: list[Op], rng: random.Random) -> None:
    _, ops = group_of_two(history)
    if rng.random() < 0.5:
        ops[0] = replace(ops[0], complete_ns=ops[3].invoke_ns + 1)
    else:  # it was thrown out and knows not when: its commit says that it still had it
        ops[0] = replace(ops[0], complete_ns=ops[3].invoke_ns + 80, kind=Kind.INFO)
        ops[2] = replace(ops[2], invoke_ns=ops[3].invoke_ns + 50, complete_ns=ops[3].invoke_ns + 60)
    history += ops


PLANTS: dict[Anomaly, Callable[[list[Op], random.Random], None]] = {
    Anomaly.INCONSISTENT_OFFSETS: plant_inconsistent_offsets,
    Anomaly.DUPLICATE: plant_duplicate,
    Anomaly.ABORTED_READ: plant_aborted_read,
    Anomaly.LOST_WRITE: plant_lost_write,
    Anomaly.UNSEEN: plant_unseen,
    Anomaly.POLL_SKIP: plant_poll_skip,
    Anomaly.NONMONOTONIC_POLL: plant_nonmonotonic_poll,
    Anomaly.INT_POLL_SKIP: plant_int_poll_skip,
    Anomaly.INT_NONMONOTONIC_POLL: plant_int_nonmonotonic_poll,
    Anomaly.NONMONOTONIC_SEND: plant_nonmonotonic_send,
    Anomaly.INT_NONMONOTONIC_SEND: plant_int_nonmonotonic_send,
    Anomaly.INT_SEND_SKIP: plant_int_send_skip,
    Anomaly.PRECOMMITTED_READ: plant_precommitted_read,
    Anomaly.WRITE_CYCLE: plant_write_cycle,
    Anomaly.WRITE_READ_CYCLE: plant_write_read_cycle,
    Anomaly.CONSUMED_TWICE: plant_consumed_twice,
    Anomaly.PHANTOM: plant_phantom,
    Anomaly.WATERMARK_REGRESS: plant_watermark_regress,
    Anomaly.EPOCH_REGRESS: plant_epoch_regress,
    Anomaly.COMMIT_REGRESS: plant_commit_regress,
    Anomaly.DOUBLE_OWNER: plant_double_owner,
}


def test_every_anomaly_has_a_plant() -> None:
    assert set(PLANTS) == set(Anomaly)


def test_a_group_that_hands_over_in_order_has_no_finding() -> None:
    history = correct(1)
    history += group_of_two(history)[1]
    assert check(history).is_sound, check(history)


def test_a_member_that_was_thrown_out_and_commits_no_more_is_no_second_owner() -> None:
    history = correct(2)
    _, ops = group_of_two(history)
    ops[0] = replace(ops[0], complete_ns=ops[3].invoke_ns + 80, kind=Kind.INFO)
    failed = replace(ops[2], invoke_ns=ops[3].invoke_ns + 50, complete_ns=ops[3].invoke_ns + 60, kind=Kind.FAIL)
    assert check([*history, *ops, failed]).is_sound


def test_a_member_that_begins_before_what_was_committed_is_found() -> None:
    history = correct(3)
    _, ops = group_of_two(history)
    ops[4] = replace(ops[4], polls={"t:0": ops[1].polls["t:0"] + ops[4].polls["t:0"]})
    assert check([*history, *ops]).violations == {Anomaly.COMMIT_REGRESS: 1}


@pytest.mark.parametrize("seed", range(20))
def test_t01_a_correct_history_has_no_finding(seed: int) -> None:
    report = check(correct(seed), Contract(is_atomic=True))
    assert not report.counts, f"seed {seed}: {report}"
    assert report.read_count > RECORDS * 0.9


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("anomaly", list(Anomaly), ids=lambda anomaly: anomaly.value)
def test_t01_a_planted_anomaly_is_found(anomaly: Anomaly, seed: int) -> None:
    history = correct(100 + seed)
    PLANTS[anomaly](history, random.Random(seed))
    report = check(history, Contract(is_atomic=True))
    assert report.counts.get(anomaly), f"seed {seed}: {report}"
    assert report.examples[anomaly]
    assert not report.is_sound


def test_what_the_contract_allows_is_counted_and_no_violation() -> None:
    history = correct(7)
    PLANTS[Anomaly.DUPLICATE](history, random.Random(7))
    report = check(history, Contract(is_idempotent=False))
    assert report.counts[Anomaly.DUPLICATE]
    assert Anomaly.DUPLICATE not in report.violations


def test_a_stale_read_shows_as_lag() -> None:
    sent = Op(1, Call.SEND, Kind.OK, 0, 10, (Sent("k", "1-0", 0), Sent("k", "1-1", 1)))
    poll = Op(2, Call.POLL, Kind.OK, 1_000, 1_001, polls={"k": [Read(0, "1-0")]})
    rest = Op(2, Call.POLL, Kind.OK, 1_002, 1_003, polls={"k": [Read(1, "1-1")]})
    assert check([sent, poll, rest]).worst_lag_ns == 990


def test_a_history_is_the_same_after_a_file(tmp_path: Path) -> None:
    history = correct(3, 200)
    save(history, tmp_path / "history.jsonl")
    assert list(load(tmp_path / "history.jsonl")) == history


def test_the_counting_checker_tells_losses_apart() -> None:
    checker = CounterChecker()
    for counter in range(100):
        checker.acknowledged("p", "t:0", counter)
    for counter in range(100):
        if counter not in (0, 50, 51, 99):
            checker.read("p", "t:0", counter)
    summary = checker.summary()
    assert (summary.lost.prefix, summary.lost.middle, summary.lost.postfix) == (1, 2, 1)
    assert (summary.acknowledged, summary.read, summary.duplicated, summary.reordered) == (100, 96, 0, 0)
    assert not summary.is_sound
    assert any("p-50" in example for example in summary.examples)


def test_the_counting_checker_sees_what_came_twice_or_too_late() -> None:
    checker = CounterChecker()
    for counter in (0, 1, 3, 2, 2, 4):
        checker.read("p", "t:0", counter)
    summary = checker.summary()
    assert (summary.duplicated, summary.reordered, summary.unacknowledged_read) == (1, 1, 5)


@pytest.mark.parametrize("seed", range(20))
def test_the_counting_checker_agrees_with_sets(seed: int) -> None:
    rng = random.Random(seed)
    checker = CounterChecker()
    acknowledged = {rng.randrange(300) for _ in range(200)}
    read: list[int] = [rng.randrange(300) for _ in range(250)]
    for counter in acknowledged:
        checker.acknowledged("p", "k", counter)
    for counter in read:
        checker.read("p", "k", counter)
    summary = checker.summary()
    assert summary.lost.total == len(acknowledged - set(read)), f"seed {seed}"
    assert summary.duplicated == len(read) - len(set(read))
    assert summary.read == len(set(read))
    assert summary.unacknowledged_read == len(set(read) - acknowledged)
