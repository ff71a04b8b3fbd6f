"""`zbroker topics`: create, list, describe, alter, delete, grow, truncate."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from zbroker.cli.examples import examples
from zbroker.cli.options import Options, pass_options, shared_options, shared_options_without
from zbroker.cli.output import Cell, print_json, print_table
from zbroker.cli.quantities import Place, parse_pairs, parse_span
from zbroker.cli.topic_names import complete_topics
from zbroker.errors import OffsetOutOfRangeError, TopicAlreadyExistsError, UnknownTopicOrPartitionError
from zbroker.ids import TopicPartition

if TYPE_CHECKING:
    from zbroker.client.admin import AdminClient, CopyDescription, TopicDescription

_COLUMNS: Final = (
    "PARTITION", "LEADER", "PID", "EPOCH", "REPLICAS", "ISR", "ELR", "START-OFFSET", "HIGH-WATERMARK", "END-OFFSET",
    "LAG", "SIZE",
)  # fmt: skip
_CONFIG_HELP: Final = "A setting, such as retention.ms=7d or segment.bytes=64MiB; repeatable."


@click.group()
def topics() -> None:
    """Create, list, describe, alter, delete, grow and truncate topics."""


@topics.command(epilog=examples("topics create"))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-p", "--partitions", type=click.IntRange(1), help="Partitions.  [default: the broker's]")
@click.option("-r", "--replication-factor", type=click.IntRange(1), help="Copies.  [default: the broker's]")
@click.option("--config", "--set", "settings", multiple=True, metavar="NAME=VALUE", help=_CONFIG_HELP)
@click.option("--if-not-exists", is_flag=True, help="A topic that exists is left as it is.")
@click.option("--dry-run", is_flag=True, help="Check, but create nothing.")
@shared_options_without("--config")
@pass_options
def create(
    options: Options,
    names: tuple[str, ...],
    partitions: int | None,
    replication_factor: int | None,
    settings: tuple[str, ...],
    if_not_exists: bool,
    dry_run: bool,
) -> None:
    """Create topics."""
    from zbroker.client.admin import NewTopic

    config: Mapping[str, object] = parse_pairs(settings, "--config")
    made = []
    with options.admin() as admin:
        for name in names:
            topic = NewTopic(name, partitions, replication_factor, config)
            try:
                admin.create_topics([topic], validate_only=dry_run, timeout_ms=options.timeout_ms)
            except TopicAlreadyExistsError:
                if not if_not_exists:
                    raise
                options.note(f"{name}: exists already")
                continue
            made.append(name)
            if not options.is_json:
                options.note(f"{name}: {'can be created' if dry_run else 'created'}")
    if options.is_json:
        print_json({"created": [] if dry_run else made})


@topics.command(name="list")
@click.option("-l", "--long", "is_long", is_flag=True, help="With partitions, records and sizes.")
@click.option("--internal", is_flag=True, help="Also those that begin with two underscores.")
@shared_options
@pass_options
def list_topics(options: Options, is_long: bool, internal: bool) -> None:
    """List topics, a name a line."""
    with options.admin() as admin:
        names = admin.list_topics(include_internal=internal)
        if not is_long:
            if options.is_json:
                print_json(names)
            for name in names if not options.is_json else ():
                click.echo(name)
            return
        found = admin.describe_topics(names) if names else {}
    rows: list[list[Cell]] = []
    for name, topic in found.items():
        known = [p for p in topic.partitions if p.high_watermark is not None and p.log_start is not None]
        records = sum((p.high_watermark or 0) - (p.log_start or 0) for p in known)
        size_bytes = sum(p.size_bytes or 0 for p in known)
        is_known = len(known) == len(topic.partitions)
        rows.append(
            [name, len(topic.partitions), records if is_known else None, size_bytes if is_known else None]
        )  # fmt: skip
    print_table(options, ("TOPIC", "PARTITIONS", "RECORDS", "SIZE"), rows)


@topics.command(short_help="Show partitions, leaders, copies, offsets and sizes.")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_topics)
@shared_options
@pass_options
def describe(options: Options, names: tuple[str, ...]) -> None:
    """Describe topics (default: all): partitions, leaders, copies, offsets, sizes."""
    import msgspec

    with options.admin() as admin:
        found = admin.describe_topics(names or None)
        ends = _ends_by_request(admin, found)
    if options.is_json:
        print_json([msgspec.to_builtins(topic) for topic in found.values()])
        return
    for number, topic in enumerate(found.values()):
        if number:
            click.echo()
        rows = [_row(topic.name, partition, ends) for partition in topic.partitions]
        settings = ",".join(f"{key}={value}" for key, value in sorted(topic.config.items()))
        factor = max((len(partition.replicas) for partition in topic.partitions), default=0)
        click.echo(
            f"Topic: {topic.name}  TopicId: {topic.topic_id:08x}  PartitionCount: {len(topic.partitions)}  "
            f"ReplicationFactor: {factor}  Configs: {settings}"
        )
        print_table(options, _COLUMNS, rows)


def _row(topic: str, partition: Any, ends: Mapping[TopicPartition, tuple[int, int]]) -> list[Cell]:
    start, end = partition.log_start, partition.high_watermark
    if start is None or end is None:
        start, end = ends.get(TopicPartition(topic, partition.partition), (None, None))
    return [
        partition.partition,
        partition.leader_name,
        partition.leader_pid,
        partition.leader_epoch,
        _names(partition.copies),
        _names(copy for copy in partition.copies if copy.is_in_sync),
        _names(copy for copy in partition.copies if copy.is_eligible) or None,
        start,
        end,
        end if partition.log_end is None else partition.log_end,
        _lags(partition.copies),
        partition.size_bytes,
    ]


def _names(copies: Iterable[CopyDescription]) -> str:
    return ",".join(copy.process for copy in copies)


def _lags(copies: Iterable[CopyDescription]) -> str | None:
    """Of each follower: how many records it is behind its leader, `?` where the leader has not heard of it."""
    behind = [copy for copy in copies if not copy.is_leader]
    return ",".join("?" if copy.lag_records is None else str(copy.lag_records) for copy in behind) or None


def _ends_by_request(
    admin: AdminClient, found: Mapping[str, TopicDescription]
) -> dict[TopicPartition, tuple[int, int]]:
    """Offsets of partitions whose leader's board cannot be read from here: over tcp, the leader is asked."""
    asked = [
        TopicPartition(topic.name, partition.partition)
        for topic in found.values()
        for partition in topic.partitions
        if partition.leader is not None and partition.high_watermark is None
    ]
    if not asked:
        return {}
    starts = admin.list_offsets(dict.fromkeys(asked, "earliest"))
    ends = admin.list_offsets(dict.fromkeys(asked, "latest"))
    return {tp: (starts[tp].offset, ends[tp].offset) for tp in asked}


@topics.command(epilog=examples("topics alter"))
@click.argument("name", shell_complete=complete_topics)
@click.option("--config", "--set", "settings", multiple=True, metavar="NAME=VALUE", help=_CONFIG_HELP)
@click.option("--unset", multiple=True, metavar="NAME", help="Back to the broker's default; repeatable.")
@shared_options_without("--config")
@pass_options
def alter(options: Options, name: str, settings: tuple[str, ...], unset: tuple[str, ...]) -> None:
    """Change a topic's own settings. Without --config and --unset: show those in force."""
    with options.admin() as admin:
        if settings or unset:
            admin.alter_configs(name, parse_pairs(settings, "--config"), unset=list(unset))
        in_force = admin.describe_configs(name)
    print_table(options, ("SETTING", "VALUE", "ORIGIN"), [[key, *entry] for key, entry in sorted(in_force.items())])


@topics.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_topics)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--if-exists", is_flag=True, help="An absent topic is no error.")
@shared_options
@pass_options
def delete(options: Options, names: tuple[str, ...], yes: bool, if_exists: bool) -> None:
    """Delete topics and all their records. Asks first on a terminal."""
    if not yes and sys.stdin.isatty():
        click.confirm(f"delete {', '.join(names)} and all records?", abort=True, err=True)
    gone = []
    with options.admin() as admin:
        for name in names:
            try:
                admin.delete_topics([name], timeout_ms=options.timeout_ms)
            except UnknownTopicOrPartitionError:
                if not if_exists:
                    raise
                continue
            gone.append(name)
            if not options.is_json:
                options.note(f"{name}: deleted")
    if options.is_json:
        print_json({"deleted": gone})


@topics.command()
@click.argument("name", shell_complete=complete_topics)
@click.option("--to", "total", required=True, type=click.IntRange(1), help="How many it shall have.")
@shared_options
@pass_options
def partitions(options: Options, name: str, total: int) -> None:
    """Give a topic more partitions. New keys may then fall elsewhere."""
    with options.admin() as admin:
        admin.create_partitions({name: total}, timeout_ms=options.timeout_ms)
    if options.is_json:
        print_json({"topic": name, "partitions": total})
    else:
        options.note(f"{name}: {total} partitions")


@topics.command(epilog=examples("topics truncate"))
@click.argument("name", shell_complete=complete_topics)
@click.option("--before", required=True, metavar="OFFSET", help="N, end, or a time: @2026-11-23T10:00, @-1h.")
@click.option("-p", "--partition", "chosen", multiple=True, type=click.IntRange(0), help="Only these; repeatable.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@shared_options
@pass_options
def truncate(options: Options, name: str, before: str, chosen: tuple[int, ...], yes: bool) -> None:
    """Delete the records before an offset or a time. Asks first on a terminal."""
    place, stop = parse_span(before, "--before")
    if stop is not None or place.kind in ("start", "last"):
        raise click.BadParameter(f"--before {before!r}: an offset, end, or @time")
    if not yes and sys.stdin.isatty():
        click.confirm(f"delete the records of {name} before {before}?", abort=True, err=True)
    with options.admin() as admin:
        described = admin.describe_topics([name])[name]
        wanted = list(chosen) or [partition.partition for partition in described.partitions]
        tps = [TopicPartition(name, number) for number in wanted]
        starts = admin.delete_records(_cuts(admin, tps, place))
    rows: list[list[Cell]] = [[tp.topic, tp.partition, start] for tp, start in starts.items()]
    print_table(options, ("TOPIC", "PARTITION", "START-OFFSET"), rows)


def _cuts(admin: AdminClient, tps: list[TopicPartition], place: Place) -> dict[TopicPartition | tuple[str, int], int]:
    if place.kind == "offset":
        # Looked at before anything is deleted: half a truncation helps nobody.
        for tp, found in admin.list_offsets(dict.fromkeys(tps, "latest")).items():
            if found.offset < place.number:
                raise OffsetOutOfRangeError(
                    f"{tp.topic}:{tp.partition} ends at {found.offset}, before {place.number}; nothing was deleted",
                    hint="-p names the partitions; --before end deletes what is there",
                )
        return dict.fromkeys(tps, place.number)
    if place.kind == "end":
        return dict.fromkeys(tps, -1)
    # Where no record is that late, -1 comes back: everything lies before the time.
    return {tp: found.offset for tp, found in admin.list_offsets(dict.fromkeys(tps, place.number)).items()}
