"""`zbroker config`: the settings in force and where they come from, what each means, whether a file is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from zbroker.cli.examples import examples
from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.cli.output import Cell, print_json, print_table
from zbroker.cli.topic_names import complete_topics
from zbroker.config.load import Setting, check_name, load, settings
from zbroker.config.paths import paths_for
from zbroker.config.schema import RELOADABLE, ServerConfig


def complete_settings(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of settings, of the clients too in `explain`, that begin with what was typed."""
    names = settings() if context.info_name == "show" else _known()
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.group()
def config() -> None:
    """Show, explain and check settings."""


@config.command(epilog=examples("config show"), short_help="Show the settings in force.")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_settings)
@click.option("--origin", is_flag=True, help="Also where each value comes from.")
@click.option("--changed", is_flag=True, help="Only what is not the default.")
@click.option("--topic", metavar="NAME", help="A topic's settings, from the broker.", shell_complete=complete_topics)
@shared_options
@pass_options
def show(options: Options, names: tuple[str, ...], origin: bool, changed: bool, topic: str | None) -> None:
    """Show the settings in force: those of -c FILE, of the environment and of -C, or of a topic."""
    rows: list[list[Cell]] = []
    if topic is not None:
        with options.admin() as admin:
            entries = admin.describe_configs(topic)
        for name, (value, where) in sorted(entries.items()):
            if (not names or name in names) and (not changed or where != "default"):
                rows.append([name, value, where])
    else:
        loaded = options.load()
        for name in names:
            check_name(name, "config show")
        for name in names or settings():
            where = loaded.origins.get(name, "default")
            if not changed or where != "default":
                rows.append([name, _text(_value(loaded.config, name)), where])
    columns: tuple[str, ...] = ("SETTING", "VALUE", "ORIGIN")
    if not origin and not options.is_json:
        columns, rows = columns[:2], [row[:2] for row in rows]
    print_table(options, columns, rows)


def _value(found: ServerConfig, name: str) -> Any:
    section, _, key = name.partition(".")
    return getattr(getattr(found, section), key)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@config.command(epilog=examples("config explain"))
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_settings)
@shared_options
@pass_options
def explain(options: Options, names: tuple[str, ...]) -> None:
    """Say what settings mean, their type, bounds and default. Without NAME: all.

    NAME is one setting, a section such as topics or client.producer, or the last part of a name.
    """
    chosen = _chosen(names)
    if options.is_json:
        keys = ("name", "type", "default", "text")
        print_json([{**dict(zip(keys, entry, strict=True)), "reload": entry.name in RELOADABLE} for entry in chosen])
        return
    for entry in chosen:
        click.echo(f"{entry.name} = {_text(entry.default)}")
        reload = "; kill -HUP applies it" if entry.name in RELOADABLE else ""
        click.echo(f"    {entry.text}\n    {entry.type}{reload}")


def _known() -> dict[str, Setting]:
    """Every setting of the server and of clients by its name."""
    from zbroker.client.settings import CLIENTS, client_settings

    return {name: one for name, one in settings().items() if name not in CLIENTS} | client_settings()


def _chosen(names: tuple[str, ...]) -> list[Setting]:
    """The settings that are meant, of the server and of clients, in the order of the schema."""
    known = _known()
    meant: set[str] = set()
    for name in names or known:
        found = {name} & known.keys() or {one for one in known if one.startswith(f"{name}.")}
        found = found or {one for one in known if one.rpartition(".")[2] == name.replace(".", "_")}
        if not found:
            check_name(name, "config explain", [*known, *(one.rpartition(".")[2] for one in known)])
        meant |= found
    return [one for one in known.values() if one.name in meant]


@config.command(short_help="Check a zbroker.toml.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@shared_options
@pass_options
def check(options: Options, file: Path) -> None:
    """Check a zbroker.toml: names, types, bounds, paths, and what does not go together."""
    loaded = load(file, environment={}, overrides=options.settings)
    paths = paths_for(loaded.config)
    from zbroker.client.settings import GROUP_SETTINGS, ConsumerSettings, ProducerSettings, read_settings

    client = loaded.config.client
    for kind, section in ((ProducerSettings, client.producer), (ConsumerSettings, client.consumer)):
        read_settings(kind, {name: value for name, value in section.items() if name not in GROUP_SETTINGS}, {})
    copies, in_sync = loaded.config.broker.replication_factor, loaded.config.topics.min_insync_replicas
    if in_sync > copies:
        options.note(
            f"topics.min_insync_replicas {in_sync} is above broker.replication_factor {copies}: a topic can be created "
            f"with -r {in_sync} or more only"
        )
    if options.is_json:
        print_json({"file": str(file), "settings": len(loaded.origins), "data_dir": str(paths.data_dir)})
    else:
        click.echo(f"{file}: {len(loaded.origins)} settings, all right; data {paths.data_dir}, run {paths.run_dir}")
