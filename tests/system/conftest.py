"""Fixtures that modules of system tests share. Each module has its own `served`: a broker and its tcp address."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.consuming import WAYS, make_topic, settings_for
from zbroker.testing import Broker


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, served: tuple[Broker, str]) -> dict[str, Any]:
    """The settings of a client, once for each way to reach the broker."""
    return settings_for(request.param, *served)


@pytest.fixture
def topic(way: dict[str, Any], request: pytest.FixtureRequest) -> str:
    """A topic of three partitions, named after the test."""
    name = re.sub(r"[^a-zA-Z0-9]", "-", request.node.name)
    make_topic(way, name, 3)
    return name
