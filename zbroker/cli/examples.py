"""What stands under "Examples" in a command's help. A test parses every line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "serve": (
        "zbroker serve",
        "zbroker serve --workers 2 --replicas 2 --data-dir /var/lib/zbroker",
        "zbroker serve --preset no-loss -C topics.retention_ms=30d",
        "zbroker serve --ephemeral --workers 1",
    ),
    "topics create": (
        "zbroker topics create orders -p 4",
        "zbroker topics create pay -r 3 --set min.insync.replicas=2",
        "zbroker topics create state --set cleanup.policy=compact --set segment.bytes=64MiB",
    ),
    "topics alter": (
        "zbroker topics alter orders --set retention.ms=7d --set retention.bytes=10GiB",
        "zbroker topics alter orders --unset retention.ms",
    ),
    "topics truncate": (
        "zbroker topics truncate orders --before end",
        "zbroker topics truncate orders -p 0 --before 1000 --yes",
        "zbroker topics truncate orders --before @-7d",
    ),
    "produce": (
        "zbroker produce orders access.log",
        "tail -f access.log | zbroker produce orders",
        "zbroker produce orders pairs.txt --key-sep : --acks fsync",
        "zbroker consume orders -o :end --json | zbroker produce copy --jsonl",
    ),
    "consume": (
        "zbroker consume orders",
        "zbroker consume orders -o start -n 5 -f '%t %p %o %T{iso} %k %v\\n'",
        "zbroker consume orders -o -10 --exit",
        "zbroker consume orders -o @-1h:end --grep error --json",
        "zbroker consume orders -g billing -o start",
    ),
    "offsets": (
        "zbroker offsets orders",
        "zbroker offsets orders --time 2026-11-23T10:00",
        "zbroker offsets orders --time -1h -p 0",
    ),
    "groups describe": (
        "zbroker groups describe billing",
        "zbroker groups describe billing --members",
        "zbroker groups describe billing --watch --interval 5s",
        "zbroker groups describe billing --max-lag 10000",
    ),
    "groups reset-offsets": (
        "zbroker groups reset-offsets billing -t orders --to-earliest",
        "zbroker groups reset-offsets billing -t orders -p 0 --shift-by -100 --execute",
        "zbroker groups reset-offsets billing -t orders --to-datetime -1h --execute",
    ),
    "groups export": ("zbroker groups export billing > billing.csv",),
    "groups import": (
        "zbroker groups import billing.csv --dry-run",
        "zbroker groups import billing.csv --group billing-2",
    ),
    "cluster move": (
        "zbroker cluster move orders:0 --to worker-1",
        "zbroker cluster move orders:0 --from replica-0 --to replica-1 --no-wait",
    ),
    "cluster drain": ("zbroker cluster drain worker-0",),
    "log dump": (
        "zbroker log dump ~/.local/share/zbroker -n 10",
        "zbroker log dump 00000000000000000000.log --records --offset 500",
    ),
    "config show": (
        "zbroker config show --changed --origin",
        "zbroker config show topics.retention_ms -c zbroker.toml",
        "zbroker config show --topic orders",
    ),
    "config explain": (
        "zbroker config explain workers.count",
        "zbroker config explain topics",
        "zbroker config explain client.producer",
    ),
    "chaos": (
        "zbroker chaos --duration 10s",
        "zbroker chaos --seed 7 --pauses 0 --moves 3s",
    ),
    "bench produce": (
        "zbroker bench produce",
        "zbroker bench produce -n 5000000 --mode send_many --size 1000",
        "zbroker bench produce --dir /var/tmp --acks fsync -o produce.json",
    ),
    "bench report": ("zbroker bench report produce.json -o report.html",),
}  # fmt: skip


def examples(command: str) -> str:
    """The epilog of a command's help."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in EXAMPLES[command])))
