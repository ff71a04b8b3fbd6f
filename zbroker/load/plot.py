"""Plots as SVG, made from `results.Plot` alone: readable on light and on dark, in a page and as a file of its own.

The same plot gives the same bytes. Limits (what the bare hardware does) are dashed; a spread is a bar at its point.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from zbroker.load.results import Plot, Series

WIDTH: Final = 680
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 40, 56
PLOT_HEIGHT: Final = 270
LEGEND_LINE: Final = 18
LEGEND_CHARACTERS: Final = 36  # that fit into half of the width
LIGHT: Final = ("#1f6fb4", "#c9510c", "#2f8132", "#8250df", "#b3392f", "#0e7c86", "#8a6d00", "#6e7781")
DARK: Final = ("#6cb6ff", "#f69d50", "#6bc46d", "#dcbdfb", "#f47067", "#5cc8d2", "#e0c04c", "#adbac7")
TICKS_MAX: Final = 8

STYLE: Final = (
    ".zb{--ink:#1f2328;--soft:#59636e;--line:#d1d9e0;"
    + "".join(f"--c{number}:{color};" for number, color in enumerate(LIGHT))
    + "}@media(prefers-color-scheme:dark){.zb{--ink:#e6edf3;--soft:#9198a1;--line:#3d444d;"
    + "".join(f"--c{number}:{color};" for number, color in enumerate(DARK))
    + "}}.zb text{font:12px system-ui,sans-serif;fill:var(--soft)}.zb .title{font-size:14px;font-weight:600;"
    "fill:var(--ink)}.zb .grid{stroke:var(--line);stroke-width:1}"
)


class _Axis:
    """Maps values to pixels; `low` and `high` are the ends of the axis."""

    def __init__(self, values: Sequence[float], pixels: tuple[float, float], *, is_log: bool, from_zero: bool) -> None:
        self.is_log = is_log
        self._pixels = pixels
        low, high = min(values), max(values)
        if is_log:
            self.low, self.high = low, high if high > low else low * 10
            self.ticks = [tick for tick in _log_ticks(self.low, self.high) if self.low <= tick <= self.high]
        else:
            low = 0.0 if from_zero and low >= 0 else low
            high = high if high > low else low + 1
            step = _step((high - low) / (TICKS_MAX - 2))
            self.low, self.high = math.floor(low / step) * step, math.ceil(high / step - 1e-9) * step
            count = round((self.high - self.low) / step)
            self.ticks = [round(self.low + number * step, 10) for number in range(count + 1)]

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, here = self.low, self.high, value
        if self.is_log:
            low, high, here = math.log(low), math.log(high), math.log(value)
        first, last = self._pixels
        return first + (here - low) / (high - low) * (last - first)


def _step(rough: float) -> float:
    size = 10.0 ** math.floor(math.log10(rough))
    return next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999_999)


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**decade for decade in decades for factor in factors]
        inside = [tick for tick in found if low <= tick <= high]
        if len(inside) <= TICKS_MAX:
            return inside or found
    return [10.0**decade for decade in decades if not decade % 2]


def number_text(value: float) -> str:
    """A number for an axis: 0.05, 12, 1.5k, 20M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:.4g}"


def svg(plot: Plot) -> str:
    """The plot as one SVG element, with its own style. Points that a log axis cannot show are left out."""
    lines = [(series, list(_points(plot, series))) for series in plot.series]
    lines = [(series, points) for series, points in lines if points]
    assert lines, f"{plot.name}: nothing to draw"
    bottom = TOP + PLOT_HEIGHT
    x_values = sorted({x for _, points in lines for x, _, _, _ in points})
    x_axis = _Axis(x_values, (LEFT, WIDTH - RIGHT), is_log=plot.is_log_x, from_zero=False)
    if plot.is_log_x and len(x_values) <= TICKS_MAX:
        x_axis.ticks = list(x_values)
    y_values = [value for _, points in lines for _, *values in points for value in values]
    y_axis = _Axis(_padded(y_values, plot.is_log_y), (bottom, TOP), is_log=plot.is_log_y, from_zero=True)
    columns = 1 if max(len(series.name) for series, _ in lines) > LEGEND_CHARACTERS else 2
    height = bottom + BOTTOM + LEGEND_LINE * math.ceil(len(lines) / columns)
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="zb" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-label="{escape(plot.title)}"><style>{STYLE}</style>',
        f'<text class="title" x="{LEFT}" y="20">{escape(plot.title)}</text>',
        *_grid(plot, x_axis, y_axis, bottom),
    ]
    for number, (series, points) in enumerate(lines):
        body += _line(series, points, x_axis, y_axis, number)
    body += _legend([series for series, _ in lines], bottom + BOTTOM, columns)
    return "\n".join([*body, "</svg>"]) + "\n"


def _points(plot: Plot, series: Series) -> Iterator[tuple[float, float, float, float]]:
    lows, highs = series.low or series.y, series.high or series.y
    for x, y, low, high in zip(series.x, series.y, lows, highs, strict=True):
        if (plot.is_log_x and x <= 0) or (plot.is_log_y and min(y, low) <= 0):
            continue
        yield x, y, low, high


def _padded(values: list[float], is_log: bool) -> list[float]:
    return [min(values) / 1.3, max(values) * 1.3] if is_log else values


def _grid(plot: Plot, x_axis: _Axis, y_axis: _Axis, bottom: int) -> Iterator[str]:
    for tick in y_axis.ticks:
        y = y_axis.at(tick)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number_text(tick)}</text>'
    for tick in x_axis.ticks:
        x = x_axis.at(tick)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 19}" text-anchor="middle">{number_text(tick)}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle:.0f}" y="{bottom + 38}" text-anchor="middle">{escape(plot.x_label)}</text>'
    turned = f'transform="rotate(-90 16 {(TOP + bottom) // 2})" x="16" y="{(TOP + bottom) // 2}"'
    yield f'<text {turned} text-anchor="middle">{escape(plot.y_label)}</text>'


def _line(
    series: Series, points: list[tuple[float, float, float, float]], x_axis: _Axis, y_axis: _Axis, number: int
) -> Iterator[str]:
    color = f"var(--c{number % len(LIGHT)})"
    at = [(x_axis.at(x), y_axis.at(y)) for x, y, _, _ in points]
    dash = ' stroke-dasharray="6 4"' if series.is_limit else ""
    if series.is_limit and len(at) == 1:
        at = [(LEFT, at[0][1]), (WIDTH - RIGHT, at[0][1])]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    yield f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{dash}/>'
    if series.is_limit:
        return
    for (x, y), (_, _, low, high) in zip(at, points, strict=True):
        if high > low:
            ends = f'y1="{y_axis.at(low):.1f}" y2="{y_axis.at(high):.1f}"'
            yield f'<line x1="{x:.1f}" x2="{x:.1f}" {ends} stroke="{color}" stroke-width="1.5"/>'
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>'


def _legend(series: Sequence[Series], top: int, columns: int) -> Iterator[str]:
    width = (WIDTH - LEFT - RIGHT) // columns
    for number, one in enumerate(series):
        x, y = LEFT + width * (number % columns), top + LEGEND_LINE * (number // columns)
        dash = ' stroke-dasharray="6 4"' if one.is_limit else ""
        color = f"var(--c{number % len(LIGHT)})"
        yield f'<line x1="{x}" x2="{x + 22}" y1="{y - 4}" y2="{y - 4}" stroke="{color}" stroke-width="2"{dash}/>'
        yield f'<text x="{x + 28}" y="{y}">{escape(one.name)}</text>'
