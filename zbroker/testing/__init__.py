"""For the tests of applications: a real broker (`Broker`) and pytest fixtures (`plugin`)."""

from zbroker.testing.broker import Broker, BrokerFailedError

__all__ = ["Broker", "BrokerFailedError"]
