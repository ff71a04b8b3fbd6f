"""Write settings as TOML: the commented reference of all defaults, and each preset.

`configs/reference.toml` and the preset files are this module's output; a test holds them equal, so that they cannot
fall behind the schema.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from zbroker.config.load import Setting, settings
from zbroker.config.presets import PRESETS
from zbroker.config.schema import RELOADABLE

_WIDTH = 100
_REFERENCE_HEAD = """\
# Every setting of zbroker with its default. Copy what you change into a file of your own:
#   zbroker serve -c zbroker.toml
# The environment (ZBROKER__WORKERS__COUNT=8) wins over the file, the command line (-C workers.count=8) over both.
# A duration may be written '10s', a size '64KiB'. "reload": kill -HUP applies it to running processes.
"""
_CLIENT_HEAD = """\
# Every setting of Producer(...) and Consumer(...) with its default: keywords in Python, -C name=value on the command
# line, or these tables in zbroker.toml. Kafka's dotted names ("linger.ms") are taken as well. Objects such as
# serializers can be given in Python only.
"""
_PRESET_HEADS = {
    "dev": "For a laptop: one worker, small segments, a day of records, every log line.",
    "kafka": "The values that Kafka's documents and articles recommend, for comparison beside Kafka.",
    "no-loss": "Three copies, two of them in sync before an acknowledgement: survives the death of any two processes.",
    "throughput": "Records a second before everything else: large batches, acknowledged by the leader alone.",
    "business": "Orders and payments: every batch on disk before it is acknowledged, sends in strict order.",
}


def reference_toml() -> str:
    """The text of configs/reference.toml."""
    lines = [_REFERENCE_HEAD]
    section = ""
    for entry in settings().values():
        if entry.name.startswith("client."):
            continue
        head = entry.name.partition(".")[0]
        if head != section:
            section = head
            lines.append(f"\n[{section}]")
        lines.extend(_entry(entry))
    lines.append("\n# Further disks for copies; new copies go to the directory with the fewest.\n# [[data_dirs]]")
    lines.append('# path = "/mnt/second/zbroker"')
    lines.append(
        "\n# Defaults of clients that read this file: the names of Producer(...) and Consumer(...), see client.toml."
    )
    lines.append("[client.producer]\n\n[client.consumer]\n")
    return "\n".join(lines)


def client_toml(clients: Mapping[str, Setting]) -> str:
    """The text of configs/client.toml: what clients may be told, as their own module describes it."""
    lines = [_CLIENT_HEAD]
    section = ""
    for entry in clients.values():
        head = entry.name.rpartition(".")[0]
        if head != section:
            section = head
            lines.append(f"\n[{section}]")
        lines.extend(_entry(entry))
    return "\n".join(lines) + "\n"


def _entry(entry: Setting) -> list[str]:
    key = entry.name.rpartition(".")[2]
    remark = f"{entry.text} ({entry.type}{'; reload' if entry.name in RELOADABLE else ''})"
    lines = textwrap.wrap(remark, _WIDTH, initial_indent="# ", subsequent_indent="#   ")
    return [*lines, f"# {key} is not set" if entry.default is None else f"{key} = {_toml_value(entry.default)}"]


def preset_toml(name: str) -> str:
    """The text of configs/NAME.toml. Raises KeyError for an unknown preset."""
    lines = [f"# {_PRESET_HEADS[name]}", f"# The same as: zbroker serve --preset {name}"]
    for section, values in PRESETS[name].items():
        if section == "client":
            for part, client_values in values.items():
                lines.extend(_table(f"client.{part}", client_values))
        else:
            lines.extend(_table(section, values))
    return "\n".join(lines) + "\n"


def _table(name: str, values: Mapping[str, Any]) -> list[str]:
    return ["", f"[{name}]", *(f"{key} = {_toml_value(value)}" for key, value in values.items())]


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    assert isinstance(value, str), f"no setting has a value like {value!r}"
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
