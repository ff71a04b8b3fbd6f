"""One thread at a time, one process, one end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from zbroker.client.single_use import SingleUse
from zbroker.errors import ClosedError, ConcurrentUseError, ForkError


class Owner:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.use = SingleUse("Consumer", lambda: self.calls.append("wake"), lambda: self.calls.append("release"))


def test_a_second_thread_is_refused_and_the_first_goes_on() -> None:
    owner = Owner()
    seen: list[BaseException] = []

    def other() -> None:
        try:
            with owner.use:
                pass
        except ConcurrentUseError as error:
            seen.append(error)

    with owner.use, owner.use:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "one thread" in str(seen[0])
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(seen) == 1, "afterwards another thread may use it"


def test_close_releases_once_and_ends_all_use() -> None:
    owner = Owner()
    owner.use.close(1)
    owner.use.close(1)
    assert owner.calls == ["wake", "release"]
    with pytest.raises(ClosedError), owner.use:
        pass


def test_close_from_another_thread_wakes_a_use_and_waits_for_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner()
    is_waiting = threading.Event()
    wait_for = owner.use._ended.wait_for

    def note_and_wait_for(is_over: Callable[[], bool], timeout_s: float) -> bool:
        is_waiting.set()
        return wait_for(is_over, timeout_s)

    monkeypatch.setattr(owner.use._ended, "wait_for", note_and_wait_for)
    closer = threading.Thread(target=owner.use.close, args=(20,))
    with owner.use:
        closer.start()
        assert is_waiting.wait(20)
        assert owner.calls == ["wake"]
    closer.join()
    assert owner.calls == ["wake", "release"]


def test_what_is_released_may_be_used_by_the_release_alone() -> None:
    owner = Owner()
    refused: list[bool] = []

    def release() -> None:
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
        with owner.use:
            owner.calls.append("used")

    def try_it() -> None:
        with pytest.raises(ClosedError), owner.use:
            pass
        refused.append(True)

    owner.use = SingleUse("Consumer", lambda: None, release)
    owner.use.close(1)
    assert (owner.calls, refused) == (["used"], [True])
    with pytest.raises(ClosedError), owner.use:
        pass


def test_a_use_that_does_not_end_in_time_releases_when_it_ends() -> None:
    owner = Owner()
    with owner.use:
        closer = threading.Thread(target=owner.use.close, args=(0,))
        closer.start()
        closer.join()
        assert "release" not in owner.calls
    assert owner.calls.count("release") == 1


def test_close_from_inside_a_use_releases_at_its_end() -> None:
    owner = Owner()
    with owner.use:
        owner.use.close(20)
        assert owner.calls == []
    assert owner.calls == ["release"]


def test_a_forked_child_is_refused_and_releases_nothing() -> None:
    owner = Owner()
    owner.use._pid = os.getpid() + 1  # what a child sees
    with pytest.raises(ForkError, match=f"used in pid {os.getpid()}"), owner.use:
        pass
    owner.use.close(1)
    assert owner.calls == []
