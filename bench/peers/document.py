"""The results of a comparison as one document, and the figures of its rounds read back from it.

A part that is measured again takes the place of that part's rounds; the rest stays. Each line says when, and with which
code, it was measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from bench.peers.measures import Measured
from bench.peers.system import System
from bench.peers.table import all_systems, delay_plots, rows_of
from zbroker.load.results import Cell, Results, Table, results, this_machine

ROUNDS, SYSTEMS, MISSING = "Rounds", "Systems and settings", "Missing systems"
_COLUMNS = ["part", "what", "system", "way", "figure", "rounds", "measured"]


class Line(NamedTuple):
    """One figure of one way of one system, round by round."""

    part: str
    what: str
    system: str
    way: str
    figure: str
    rounds: str
    measured: str


def lines_of(part: str, measured: list[Measured]) -> list[Line]:
    """The lines of a part that was measured just now."""
    machine = this_machine()
    when = f"{machine.time} {machine.commit}"
    return [
        Line(part, one.what, one.system, one.way, key, " ".join(f"{found[key]:.6g}" for found in one.rounds), when)
        for one in measured
        for key in one.rounds[0]
    ]


def measured_of(lines: list[Line]) -> list[Measured]:
    """What `lines_of` was given."""
    found: dict[tuple[str, str, str], Measured] = {}
    for line in lines:
        values = [float(word) for word in line.rounds.split()]
        key = (line.what, line.system, line.way)
        one = found.setdefault(key, Measured(*key, [{} for _ in values]))
        for figures, value in zip(one.rounds, values, strict=True):
            figures[line.figure] = value
    return list(found.values())


def lines_in(found: Results) -> list[Line]:
    """The lines of a document."""
    return [Line(*map(str, cells)) for table in found.tables if table.title == ROUNDS for cells in table.rows]


def join(known: Results | None, lines: list[Line], command: str) -> tuple[list[Line], str]:
    """What was measured just now by `command`, with those parts of a document that were not; and the commands that
    made them."""
    parts = {line.part for line in lines}
    kept = [line for line in lines_in(known) if line.part not in parts] if known is not None else []
    if known is None or not kept:
        return lines, command
    commands = [one for one in known.command.split("; ") if one != command]
    return kept + lines, "; ".join([*commands, command])


def document(
    lines: list[Line],
    classes: list[type[System]],
    missing: dict[str, tuple[str, str]],
    command: str,
    about: str,
    directory: Path,
) -> Results:
    """The whole document. `missing`: what was not found, and the command that installs it, by system."""
    measured = measured_of(lines)
    settings: list[list[Cell]] = []
    for kind in classes:
        settings += [[kind.name, key, value] for key, value in (("version", kind.check()), *kind.settings.items())]
    absent: list[list[Cell]] = [[name, *why] for name, why in missing.items()]
    tables = [
        all_systems(measured, list(dict.fromkeys(one.system for one in measured))),
        Table(title=SYSTEMS, columns=["system", "what", "setting"], rows=settings),
        Table(title=MISSING, columns=["system", "what", "command"], rows=absent),
        Table(title=ROUNDS, columns=_COLUMNS, rows=[[*line] for line in lines]),
    ]  # fmt: skip
    plots = delay_plots(measured)
    return results(command, rows_of(measured), about=about, directories={"data": directory}, tables=tables, plots=plots)
