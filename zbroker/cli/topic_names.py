"""Completion of topics and partitions in a shell: what is there now, or nothing; never an error and never long."""

from __future__ import annotations

import os
from typing import Final

import click
from click.shell_completion import CompletionItem

from zbroker.cli.options import Options

TIMEOUT_MS: Final = 500


def complete_topics(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of topics that begin with what was typed. Empty when no broker answers in half a second."""
    try:
        with options_for_completion(context).admin() as admin:
            return [CompletionItem(name) for name in admin.list_topics() if name.startswith(incomplete)]
    except Exception:
        return []  # A shell that completes has no place for an error.


def complete_partitions(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """TOPIC:PARTITION of every partition that begins with what was typed; as topics else."""
    try:
        with options_for_completion(context).admin() as admin:
            topic = incomplete.partition(":")[0]
            topics = admin.describe_topics([name for name in admin.list_topics() if name.startswith(topic)])
    except Exception:
        return []  # A shell that completes has no place for an error.
    names = [f"{name}:{one.partition}" for name, topic in topics.items() for one in topic.partitions]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def options_for_completion(context: click.Context) -> Options:
    """Where the command line being typed goes, with little patience."""
    options = Options()
    params = context.find_root().params
    options.bootstrap_servers = params.get("bootstrap_servers") or os.environ.get("ZBROKER_BOOTSTRAP_SERVERS")
    options.timeout_ms = TIMEOUT_MS
    return options
