"""Texts of the command line as values: times, offsets to begin at, name=value pairs.

@2026-11-23T10:00   a local time (add Z or +02:00 for another zone)
@-1h                an hour ago
@1795435200000      milliseconds since 1970
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Literal, NamedTuple

import click

from zbroker.clock import NS_PER_MS
from zbroker.config.load import parse_duration_ms
from zbroker.errors import ConfigError

_START = ("start", "beginning", "earliest")
_END = ("end", "latest")
_OFFSET_HELP = "start, end, N, -N (the last N), @2026-11-23T10:00, @-1h, @EPOCH_MS, :end, A:B"


def parse_time_ms(text: str, now_ms: int | None = None, *, option: str = "time") -> int:
    """A time in ms since 1970: ISO 8601, epoch ms, or `-1h` before now. Raises click.BadParameter."""
    if re.fullmatch(r"\d{12,}", text):
        return int(text)
    if text.startswith("-"):
        try:
            ago_ms = parse_duration_ms(text[1:])
        except ConfigError as error:
            raise click.BadParameter(str(error)) from None
        return (time.time_ns() // NS_PER_MS if now_ms is None else now_ms) - ago_ms
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        raise click.BadParameter(
            f"{option}: {text!r} is no time: write 2026-11-23T10:00, -1h (before now) or epoch milliseconds"
        ) from None


def parse_interval_s(text: str, option: str) -> float:
    """A time above 0, such as 300ms, in seconds. Raises click.BadParameter."""
    try:
        found_ms = parse_duration_ms(text, option)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None
    if found_ms < 1:
        raise click.BadParameter(f"{option}: {text!r} is not above 0; write it as 250ms, 10s, 5m, 1h or 7d")
    return found_ms / 1000


class Place(NamedTuple):
    """Where in a partition: `kind` start, end, offset, last (N from the end) or time (ms)."""

    kind: Literal["start", "end", "offset", "last", "time"]
    number: int = 0


class Span(NamedTuple):
    """What to read: from a place, up to a place (not included) or for ever."""

    start: Place
    stop: Place | None


def parse_span(text: str, option: str = "-o") -> Span:
    """`-o` of consume. A colon may also belong to a time: every way to split is tried. Raises click.BadParameter."""
    whole = _place(text)
    if whole is not None:
        return Span(whole, None)
    for match in re.finditer(":", text):
        left, right = text[: match.start()], text[match.end() :]
        start = _place(left) if left else Place("start")
        stop = _place(right)
        if start is not None and stop is not None:
            if start.kind == stop.kind and (start.number > stop.number) != (start.kind == "last"):
                raise click.BadParameter(f"{option} {text!r} ends before it begins")
            return Span(start, stop)
    raise click.BadParameter(f"{option} {text!r} is none of: {_OFFSET_HELP}")


def _place(text: str) -> Place | None:
    if text in _START:
        return Place("start")
    if text in _END:
        return Place("end")
    if re.fullmatch(r"\d{1,19}", text):
        return Place("offset", int(text))
    if re.fullmatch(r"-\d{1,18}", text):
        return Place("last", int(text[1:]))
    if text.startswith("@"):
        try:
            return Place("time", parse_time_ms(text[1:]))
        except click.BadParameter:
            return None
    return None


def parse_pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    """`name=value` texts as a dictionary. Raises click.BadParameter."""
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise click.BadParameter(f"{option} {text!r}: write it as name=value")
        found[name.strip()] = value
    return found
