"""Plots and the model: what is drawn where, and what the formula says."""

from __future__ import annotations

import re
from functools import partial
from xml.etree import ElementTree

import pytest

from zbroker.load.plot import number_text, svg
from zbroker.load.report import page
from zbroker.load.results import Plot, Series, Spread, Table, figure, results
from zbroker.load.rounds import run_rounds, spread
from zbroker.load.scale_model import Constants, model_tables


def plot_of(*series: Series, is_log: bool = False) -> Plot:
    return Plot(
        name="p", title="A < B", x_label="x", y_label="y", series=list(series), is_log_x=is_log, is_log_y=is_log
    )


def circles(text: str) -> list[tuple[float, float]]:
    found = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', text)
    return [(float(x), float(y)) for x, y in found]


def test_larger_values_are_further_right_and_higher() -> None:
    at = circles(svg(plot_of(Series(name="a", x=[1.0, 2.0, 4.0], y=[1.0, 3.0, 9.0]))))
    assert at == sorted(at)
    assert [y for _, y in at] == sorted((y for _, y in at), reverse=True)


def test_on_log_axes_equal_ratios_have_equal_distances() -> None:
    at = circles(svg(plot_of(Series(name="a", x=[1.0, 10.0, 100.0], y=[5.0, 50.0, 500.0]), is_log=True)))
    (x0, y0), (x1, y1), (x2, y2) = at
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)


def test_a_limit_is_dashed_and_goes_across_and_a_spread_is_a_bar() -> None:
    text = svg(
        plot_of(
            Series(name="a", x=[1.0, 2.0], y=[2.0, 3.0], low=[1.0, 3.0], high=[4.0, 3.0]),
            Series(name="limit", x=[1.0], y=[5.0], is_limit=True),
        )
    )
    root = ElementTree.fromstring(text)
    lines = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert [one.get("stroke-dasharray") is not None for one in lines] == [False, True]
    ends = [point.split(",") for point in (lines[1].get("points") or "").split()]
    assert ends[0][1] == ends[1][1]
    assert float(ends[1][0]) - float(ends[0][0]) > 400
    assert text.count('stroke-width="1.5"') == 1, "one point has a spread"
    assert "A &lt; B" in text
    assert "prefers-color-scheme:dark" in text


def test_the_same_plot_gives_the_same_bytes() -> None:
    plot = plot_of(Series(name="a", x=[1.0, 3.0], y=[0.0, 1.0]))
    assert svg(plot) == svg(plot)


def test_what_a_log_axis_cannot_show_is_left_out() -> None:
    assert len(circles(svg(plot_of(Series(name="a", x=[0.0, 1.0, 2.0], y=[1.0, 0.0, 2.0]), is_log=True)))) == 1


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "0.05"), (12, "12"), (1500, "1.5k"), (20_000_000, "20M"), (3e9, "3G")]
)
def test_numbers_on_axes_are_short(value: float, text: str) -> None:
    assert number_text(value) == text


def test_a_page_escapes_what_it_shows_and_marks_verdicts() -> None:
    table = Table(title="t", columns=["<x>"], rows=[["<b>"], [1.5], [None]])
    found = results("zbroker bench <x>", [figure("a", 1.0, "us", target="< 2")], about="<about>", tables=[table])
    text = page([found])
    assert "<b>" not in text
    assert "&lt;about&gt;" in text
    assert 'class="met"' in text


def test_rounds_take_turns_and_the_warm_up_does_not_count() -> None:
    turns = []

    def contender(name: str) -> dict[str, float]:
        turns.append(name)
        return {"n": float(len(turns))}

    found = run_rounds({name: partial(contender, name) for name in "ab"}, 2, warm_up_rounds=1)
    assert turns == list("ababab")
    assert [one["n"] for one in found["a"]] == [3.0, 5.0]
    assert spread(found["b"], "n") == Spread(6.0, 5.0, 4.0, 6.0, 2)


CONSTANTS = Constants(
    producer_us=0.2, worker_us=0.1, consumer_us=0.1, other_us=0.0, copied_per_s=1e10, written_per_s=1e9, size_bytes=96
)


def test_the_model_is_the_least_of_its_bounds() -> None:
    assert CONSTANTS.rate(1, 1, 64) == pytest.approx(5e6), "one producer is one thread"
    assert CONSTANTS.rate(8, 1, 64) == pytest.approx(10e6), "one partition is one worker"
    assert CONSTANTS.rate(8, 8, 2) == pytest.approx(5e6), "two cores do what two cores can"
    slow_memory = Constants(**{**{n: getattr(CONSTANTS, n) for n in CONSTANTS.__struct_fields__}, "copied_per_s": 1e8})
    assert slow_memory.rate(8, 8, 2) == pytest.approx(2 * 1e8 / (4 * 100))


def test_the_bend_is_where_cores_begin_to_bound() -> None:
    workers = CONSTANTS.bend(16)
    at, before = (
        min(CONSTANTS.bounds(n, n, 16)[name] for name in ("workers", "producers")) for n in (workers, workers - 1)
    )
    assert before < CONSTANTS.bounds(1, 1, 16)["cores"] <= at
    assert any(row[0] == 64 for row in model_tables(CONSTANTS, 2)[1].rows)
