"""Rules that need only the settings: the troubles that the articles trace to a wrong number (S-195, S-196, S-197)."""

from __future__ import annotations

from zbroker.config.schema import ServerConfig
from zbroker.doctor.findings import Finding, failed, passed, warned

POLL_INTERVAL_MIN_MS = 30_000
FLUSH_MESSAGES_MIN = 1_000
FLUSH_MIN_MS = 100


def rebalances(config: ServerConfig) -> Finding:
    """S-195: a consumer that works longer than max_poll_interval_ms is thrown out, again and again."""
    consumer = config.client.consumer
    poll_ms = _number(consumer.get("max_poll_interval_ms"), 300_000)
    session_ms = _number(consumer.get("session_timeout_ms"), 45_000)
    if poll_ms < session_ms:
        text = f"max_poll_interval_ms {poll_ms} is below session_timeout_ms {session_ms}"
        return failed("rebalances", text, "client.consumer.max_poll_interval_ms = 300000")
    if poll_ms < POLL_INTERVAL_MIN_MS:
        text = f"max_poll_interval_ms {poll_ms} leaves little time for work between two polls"
        return warned("rebalances", text, "client.consumer.max_poll_interval_ms = 300000, or a lower max_poll_records")
    return passed("rebalances", f"max_poll_interval_ms {poll_ms}, session_timeout_ms {session_ms}")


def acknowledgements(config: ServerConfig) -> Finding:
    """S-196: with acks=0 a record is lost with its leader, and nobody hears of it; acks=1 makes no use of copies."""
    acks = str(config.client.producer.get("acks", "all"))
    if acks == "0":
        return failed("acknowledgements", "producers send with acks=0", "client.producer.acks = 'all'")
    if acks == "1" and (config.broker.replication_factor > 1 or config.replicas.count):
        text = "producers send with acks=1 although there are copies"
        return warned("acknowledgements", text, "client.producer.acks = 'all'")
    return passed("acknowledgements", f"producers send with acks={acks}")


def flushes(config: ServerConfig) -> Finding:
    """S-197: an fdatasync for every few records makes the disk the limit."""
    every, after_ms = config.topics.flush_messages, config.topics.flush_ms
    if 0 <= every < FLUSH_MESSAGES_MIN:
        text = f"an fdatasync every {every} records"
        return warned("flushes", text, "topics.flush_messages = 10000 or -1; acks='fsync' for the topics that need it")
    if 0 <= after_ms < FLUSH_MIN_MS:
        text = f"an fdatasync every {after_ms} ms"
        return warned("flushes", text, "topics.flush_ms = 1000 or -1; acks='fsync' for the topics that need it")
    return passed("flushes", "left to the operating system" if every < 0 and after_ms < 0 else "rare enough")


def examine_settings(config: ServerConfig) -> list[Finding]:
    """Apply every rule of this file."""
    return [rebalances(config), acknowledgements(config), flushes(config)]


def _number(value: object, default: int) -> int:
    return int(value) if isinstance(value, int | float | str) else default
