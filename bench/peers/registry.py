"""The systems by name. A system whose Python client is not installed is missing like one without its server."""

from __future__ import annotations

from importlib import import_module

from bench.peers.system import MissingError, System

SYSTEMS = {
    "zbroker": "bench.peers.zbroker:Zbroker",
    "kafka": "bench.peers.kafka:Kafka",
    "redis": "bench.peers.redis:Redis",
    "nats": "bench.peers.nats:Nats",
    "rabbitmq": "bench.peers.rabbitmq:RabbitMQ",
}
CLIENTS = "pip install -e '.[peers]'"


def system(name: str) -> type[System]:
    """The class of a system that can be run here. Raises MissingError."""
    module, _, attribute = SYSTEMS[name].partition(":")
    try:
        found: type[System] = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("bench"):
            raise
        raise MissingError(f"the Python package {error.name} was not found", CLIENTS) from error
    found.check()
    return found
