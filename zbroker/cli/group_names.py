"""Completion of group names in a shell: as `topic_names` does for topics."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from zbroker.cli.topic_names import options_for_completion


def complete_groups(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of groups that begin with what was typed. Empty when no broker answers in half a second."""
    try:
        with options_for_completion(context).admin() as admin:
            names = [group.group_id for group in admin.list_groups()]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]
    except Exception:
        return []  # A shell that completes has no place for an error.
