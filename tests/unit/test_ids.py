"""Process numbers, incarnations and topic names."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zbroker import ids
from zbroker.errors import CODES, InvalidTopicError, OffsetOutOfRangeError, UnknownError, error_for


@given(st.integers(0, 1 << 20))
def test_a_process_number_and_its_name_say_the_same(index: int) -> None:
    for number in (ids.COORDINATOR, ids.ROUTER, ids.worker_number(index), ids.replica_number(index)):
        assert ids.process_number(ids.process_name(number)) == number


@pytest.mark.parametrize("name", ["", "worker", "worker-", "worker--1", "worker-x", "gateway-1", "worker-²"])
def test_other_texts_name_no_process(name: str) -> None:
    with pytest.raises(ValueError, match="names no process"):
        ids.process_number(name)


def test_an_incarnation_names_one_run_of_one_process() -> None:
    own = ids.own_incarnation()
    assert ids.pid_of(own) == os.getpid()
    assert ids.is_alive(own)
    assert not ids.is_alive(own + (1 << 22)), "the same pid with another start time is another process"
    assert ids.open_pidfd(own + (1 << 22)) is None


def test_a_dead_process_is_seen_dead_even_before_it_is_reaped() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    incarnation = ids.incarnation_of(child.pid)
    assert ids.is_alive(incarnation)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not ids.is_alive(incarnation)
    assert ids.open_pidfd(incarnation) is None
    child.communicate()
    assert not ids.is_alive(incarnation)
    with pytest.raises(ProcessLookupError):
        ids.incarnation_of(child.pid)


@given(st.from_regex(r"[a-zA-Z0-9._-]{1,249}", fullmatch=True))
def test_names_of_the_alphabet_are_topics(name: str) -> None:
    if name in (".", ".."):
        with pytest.raises(InvalidTopicError):
            ids.check_topic_name(name)
    else:
        ids.check_topic_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a\0b", "a\n", "é", "a b", "x" * 250, "con:1"])
def test_t45_other_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidTopicError):
        ids.check_topic_name(name)


def test_an_error_keeps_its_type_across_processes() -> None:
    for code, kind in CODES.items():
        found = error_for(code, "because")
        assert type(found) is kind
        assert found.message == "because"
        assert found.hint in str(found)
    assert isinstance(error_for(1), OffsetOutOfRangeError)
    assert isinstance(error_for(31_000), UnknownError)
