"""What a benchmark leaves: one JSON document with the command, the machine, the figures, tables and plots.

The structs below are the schema: `load_results` refuses a document that has other fields, or the right ones with other
types. A figure's `value` is the best round's for rates and CPU times (noise only ever takes away) and the median
round's for latencies; `median`, `low` and `high` say how the rounds spread.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from zbroker import __version__
from zbroker.doctor.host import file_system_of

SCHEMA: Final = 1
Cell = str | int | float | None
_SHOWN_DIGITS: Final = 3


class Spread(Struct, frozen=True):
    """How the rounds of one contender came out."""

    best: float
    median: float
    low: float
    high: float
    rounds: int


class Figure(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of a table of figures. `target` is for the ratio where there is one, else for the value: ">= 0.35"."""

    what: str
    value: float
    unit: str
    beside: str = ""
    ratio: float | Literal[""] = ""
    target: str = ""
    met: Literal["", "met", "missed"] = ""
    median: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int | None = None


class Table(Struct, kw_only=True, forbid_unknown_fields=True):
    """Rows of one shape, for what is no single figure."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]


class Series(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of a plot. `low` and `high` are the spread at each point; a limit is what the bare hardware does."""

    name: str
    x: list[float]
    y: list[float]
    low: list[float] = []
    high: list[float] = []
    is_limit: bool = False

    def limit(self) -> Series:
        """The same as a limit, without its spread."""
        return Series(name=self.name, x=self.x, y=self.y, is_limit=True)


class Plot(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Lines over one axis."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: list[Series]
    is_log_x: bool = False
    is_log_y: bool = False


class Machine(Struct, kw_only=True, forbid_unknown_fields=True):
    """What it was measured on, and by which code."""

    cpu: str
    cores: int
    kernel: str
    python: str
    commit: str
    time: str
    load_average_1min: float
    memory_mib: int = 0
    zbroker: str = ""


class Results(Struct, kw_only=True, forbid_unknown_fields=True):
    """One run of one benchmark. `file_systems` says where the data lay, `seed` what drew the values."""

    command: str
    machine: Machine
    about: str
    rows: list[Figure]
    schema: int = SCHEMA
    seed: int | None = None
    file_systems: dict[str, str] = {}
    tables: list[Table] = []
    plots: list[Plot] = []


class BadResultsError(ValueError):
    """A file is no results document of this version."""


def figure(
    what: str,
    value: float,
    unit: str,
    beside: str = "",
    ratio: float | None = None,
    target: str = "",
    spread: Spread | None = None,
) -> Figure:
    """A figure with its verdict, rounded to what can be read. `spread` is in the same unit as `value`."""
    found = Figure(
        what=what,
        value=round(value, _SHOWN_DIGITS),
        unit=unit,
        beside=beside,
        ratio=round(ratio, _SHOWN_DIGITS) if ratio is not None else "",
        target=target,
        met=verdict(value if ratio is None else ratio, target),
    )
    if spread is not None:
        found.median, found.low, found.high = (
            round(one, _SHOWN_DIGITS) for one in (spread.median, spread.low, spread.high)
        )
        found.rounds = spread.rounds
    return found


def verdict(number: float, target: str) -> Literal["", "met", "missed"]:
    """Whether a figure keeps to its target: "met", "missed", or nothing where there is none."""
    if not target:
        return ""
    sign, bound = target.split()[:2]
    limit = float(bound)
    is_met = {"<": number < limit, "<=": number <= limit, ">": number > limit, ">=": number >= limit}[sign]
    return "met" if is_met else "missed"


def results(
    command: str,
    rows: Sequence[Figure],
    *,
    about: str,
    seed: int | None = None,
    directories: Mapping[str, Path] | None = None,
    tables: Sequence[Table] = (),
    plots: Sequence[Plot] = (),
) -> Results:
    """The document of a run that has just ended on this machine. `directories`: where data lay, by a word for it."""
    return Results(
        command=command,
        machine=this_machine(),
        about=about,
        rows=list(rows),
        seed=seed,
        file_systems={name: file_system_of(path.resolve()) for name, path in (directories or {}).items()},
        tables=list(tables),
        plots=list(plots),
    )


def save_results(found: Results, path: Path) -> None:
    """Write a document that people can read as well; the file is there as a whole when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    beside.rename(path)


def load_results(path: Path) -> Results:
    """Read a document and hold it to the schema. Raises BadResultsError, OSError."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Results)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadResultsError(f"{path} holds no results of zbroker bench (--output keeps them): {error}") from error
    if found.schema > SCHEMA:
        raise BadResultsError(f"{path}: schema {found.schema}, this zbroker reads {SCHEMA}")
    for table in found.tables:
        if any(len(row) != len(table.columns) for row in table.rows):
            raise BadResultsError(f"{path}: a row of {table.title!r} has not one cell for each column")
    for line in (series for plot in found.plots for series in plot.series):
        if len({len(line.x), len(line.y), len(line.low or line.x), len(line.high or line.x)}) != 1:
            raise BadResultsError(f"{path}: {line.name!r} has not one y for each x")
    return found


def this_machine() -> Machine:
    """This host and this code, now."""
    text = Path("/proc/cpuinfo").read_text()
    names = (line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name"))
    return Machine(
        cpu=next(names, platform.processor()),
        cores=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        python=platform.python_version(),
        commit=_commit(),
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        load_average_1min=round(os.getloadavg()[0], 2),
        memory_mib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        zbroker=__version__,
    )


def _commit() -> str:
    """The checkout's commit, with a mark when there are changes; nothing for an installed package."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    return commit + ("+changes" if commit and _git("status", "--porcelain", "-uno") else "")


def _git(*words: str) -> str:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
