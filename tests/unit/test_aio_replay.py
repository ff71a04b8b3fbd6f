"""Code that waits, run on a loop by running it again; and one task at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from zbroker.aio.one_task import OneTask
from zbroker.aio.replay import Needed, Pause, Replay
from zbroker.errors import ClosedError, ConcurrentUseError, LeaderNotAvailableError


def drive(call: Any, answers: dict[object, list[Any]]) -> tuple[Any, list[object]]:
    """Run a call as `LoopConnection.replayed` does; answers are taken in their order. Gives what was asked, too."""
    asked: list[object] = []
    replay = Replay()

    async def get(key: object) -> Any:
        asked.append(key)
        found = answers[key].pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    async def main() -> Any:
        while True:
            replay.begin_run()
            try:
                return call(lambda key: replay.answer(key, lambda: get(key)), lambda: get("pause"))
            except Needed as needed:
                await replay.fetch(needed)

    return asyncio.run(main()), asked


def test_each_question_is_asked_once_however_often_the_code_runs() -> None:
    def call(ask: Any, _: Any) -> Any:
        return [ask("a"), ask("b"), ask("a"), ask("c")]

    found, asked = drive(call, {"a": [1, 3], "b": [2], "c": [4]})
    assert found == [1, 2, 3, 4]
    assert asked == ["a", "b", "a", "c"]


def test_an_error_is_raised_where_it_was_asked_and_a_pause_makes_answers_old() -> None:
    def call(ask: Any, pause: Any) -> Any:
        try:
            return ask("leader")
        except LeaderNotAvailableError:
            raise Pause("pause", pause) from None

    answers: dict[object, list[Any]] = {
        "leader": [LeaderNotAvailableError("none"), LeaderNotAvailableError("none"), 7],
        "pause": [None, None],
    }
    found, asked = drive(call, answers)
    assert found == 7
    assert asked == ["leader", "pause", "leader", "pause", "leader"]


def test_a_handler_of_errors_does_not_swallow_a_missing_answer() -> None:
    def call(ask: Any, _: Any) -> Any:
        try:
            return ask("a")
        except Exception:
            return "swallowed"

    assert drive(call, {"a": [5]})[0] == 5


def test_a_second_task_is_refused_and_the_end_waits_for_the_first() -> None:
    async def main() -> None:
        one = OneTask("Consumer")
        leave = asyncio.Event()

        async def use() -> None:
            with one, one:
                await leave.wait()

        using = asyncio.create_task(use())
        await asyncio.sleep(0)
        with pytest.raises(ConcurrentUseError), one:
            raise AssertionError("never reached")
        ending = asyncio.create_task(one.end())
        await asyncio.sleep(0.01)
        assert not ending.done()
        leave.set()
        await ending
        await using
        with pytest.raises(ClosedError), one:
            raise AssertionError("never reached")

    asyncio.run(main())
