"""Results as one page: figures, tables and plots of any number of runs, in one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Final

from zbroker.load.plot import svg
from zbroker.load.results import Cell, Figure, Results

STYLE: Final = """
:root{color-scheme:light dark;--ink:#1f2328;--soft:#59636e;--line:#d1d9e0;--page:#fff;--met:#1a7f37;--missed:#b3392f}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--line:#3d444d;--page:#0d1117;--met:#6bc46d;
--missed:#f47067}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:60rem;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2.5rem;border-top:1px solid var(--line);padding-top:1rem}
h3{font-size:1rem}p.about{color:var(--soft)}code{font-size:.9em}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem}th,td{padding:.25rem .6rem;text-align:left;
border-bottom:1px solid var(--line)}td.number{text-align:right;font-variant-numeric:tabular-nums}
td.met{color:var(--met)}td.missed{color:var(--missed)}svg{max-width:100%;height:auto;margin:1rem 0}
"""
_COLUMNS: Final = {
    "what": "what",
    "best": "value",
    "median": "median",
    "lowest": "low",
    "highest": "high",
    "unit": "unit",
    "beside": "beside",
    "ratio": "ratio",
    "target": "target",
    "": "met",
}


def page(found: Sequence[Results], title: str = "zbroker, measured") -> str:
    """The page as text."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>",
    ]
    for one in found:
        parts += _section(one)
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _section(one: Results) -> Iterator[str]:
    machine = one.machine
    yield f"<h2><code>{escape(one.command)}</code></h2>"
    where = ", ".join(f"{name} on {kind or 'an unknown file system'}" for name, kind in one.file_systems.items())
    said = [
        one.about,
        where,
        f"{machine.cores} cores ({machine.cpu}), Linux {machine.kernel}, Python {machine.python}",
        f"commit {machine.commit or machine.zbroker}, {machine.time}",
        f"load average {machine.load_average_1min:g}",
        f"seed {one.seed}" if one.seed is not None else "",
    ]
    yield f'<p class="about">{escape("; ".join(filter(None, said)))}</p>'
    if one.rows:
        yield from _figures(one.rows)
    for plot in one.plots:
        yield svg(plot)
    for table in one.tables:
        yield f"<h3>{escape(table.title)}</h3>"
        yield from _table(table.columns, table.rows)


def _figures(rows: Sequence[Figure]) -> Iterator[str]:
    used = {
        title: name for title, name in _COLUMNS.items() if any(getattr(one, name) not in (None, "") for one in rows)
    }
    yield from _table(list(used), [[getattr(one, name) for name in used.values()] for one in rows])


def _table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Iterator[str]:
    yield '<div class="wide"><table><tr>' + "".join(f"<th>{escape(one)}</th>" for one in columns) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(map(_cell, row)) + "</tr>"
    yield "</table></div>"


def _cell(value: Cell) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, str):
        kind = f' class="{value}"' if value in ("met", "missed") else ""
        return f"<td{kind}>{escape(value)}</td>"
    shown = f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:,.4g}"
    return f'<td class="number">{shown}</td>'
