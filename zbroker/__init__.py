"""zbroker: a Kafka-like log broker for one host."""

__version__ = "0.1.0"
