"""Waiting until a request has left the router for the process that was asked."""

from __future__ import annotations

import pytest

from tests.conditions import wait_until
from zbroker import ids
from zbroker.client.connection import Connection
from zbroker.errors import InvalidRequestError
from zbroker.wire.layout import Api

DEADLINE_MS = 60_000  # of the askers: none of them is to need it


def wait_until_forwarded(connection: Connection) -> None:
    """Wait until a process has what another thread asks it over this connection: the router takes requests in their
    order, and answers one that nobody answers."""
    wait_until(lambda: len(connection._unanswered) > 0, what="the request")
    with pytest.raises(InvalidRequestError, match="does not answer"):
        connection.request(ids.ROUTER, Api.METADATA, [b""], timeout_ms=DEADLINE_MS)
