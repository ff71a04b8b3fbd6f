"""Ready sets of settings, by name: `zbroker serve --preset NAME`, and the files in configs/.

Each is only what differs from the defaults, with its reason. `client` parts are the clients' defaults when they read
the same file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    # For a laptop: little memory, quick retention, loud logs.
    "dev": {
        "workers": {"count": 1},
        "topics": {"segment_bytes": 16 << 20, "retention_ms": 86_400_000},
        "logging": {"level": "debug"},
    },
    # The values that Kafka's articles and documents recommend, for comparison.
    "kafka": {
        "workers": {"count": 16},
        "network": {"io_threads": 8},
        "topics": {"segment_bytes": 1 << 30, "flush_messages": 10_000},
        "client": {
            "producer": {"batch_size": 16_384, "linger_ms": 5, "partitioner": "murmur2_random"},
            "consumer": {
                "fetch_min_bytes": 1024,
                "max_poll_records": 500,
                "max_poll_interval_ms": 300_000,
                "session_timeout_ms": 10_000,
            },
        },
    },
    # Nothing that was acknowledged is lost while one copy's process and disk live.
    "no-loss": {
        "replicas": {"count": 2},
        "broker": {"replication_factor": 3},
        "topics": {"min_insync_replicas": 2},
        "client": {"producer": {"acks": "all"}, "consumer": {"enable_auto_commit": False}},
    },
    # Records a second before everything: large batches, no wait of a sender for more than the leader.
    "throughput": {
        "topics": {"segment_bytes": 1 << 30, "index_interval_bytes": 65_536},
        "client": {
            "producer": {"acks": 1, "batch_size": 1 << 20, "linger_ms": 5, "buffer_memory": 128 << 20},
            "consumer": {"max_poll_records": 10_000, "fetch_min_bytes": 65_536},
        },
    },
    # Orders and payments: small batches, every one on disk before it is acknowledged, one at a time in order.
    "business": {
        "topics": {"flush_messages": 1},
        "client": {
            "producer": {
                "acks": "fsync",
                "batch_size": 4096,
                "linger_ms": 0,
                "max_in_flight_requests_per_connection": 1,
            },
            "consumer": {"max_poll_records": 50, "enable_auto_commit": False},
        },
    },
}
