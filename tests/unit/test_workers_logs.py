"""Log lines: text, JSON, and what holds them back."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator

import pytest

from zbroker.clock import NS_PER_MS
from zbroker.workers.logs import ROOT_LOGGER, OncePerMinute, start_logging


@pytest.fixture(autouse=True)
def restored_logger() -> Iterator[None]:
    logger = logging.getLogger(ROOT_LOGGER)
    before = (logger.handlers[:], logger.propagate, logger.level)
    yield
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def test_a_text_line_names_time_process_level_and_what_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging("worker-3", "info", "text")
    logging.getLogger("zbroker.workers.leader").warning("no room", extra={"topic": "orders", "partition": 2})
    line = capsys.readouterr().err
    assert line.endswith("Z worker-3 WARNING no room topic=orders partition=2\n")


def test_a_json_line_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging("worker-3", "info", "json")
    try:
        raise ValueError("broken\nin two lines")
    except ValueError:
        logging.getLogger("zbroker.x").exception("it failed", extra={"topic": 'a"b'})
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert (found["level"], found["process"], found["pid"]) == ("error", "worker-3", os.getpid())
    assert (found["event"], found["topic"]) == ("it failed", 'a"b')
    assert "ValueError: broken" in found["traceback"]


def test_a_text_line_stays_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging("router", "info", "text")
    logging.getLogger("zbroker.x").error("bad", extra={"error": "a\nfaked line"})
    assert capsys.readouterr().err.count("\n") == 1


def test_the_level_holds_back_what_is_less_severe_and_starting_again_replaces(
    capsys: pytest.CaptureFixture[str],
) -> None:
    start_logging("router", "debug", "text")
    logger = start_logging("router", "warning", "text")
    logger.info("not this")
    logger.warning("this")
    assert capsys.readouterr().err.count("\n") == 1


def test_one_kind_of_line_comes_once_a_minute() -> None:
    once = OncePerMinute()
    minute_ns = 60_000 * NS_PER_MS
    assert once.allows("a", 5)
    assert not once.allows("a", 4 + minute_ns)
    assert once.allows("b", 5)
    assert once.allows("a", 5 + minute_ns)


def test_kinds_that_a_client_can_invent_do_not_pile_up() -> None:
    once = OncePerMinute()
    for number in range(10 * OncePerMinute.KINDS_MAX):
        once.allows(str(number), 0)
    assert len(once._last_ns) <= OncePerMinute.KINDS_MAX
