"""Runs code that waits for answers on an event loop, without a thread: it is run again from its start as answers come.

A call that needs an answer which is not there raises `Needed` instead of waiting. Its driver awaits the answer and
makes the call again, which finds it; and so on until it returns. So the code must do nothing before its last question
that may not be done twice: ask, look up, and then act. What waits in between (a pause before it tries again) drops the
answers that were there: they are old then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

R = TypeVar("R")


class Needed(BaseException):
    """An answer is missing. No handler of errors must take it for one."""

    def __init__(self, key: object, get: Callable[[], Awaitable[Any]]) -> None:
        super().__init__(key)
        self.key = key
        self.get = get


class Pause(Needed):
    """Time has to pass, or something to come, before it makes sense to try again."""


class Replay:
    """The answers of one call, and how many of each were used in the run that is under way."""

    def __init__(self) -> None:
        self._answers: dict[object, list[tuple[Any, Exception | None]]] = {}
        self._used: dict[object, int] = {}
        self.failure: Exception | None = None
        """The newest answer that was an error."""

    def begin_run(self) -> None:
        """The call is made again."""
        self._used.clear()

    def answer(self, key: object, get: Callable[[], Awaitable[Any]]) -> Any:
        """The next answer to this question, or its error. Raises Needed when it is not there."""
        number = self._used.get(key, 0)
        known = self._answers.get(key, [])
        if number == len(known):
            raise Needed(key, get)
        self._used[key] = number + 1
        found, error = known[number]
        if error is not None:
            raise error
        return found

    async def fetch(self, needed: Needed) -> None:
        """Get what a run has found missing."""
        if isinstance(needed, Pause):
            await needed.get()
            self._answers.clear()
            return
        try:
            entry: tuple[Any, Exception | None] = (await needed.get(), None)
        except Exception as error:
            entry = (None, error)
            self.failure = error
        self._answers.setdefault(needed.key, []).append(entry)
