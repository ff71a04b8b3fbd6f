"""The admin client for asyncio: every call of `zbroker.AdminClient`, awaited.

Arguments, results and errors are the same; a call that is not done within its `timeout_ms` (else request_timeout_ms)
raises the newest error that it has met.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from zbroker.aio.connection import LoopConnection
from zbroker.client.admin import AdminClient as BlockingAdminClient
from zbroker.client.settings import ConnectionSettings, read_settings
from zbroker.errors import ClosedError

P = ParamSpec("P")
R = TypeVar("R")


class _Calls(BlockingAdminClient):
    """The other client on a connection of this loop."""

    def __init__(self, connection: LoopConnection) -> None:
        self._connection = connection


def _awaited(
    method: Callable[Concatenate[BlockingAdminClient, P], R],
) -> Callable[Concatenate[AdminClient, P], Coroutine[Any, Any, R]]:
    default = inspect.signature(method).parameters.get("timeout_ms")

    @wraps(method)
    async def call(self: AdminClient, /, *arguments: P.args, **options: P.kwargs) -> R:
        connection = self._started()
        calls = _Calls(connection)
        given = options.get("timeout_ms", default.default if default is not None else None)
        timeout_ms = given if isinstance(given, int) else None
        return await connection.replayed(lambda: method(calls, *arguments, **options), timeout_ms)

    return call


class AdminClient:
    """See the module. Settings are those of every client; `start`, or `async with`, connects."""

    def __init__(self, config: Mapping[str, object] | None = None, /, **settings: object) -> None:
        """Raises ConfigError for a setting."""
        self.settings = read_settings(ConnectionSettings, config, settings)
        self._connection: LoopConnection | None = None
        self._is_closed = False

    async def start(self) -> None:
        """Connect, in the loop that is running. Raises BrokerNotAvailableError when no broker answers."""
        if self._connection is None:
            connection = LoopConnection(self.settings)
            await connection.connect()
            self._connection = connection

    def _started(self) -> LoopConnection:
        if self._is_closed:
            raise ClosedError("this AdminClient is closed")
        if self._connection is None:
            raise ClosedError("this AdminClient is not started: async with AdminClient(...), or await start()")
        return self._connection

    create_topics = _awaited(BlockingAdminClient.create_topics)
    delete_topics = _awaited(BlockingAdminClient.delete_topics)
    create_partitions = _awaited(BlockingAdminClient.create_partitions)
    list_topics = _awaited(BlockingAdminClient.list_topics)
    describe_topics = _awaited(BlockingAdminClient.describe_topics)
    describe_configs = _awaited(BlockingAdminClient.describe_configs)
    alter_configs = _awaited(BlockingAdminClient.alter_configs)
    delete_records = _awaited(BlockingAdminClient.delete_records)
    list_offsets = _awaited(BlockingAdminClient.list_offsets)
    wait_for_topics = _awaited(BlockingAdminClient.wait_for_topics)
    elect_leaders = _awaited(BlockingAdminClient.elect_leaders)
    move = _awaited(BlockingAdminClient.move)
    drain = _awaited(BlockingAdminClient.drain)
    describe_cluster = _awaited(BlockingAdminClient.describe_cluster)
    describe_processes = _awaited(BlockingAdminClient.describe_processes)
    describe_log_dirs = _awaited(BlockingAdminClient.describe_log_dirs)

    async def close(self) -> None:
        """Disconnect."""
        self._is_closed = True
        if self._connection is not None:
            self._connection.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __reduce__(self) -> Any:
        raise TypeError("an AdminClient cannot be pickled: create one per process")


def _add_the_rest() -> None:
    """Whatever calls the other client has or gets besides, so that none is ever missing here."""
    for name, method in inspect.getmembers(BlockingAdminClient, inspect.isfunction):
        if not name.startswith("_") and not hasattr(AdminClient, name):
            setattr(AdminClient, name, _awaited(method))


_add_the_rest()
