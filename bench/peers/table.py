"""From what was measured to rows with targets, and to one matrix of all systems.

Rates and CPU times are the best round's, because noise only ever takes away; all else is the median round's. Where a
peer has several ways to do a thing, zbroker stands beside the fastest of them, but for the calls that are made for each
record, which stand beside the peer's call of that kind. The matrix has the median and, in brackets, the least and the
greatest round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

from bench.harness import Row, row
from bench.peers.measures import OWN_TOOL, Measured

Matrix = list[dict[str, str]]


class _Wanted(NamedTuple):
    """A ratio: zbroker's way beside ways of a peer. Without `peers` it is made for all of them, without a target."""

    what: str
    key: str
    shown: str
    unit: str
    scale: float
    zbroker: str
    targets: dict[str, str]
    per_record: bool = False


_KAFKA_JAVA = "kafka's Java tool"
_RATE, _MB, _CPU = "records_per_s", "mb_per_s", "cpu_us"
_WANTED = (
    _Wanted("produce 100 B", _RATE, "produce 100 B, send", "M/s", 1e6, "send", {"kafka": ">= 2"}, True),
    _Wanted("produce 100 B", _RATE, "produce 100 B, sender()", "M/s", 1e6, "sender", {"kafka": ">= 4"}, True),
    _Wanted("produce 100 B", _RATE, "produce 100 B, send_many", "M/s", 1e6, "send_many", {"kafka": ">= 10"}),
    _Wanted("produce 1 KiB", _MB, "produce 1 KiB, send_many", "MB/s", 1, "send_many", {"kafka": ">= 5"}),
    _Wanted(
        "consume 100 B", _RATE, "consume 100 B, records", "M/s", 1e6, "records",
        {"kafka": ">= 15", _KAFKA_JAVA: ">= 2"},
    ),
    _Wanted("consume 100 B", _RATE, "consume 100 B, views", "M/s", 1e6, "views", {_KAFKA_JAVA: ">= 40"}),
    _Wanted("acknowledge", "p50_us", "acknowledge one, p50", "us", 1, "", {"kafka": "<= 0.1", "redis": "<= 0.5"}),
    _Wanted("acknowledge", "p99_us", "acknowledge one, p99", "us", 1, "", {"kafka": "<= 0.1", "redis": "<= 0.5"}),
    _Wanted("end to end", "p50_us", "end to end, p50", "us", 1, "", {"": "< 60", "kafka": "<= 0.1"}),
    _Wanted("end to end", "p99_us", "end to end, p99", "us", 1, "", {"": "< 200", "kafka": "<= 0.1"}),
    _Wanted("start", "s", "start to the first acknowledged record", "s", 1, "", {"kafka": "<= 0.2"}),
    _Wanted("memory, idle", "pss_mib", "memory of all processes, idle", "MiB", 1, "", {"kafka": "<= 0.333"}),
    _Wanted("memory, after load", "pss_mib", "memory of all processes, after load", "MiB", 1, "", {}),
    _Wanted("memory, idle", "idle_cpu_percent", "CPU of an idle broker", "% of a core", 1, "", {}),
    _Wanted("CPU, batch path", _CPU, "CPU of a record, all processes, batch path", "us", 1, "", {"kafka": "<= 0.333"}),
    _Wanted("failover", "gap_ms", "no acknowledgement after kill -9 of the leader", "ms", 1, "", {"kafka": "<= 0.01"}),
)  # fmt: skip
_BEST: dict[str, Callable[[list[float]], float]] = {_RATE: max, _MB: max, _CPU: min}


class _Side(NamedTuple):
    system: str
    way: str
    figures: list[float]

    def best(self, key: str) -> float:
        """The figure that stands for the rounds."""
        return _BEST.get(key, statistics.median)(self.figures)


def rows_of(measured: list[Measured]) -> list[Row]:
    """A row for each measure of zbroker and each peer that was measured, with the target where there is one."""
    measured = [*measured, *_cpu_of_batch_paths(measured)]
    rows: list[Row] = []
    for wanted in _WANTED:
        sides = _sides(measured, wanted.what, wanted.key)
        own = [side for side in sides if side.system == "zbroker" and side.way == wanted.zbroker]
        if not own:
            continue
        value = own[0].best(wanted.key)
        if "" in wanted.targets:
            rows.append(row(wanted.shown, value / wanted.scale, wanted.unit, target=wanted.targets[""]))
        peers = [side for side in sides if side.system != "zbroker"]
        for name, side in _opponents(peers, wanted):
            other = side.best(wanted.key)
            beside = f"{name} {side.way}".strip() + f", {other / wanted.scale:,.3g} {wanted.unit}"
            target = wanted.targets.get(name, "")
            ratio = value / other if other else None
            rows.append(row(wanted.shown, value / wanted.scale, wanted.unit, beside, ratio, target if other else ""))
        if not peers:
            rows.append(row(wanted.shown, value / wanted.scale, wanted.unit))
    return rows


def _opponents(peers: list[_Side], wanted: _Wanted) -> list[tuple[str, _Side]]:
    """(name, side) of what zbroker stands beside: for each peer one, and Kafka's own tools."""
    found = []
    for system in dict.fromkeys(side.system for side in peers):
        ways = [side for side in peers if side.system == system and side.way != OWN_TOOL]
        if wanted.what == "failover":
            found += [(system if side is ways[0] else f"{system},", side) for side in ways]
        elif ways:
            is_rate = _BEST.get(wanted.key) is max
            chosen = ways[0] if wanted.per_record else (max if is_rate else min)(ways, key=lambda s: s.best(wanted.key))
            found.append((system, chosen))
        found += [
            (f"{system}'s Java tool", side._replace(way=""))
            for side in peers
            if side.system == system and side.way == OWN_TOOL
        ]
    return found


def _sides(measured: list[Measured], what: str, key: str) -> list[_Side]:
    return [
        _Side(one.system, one.way, [figures[key] for figures in one.rounds])
        for one in measured
        if one.what == what and all(key in figures for figures in one.rounds)
    ]


def _cpu_of_batch_paths(measured: list[Measured]) -> list[Measured]:
    """CPU time to produce a record by the batch call and to consume it by the cheapest way, of each system."""
    found = []
    for system in dict.fromkeys(one.system for one in measured):
        cheapest = []
        for what in ("produce 100 B", "consume 100 B"):
            sides = [side for side in _sides(measured, what, _CPU) if side.system == system]
            if sides:
                cheapest.append(min(side.best(_CPU) for side in sides))
        if len(cheapest) == 2:
            found.append(Measured("CPU, batch path", system, "", [{_CPU: sum(cheapest)}]))
    return found


def matrix_of(measured: list[Measured], systems: list[str]) -> Matrix:
    """One line for each measure and way, one cell for each system."""
    lines: Matrix = []
    shown = {(wanted.what, wanted.key): wanted for wanted in _WANTED}
    measured = [*measured, *_cpu_of_batch_paths(measured)]
    for (what, key), wanted in shown.items():
        title = wanted.what if wanted.zbroker else wanted.shown
        cells = dict.fromkeys(systems, "")
        for side in _sides(measured, what, key):
            if side.system not in cells:
                continue
            middle, least, most = (
                f"{pick(side.figures) / wanted.scale:,.3g}" for pick in (statistics.median, min, max)
            )
            cell = middle if least == most else f"{middle} ({least} to {most})"
            cells[side.system] += f"{'; ' if cells[side.system] else ''}{side.way}{': ' if side.way else ''}{cell}"
        if any(cells.values()):
            lines.append({"what": f"{title}, {wanted.unit}", **cells})
    return lines
