"""What a history proves against a consumer group: two owners of one partition, and commits that went back.

A member's OWN says from when to when it had a partition: `ok` when it knows the end (it was told to give it up, it
left, it was killed), `info` when it was thrown out and heard of it later. Of such a one the last commit that was
reported done proves how long it had the partition at least. A COMMIT that is `ok` was reported done; members of these
histories commit what they have read, and never go back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from zbroker.check.findings import Anomaly, Report
from zbroker.check.history import Call, Kind, Op

Place = tuple[str, str]  # group and key


def check_groups(history: Sequence[Op], report: Report) -> None:
    """Add what is found to the report."""
    commits, owns = _by_place(history)
    for place, of_place in owns.items():
        _check_owners(place, of_place, commits.get(place, []), report)
    for place, made in commits.items():
        _check_commits(place, made, owns.get(place, []), report)
    _check_starts(history, commits, owns, report)


def _by_place(history: Iterable[Op]) -> tuple[dict[Place, list[Op]], dict[Place, list[Op]]]:
    commits: dict[Place, list[Op]] = defaultdict(list)
    owns: dict[Place, list[Op]] = defaultdict(list)
    for op in history:
        if op.call is Call.COMMIT and op.kind is Kind.OK:
            for key in op.commits:
                commits[op.group, key].append(op)
        elif op.call is Call.OWN:
            for key in op.assigned:
                owns[op.group, key].append(op)
    for of_place in (*commits.values(), *owns.values()):
        of_place.sort(key=lambda op: op.invoke_ns)
    return commits, owns


def _sure_end_ns(own: Op, commits: Iterable[Op]) -> int:
    """Until when the member had the partition for certain."""
    if own.kind is Kind.OK:
        return own.complete_ns
    inside = [
        op.invoke_ns
        for op in commits
        if op.process == own.process and own.invoke_ns <= op.invoke_ns and op.complete_ns <= own.complete_ns
    ]
    return max(inside, default=own.invoke_ns)


def _check_owners(place: Place, owns: Sequence[Op], commits: Sequence[Op], report: Report) -> None:
    group, key = place
    longest_ns, owner = -1, -1
    for own in owns:
        if own.invoke_ns < longest_ns and own.process != owner:
            report.add(Anomaly.DOUBLE_OWNER, f"{group} {key}: client {own.process} while client {owner} had it")
        end_ns = _sure_end_ns(own, commits)
        if end_ns > longest_ns:
            longest_ns, owner = end_ns, own.process


def _check_commits(place: Place, commits: Sequence[Op], owns: Sequence[Op], report: Report) -> None:
    group, key = place
    most, by = -1, -1
    ended: list[tuple[int, int, int]] = sorted((op.complete_ns, op.commits[key], op.process) for op in commits)
    index = 0
    for op in commits:
        while index < len(ended) and ended[index][0] < op.invoke_ns:
            if ended[index][1] > most:
                most, by = ended[index][1:]
            index += 1
        if op.commits[key] < most:
            what = f"{group} {key}: client {op.process} committed {op.commits[key]} after client {by} had {most}"
            report.add(Anomaly.COMMIT_REGRESS, what)
    for before, own in pairwise(owns):
        # Whoever commits after another has been given the partition has an old generation.
        late = [op for op in commits if op.process == before.process != own.process and op.invoke_ns > own.invoke_ns]
        again = [one.invoke_ns for one in owns if one.process == before.process and one.invoke_ns > own.invoke_ns]
        until_ns = min(again, default=1 << 63)
        for op in late:
            if op.invoke_ns < until_ns:
                what = f"{group} {key}: client {op.process} committed when client {own.process} had it"
                report.add(Anomaly.COMMIT_REGRESS, what)


def _check_starts(
    history: Sequence[Op], commits: dict[Place, list[Op]], owns: dict[Place, list[Op]], report: Report
) -> None:
    """A member begins where its predecessor had committed, or behind it."""
    polls: dict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)
    for op in history:
        for key, reads in op.polls.items():
            if reads and op.kind is Kind.OK:
                polls[op.process, key].append((op.invoke_ns, reads[0].offset))
    for (group, key), of_place in owns.items():
        for own in of_place:
            # A poll may have begun before the partition came: the listener is called inside it.
            found = [offset for ns, offset in polls[own.process, key] if own.invoke_ns <= ns <= own.complete_ns]
            made = [op for op in commits.get((group, key), []) if op.complete_ns < own.invoke_ns]
            most = max((op.commits[key] for op in made), default=0)
            if found and found[0] < most:
                what = f"{group} {key}: client {own.process} began at {found[0]}, {most} was committed"
                report.add(Anomaly.COMMIT_REGRESS, what)
