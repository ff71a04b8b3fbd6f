"""For the tests of applications: a real broker (`Broker`) and pytest fixtures (`plugin`).

pytest loads the plugin in every run on a host with zbroker, so nothing is imported here before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zbroker.testing.broker import Broker, BrokerFailedError

__all__ = ["Broker", "BrokerFailedError"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from zbroker.testing import broker

    return getattr(broker, name)
