"""Times, places and pairs of the command line."""

from __future__ import annotations

from datetime import UTC, datetime

import click
import pytest

from zbroker.cli.quantities import Place, Span, parse_interval_s, parse_pairs, parse_span, parse_time_ms

NOW_MS = 1_795_435_200_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1795435200000", 1_795_435_200_000),
        ("-1h", NOW_MS - 3_600_000),
        ("-90s", NOW_MS - 90_000),
        ("2026-11-23T10:00Z", int(datetime(2026, 11, 23, 10, tzinfo=UTC).timestamp() * 1000)),
        ("2026-11-23T12:00:00.250+02:00", int(datetime(2026, 11, 23, 10, tzinfo=UTC).timestamp() * 1000) + 250),
        ("2026-11-23", int(datetime(2026, 11, 23).timestamp() * 1000)),
    ],
)
def test_a_time_is_iso_or_epoch_or_ago(text: str, expected: int) -> None:
    assert parse_time_ms(text, NOW_MS) == expected


@pytest.mark.parametrize("text", ["", "yesterday", "-1x", "2026-13-01", "12:00"])
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"2026-11-23T10:00|250ms"):
        parse_time_ms(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("start", Span(Place("start"), None)),
        ("beginning", Span(Place("start"), None)),
        ("end", Span(Place("end"), None)),
        ("latest", Span(Place("end"), None)),
        ("17", Span(Place("offset", 17), None)),
        ("-100", Span(Place("last", 100), None)),
        (":end", Span(Place("start"), Place("end"))),
        (":50", Span(Place("start"), Place("offset", 50))),
        ("10:20", Span(Place("offset", 10), Place("offset", 20))),
        ("10:10", Span(Place("offset", 10), Place("offset", 10))),
        ("-5:-3", Span(Place("last", 5), Place("last", 3))),
        ("-5:end", Span(Place("last", 5), Place("end"))),
        ("@1795435200000", Span(Place("time", NOW_MS), None)),
        ("@1795435200000:@1795435300000", Span(Place("time", NOW_MS), Place("time", NOW_MS + 100_000))),
        ("@2026-11-23T10:00:30Z", Span(Place("time", parse_time_ms("2026-11-23T10:00:30Z")), None)),
        (
            "@2026-11-23T10:00Z:@2026-11-23T11:00Z",
            Span(Place("time", parse_time_ms("2026-11-23T10:00Z")), Place("time", parse_time_ms("2026-11-23T11:00Z"))),
        ),
        ("@2026-11-23T10:00Z:end", Span(Place("time", parse_time_ms("2026-11-23T10:00Z")), Place("end"))),
    ],
)
def test_a_span_says_where_to_begin_and_where_to_stop(text: str, expected: Span) -> None:
    assert parse_span(text) == expected


@pytest.mark.parametrize("text", ["", ":", "begin", "1:", "a:b", "1.5", "--5", "@", "10:20:30", "9" * 30])
def test_what_is_no_span_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(click.BadParameter, match="start, end, N"):
        parse_span(text)


@pytest.mark.parametrize("text", ["5:3", "-3:-5", "@1795435300000:@1795435200000"])
def test_a_span_that_ends_before_it_begins_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=f"-o '{text}' ends before it begins"):
        parse_span(text)


@pytest.mark.parametrize(("text", "words"), [("0", "not above 0"), ("-1s", "not above 0"), ("soon", "not a quantity")])
def test_an_interval_is_above_0(text: str, words: str) -> None:
    assert parse_interval_s("250ms", "--interval") == 0.25
    with pytest.raises(click.BadParameter, match=f"--interval: '{text}' is {words}"):
        parse_interval_s(text, "--interval")


def test_pairs_may_hold_an_equals_sign_in_their_value() -> None:
    assert parse_pairs(["a=1", "b=x=y", "c="], "-H") == {"a": "1", "b": "x=y", "c": ""}


@pytest.mark.parametrize("text", ["a", "=b", ""])
def test_what_is_no_pair_is_refused_with_its_option(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"-H .*name=value"):
        parse_pairs([text], "-H")
