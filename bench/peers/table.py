"""From what was measured to rows with targets, to tables of all systems and of all rounds, and to plots.

Rates and CPU times are the best round's, because noise only ever takes away; all else is the median round's. Where a
peer has several ways to do a thing, zbroker stands beside the fastest of them, but for the calls that are made for each
record, which stand beside the peer's call of that kind. A row stands for Kafka, for each target, and for the strongest
of the other peers; the table of all systems has the rest.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

from bench.harness import Row, row, spread_of
from bench.peers.measures import DEFAULTS, OWN_TOOL, PERCENTILES, Measured
from zbroker.load.results import Cell, Plot, Series, Table


class _Wanted(NamedTuple):
    """Ratios: zbroker's way to do a thing beside the peers' ways; targets by peer, "" for zbroker's own figure."""

    what: str
    key: str
    shown: str
    unit: str
    scale: float
    zbroker: str
    targets: dict[str, str]
    per_record: bool = False


_JAVA = "kafka's Java tool"
_RECORDS = {"kafka": ">= 15", _JAVA: ">= 2"}
_RATE, _MB, _CPU = "records_per_s", "mb_per_s", "cpu_us"
_WANTED = (
    _Wanted("produce 100 B", _RATE, "produce 100 B, send", "M/s", 1e-6, "send", {"kafka": ">= 2"}, True),
    _Wanted("produce 100 B", _RATE, "produce 100 B, sender()", "M/s", 1e-6, "sender", {"kafka": ">= 4"}, True),
    _Wanted("produce 100 B", _RATE, "produce 100 B, send_many", "M/s", 1e-6, "send_many", {"kafka": ">= 10"}),
    _Wanted("produce 1 KiB", _MB, "produce 1 KiB, send_many", "MB/s", 1, "send_many", {"kafka": ">= 5"}),
    _Wanted(
        "consume 100 B", _RATE, "consume 100 B, records", "M/s", 1e-6, "records", {"kafka": ">= 15", _JAVA: ">= 2"}
    ),
    _Wanted("consume 100 B", _RATE, "consume 100 B, views", "M/s", 1e-6, "views", {_JAVA: ">= 40"}),
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
)
_BEST: dict[str, Callable[[list[float]], float]] = {_RATE: max, _MB: max, _CPU: min}


class _Side(NamedTuple):
    """One way of one system, its figures times the scale of the unit."""

    system: str
    way: str
    figures: list[float]
    key: str

    @property
    def value(self) -> float:
        """The figure that stands for the rounds."""
        return _BEST.get(self.key, statistics.median)(self.figures)


def rows_of(measured: list[Measured]) -> list[Row]:
    """The rows, in the order of the targets."""
    measured = [*measured, *_cpu_of_batch_paths(measured)]
    rows: list[Row] = []
    for wanted in _WANTED:
        sides = _sides(measured, wanted)
        own = next((side for side in sides if side.system == "zbroker" and side.way == wanted.zbroker), None)
        if own is None:
            continue
        opponents = _opponents([side for side in sides if side.system != "zbroker"], wanted)
        if "" in wanted.targets or not opponents:
            target = wanted.targets.get("", "")
            rows.append(row(wanted.shown, own.value, wanted.unit, target=target, spread=spread_of(own.figures)))
        for name, side in opponents:
            beside = f"{name}, {side.way}, ".replace(", , ", ", ") + f"{_shown(side.value)} {wanted.unit}"
            ratio = own.value / side.value if side.value else None
            target = wanted.targets.get(name, "") if side.value else ""
            rows.append(row(wanted.shown, own.value, wanted.unit, beside, ratio, target, spread=spread_of(own.figures)))
    return rows


def _opponents(peers: list[_Side], wanted: _Wanted) -> list[tuple[str, _Side]]:
    """(name, side) of what zbroker stands beside."""
    is_rate = _BEST.get(wanted.key) is max
    pick = max if is_rate else min
    found: list[tuple[str, _Side]] = []
    others: list[tuple[str, _Side]] = []
    for system in dict.fromkeys(side.system for side in peers):
        ways = [side for side in peers if side.system == system and side.way != OWN_TOOL]
        if wanted.what == "failover":
            found += [(system if side is ways[0] else f"{system} tuned", side) for side in ways]
        elif ways:
            chosen = ways[0] if wanted.per_record else pick(ways, key=lambda side: side.value)
            (found if system == "kafka" or system in wanted.targets else others).append((system, chosen))
            found += [(f"{system} untuned", side) for side in ways if side.way.endswith(DEFAULTS) and side != chosen]
        found += [
            (f"{system}'s Java tool", side._replace(way=""))
            for side in peers
            if side.system == system and side.way == OWN_TOOL
        ]
    return found + ([pick(others, key=lambda other: other[1].value)] if others else [])


def _sides(measured: list[Measured], wanted: _Wanted) -> list[_Side]:
    return [
        _Side(one.system, one.way, [figures[wanted.key] * wanted.scale for figures in one.rounds], wanted.key)
        for one in measured
        if one.what == wanted.what and all(wanted.key in figures for figures in one.rounds)
    ]


def _cpu_of_batch_paths(measured: list[Measured]) -> list[Measured]:
    """CPU time to produce a record and to consume it, each by the system's cheapest way."""
    found = []
    for system in dict.fromkeys(one.system for one in measured):
        spent_us = {what: _cpu_us(measured, what, system) for what in ("produce 100 B", "consume 100 B")}
        if all(spent_us.values()):
            total_us = sum(map(min, spent_us.values()))
            found.append(Measured("CPU, batch path", system, "", [{_CPU: total_us}]))
    return found


def _cpu_us(measured: list[Measured], what: str, system: str) -> list[float]:
    sides = [one for one in measured if (one.what, one.system) == (what, system)]
    return [figures[_CPU] for side in sides for figures in side.rounds if _CPU in figures]


def all_systems(measured: list[Measured], systems: list[str]) -> Table:
    """One line for each measure, one cell for each system: the median and, in brackets, the spread of each way."""
    lines: list[list[Cell]] = []
    measured = [*measured, *_cpu_of_batch_paths(measured)]
    for wanted in {(one.what, one.key): one for one in _WANTED}.values():
        cells = dict.fromkeys(systems, "")
        for side in _sides(measured, wanted):
            numbers = [_shown(pick(side.figures)) for pick in (statistics.median, min, max)]
            shown = numbers[0] if numbers[1] == numbers[2] else f"{numbers[0]} ({numbers[1]} to {numbers[2]})"
            cell = f"{side.way}: {shown}" if side.way else shown
            cells[side.system] = "; ".join(filter(None, (cells[side.system], cell)))
        if any(cells.values()):
            lines.append([f"{wanted.what if wanted.zbroker else wanted.shown}, {wanted.unit}", *cells.values()])
    return Table(title="All systems: median (lowest to highest round)", columns=["what", *systems], rows=lines)


def _shown(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def delay_plots(measured: list[Measured]) -> list[Plot]:
    """Delay by percentile, of the median round at each."""
    plots = []
    for what, title in (
        ("acknowledge", "Produce one record and wait for its acknowledgement"),
        ("end to end", "From the time a record is due to a consumer that slept"),
    ):
        series = [
            Series(
                name=one.system,
                x=[float(percent) for percent in PERCENTILES],
                y=[statistics.median(figures[f"p{percent:g}_us"] for figures in one.rounds) for percent in PERCENTILES],
            )
            for one in measured
            if one.what == what
        ]
        if series:
            name = what.replace(" ", "_")
            plots.append(Plot(name=name, title=title, x_label="percentile", y_label="us", series=series, is_log_y=True))
    return plots
