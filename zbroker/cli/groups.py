"""`zbroker groups`: list, describe, delete consumer groups; reset, export and import what they have committed.

`describe` reads lag from the broker's files, so it says the same with the coordinator or the whole broker dead.
"""

from __future__ import annotations

import csv
import io
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click

from zbroker.cli import group_view
from zbroker.cli.examples import examples
from zbroker.cli.failures import CHECK_FAILED, OK
from zbroker.cli.group_names import complete_groups
from zbroker.cli.group_view import GroupView, Row
from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.cli.output import Cell, duration_text, print_json, print_table
from zbroker.cli.quantities import parse_interval_s, parse_time_ms
from zbroker.cli.topic_names import complete_topics
from zbroker.errors import GroupIdNotFoundError
from zbroker.ids import TopicPartition

if TYPE_CHECKING:
    from zbroker.client.admin import AdminClient

_LAG_COLUMNS: Final = (
    "GROUP", "TOPIC", "PARTITION", "CURRENT-OFFSET", "LOG-END-OFFSET", "LAG", "LAG-TIME", "CONSUMER-ID", "PID",
    "CLIENT-ID",
)  # fmt: skip
_MEMBER_COLUMNS: Final = (
    "GROUP", "CONSUMER-ID", "INSTANCE-ID", "CLIENT-ID", "PID", "STATE", "EPOCH", "PARTITIONS", "ASSIGNMENT",
)  # fmt: skip
_CSV: Final = ("group", "topic", "partition", "offset")
_STATES: Final = ("Empty", "Assigning", "Reconciling", "Stable")
_CLEAR: Final = "\x1b[H\x1b[2J"
_OFFSET_MAX: Final = (1 << 63) - 1
_S_MAX_EXACT: Final = 60


@click.group()
def groups() -> None:
    """List, describe and delete consumer groups; reset, export and import their offsets."""


@groups.command(name="list")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(_STATES), help="Only groups in this one; repeatable."
)
@shared_options
@pass_options
def list_groups(options: Options, states: tuple[str, ...]) -> None:
    """List groups. With the coordinator away: their names alone."""
    paths = group_view.find_paths(options)
    rows: list[list[Cell]]
    try:
        with options.admin() as admin:
            found = admin.list_groups(states=states, timeout_ms=group_view.ASK_MS if paths is not None else None)
        rows = [[one.group_id, one.state, one.members, one.assignor or None, one.group_epoch] for one in found]
    except group_view.AWAY as error:
        if paths is None:
            raise
        options.note(f"the coordinator does not answer ({error.message}): names as the files say")
        names = group_view.group_ids_from_files(paths) if not states else []
        rows = [[name, group_view.UNKNOWN, None, None, None] for name in names]
    print_table(options, ("GROUP", "STATE", "MEMBERS", "ASSIGNOR", "EPOCH"), rows)


@groups.command(epilog=examples("groups describe"), short_help="Show where groups are, and how far behind.")
@click.argument("names", nargs=-1, required=True, metavar="GROUP...", shell_complete=complete_groups)
@click.option("--members", "what", flag_value="members", help="Show the members.")
@click.option("--state", "what", flag_value="state", help="Show the state alone.")
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option("--interval", default="1s", show_default=True, metavar="TIME", help="Between two looks of --watch.")
@click.option("--max-lag", type=click.IntRange(0), metavar="N", help="Exit with 4 if a partition is further behind.")
@shared_options
@pass_options
def describe(
    options: Options, names: tuple[str, ...], what: str | None, watch: bool, interval: str, max_lag: int | None
) -> int:
    """Show where groups are, and how far behind: in records, and in time from the oldest record that is not committed
    to the newest one.

    Works with the coordinator or the whole broker down, on the broker's host.
    """
    interval_s = parse_interval_s(interval, "--interval")
    while True:
        views = group_view.look(options, names)
        if watch and sys.stdout.isatty():
            click.echo(_CLEAR, nl=False)
        _show(options, views, what)
        if not watch:
            break
        sys.stdout.flush()
        time.sleep(interval_s)
    if max_lag is None:
        return OK
    behind = [(view, row) for view in views for row in view.rows if (row.lag or 0) > max_lag]
    for view, row in behind:
        options.note(f"{view.group_id}: {row.topic}:{row.partition} is {row.lag:,} records behind")
    return CHECK_FAILED if behind else OK


def _show(options: Options, views: list[GroupView], what: str | None) -> None:
    if options.is_json:
        print_json([_document(view) for view in views])
        return
    for view in views:
        title = (
            f"group {view.group_id}  state {view.state}  members {len(view.members)}  "
            f"assignor {view.assignor or '-'}  total lag {view.total_lag:,}"
        )
        if what == "state":
            columns = ("GROUP", "STATE", "MEMBERS", "ASSIGNOR", "TOTAL-LAG")
            row: list[Cell] = [view.group_id, view.state, len(view.members), view.assignor or None, view.total_lag]
            print_table(options, columns, [row])
        elif what == "members":
            print_table(options, _MEMBER_COLUMNS, _member_rows(view), title=title)
        else:
            print_table(options, _LAG_COLUMNS, [_lag_row(view.group_id, one) for one in view.rows], title=title)


def _lag_row(group_id: str, row: Row) -> list[Cell]:
    return [
        group_id, row.topic, row.partition, row.committed, row.log_end, row.lag, _time_text(row.lag_ms), row.member_id,
        row.pid, row.client_id,
    ]  # fmt: skip


def _time_text(lag_ms: int | None) -> str | None:
    if lag_ms is None:
        return None
    return f"{lag_ms / 1000:.1f} s" if lag_ms < _S_MAX_EXACT * 1000 else duration_text(lag_ms / 1000)


def _held_by(view: GroupView, member_id: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row in view.rows:
        if row.member_id == member_id:
            found.setdefault(row.topic, []).append(row.partition)
    return found


def _member_rows(view: GroupView) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for one in view.members:
        held = _held_by(view, one.member_id)
        state = "away" if one.is_away else "revoking" if one.revoking else "reads" if one.owned else "waits"
        text = " ".join(f"{topic}:{','.join(map(str, numbers))}" for topic, numbers in sorted(held.items()))
        rows.append(
            [
                view.group_id, one.member_id, one.instance_id or None, one.client_id or None, one.pid or None, state,
                one.member_epoch, len(one.owned), text or None,
            ]
        )  # fmt: skip
    return rows


def _document(view: GroupView) -> dict[str, object]:
    members = [
        {
            "member_id": one.member_id, "instance_id": one.instance_id, "client_id": one.client_id, "pid": one.pid,
            "member_epoch": one.member_epoch, "topics": one.topics, "pattern": one.pattern, "is_away": one.is_away,
            "is_local": one.is_local, "polled_ago_ms": one.polled_ago_ms, "owned": _held_by(view, one.member_id),
        }
        for one in view.members
    ]  # fmt: skip
    partitions = [
        {
            "topic": row.topic, "partition": row.partition, "current_offset": row.committed,
            "log_end_offset": row.log_end, "lag": row.lag, "lag_ms": row.lag_ms, "member_id": row.member_id,
            "pid": row.pid, "client_id": row.client_id,
        }
        for row in view.rows
    ]  # fmt: skip
    return {
        "group": view.group_id, "state": view.state, "assignor": view.assignor, "total_lag": view.total_lag,
        "members": members, "partitions": partitions,
    }  # fmt: skip


@groups.command(short_help="Forget groups without members, and their offsets.")
@click.argument("names", nargs=-1, required=True, metavar="GROUP...", shell_complete=complete_groups)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@shared_options
@pass_options
def delete(options: Options, names: tuple[str, ...], yes: bool) -> None:
    """Forget groups that have no members, and what they have committed. Asks first on a terminal."""
    if not yes and sys.stdin.isatty():
        click.confirm(f"delete {', '.join(names)} and their offsets?", abort=True, err=True)
    gone = []
    with options.admin() as admin:
        for name in names:
            admin.delete_groups([name], timeout_ms=options.timeout_ms)
            gone.append(name)
            if not options.is_json:
                options.note(f"{name}: deleted")
    if options.is_json:
        print_json({"deleted": gone})


# --- offsets ---------------------------------------------------------------------------------------------------------


@groups.command(name="reset-offsets", epilog=examples("groups reset-offsets"))
@click.argument("name", metavar="GROUP", shell_complete=complete_groups)
@click.option(
    "-t", "--topic", "topics", multiple=True, required=True, shell_complete=complete_topics, help="Repeatable."
)
@click.option("-p", "--partition", "numbers", multiple=True, type=click.IntRange(0), help="Only these; repeatable.")
@click.option("--to-earliest", is_flag=True, help="To the first record that is there.")
@click.option("--to-latest", is_flag=True, help="Behind the last record.")
@click.option("--to-offset", type=click.IntRange(0), metavar="N", help="To this offset.")
@click.option("--shift-by", type=int, metavar="N", help="N records on; back, if negative.")
@click.option("--to-datetime", metavar="TIME", help="To the first record as late as this: ISO 8601, -1h or epoch ms.")
@click.option("--execute", is_flag=True, help="Do it. Without: show what would be done.")
@shared_options
@pass_options
def reset_offsets(
    options: Options,
    name: str,
    topics: tuple[str, ...],
    numbers: tuple[int, ...],
    to_earliest: bool,
    to_latest: bool,
    to_offset: int | None,
    shift_by: int | None,
    to_datetime: str | None,
    execute: bool,
) -> None:
    """Set where a group that has no members goes on. An offset out of the log's range becomes the nearer end."""
    given = [to_earliest, to_latest, to_offset is not None, shift_by is not None, to_datetime is not None]
    if sum(given) != 1:
        raise click.UsageError("one of --to-earliest, --to-latest, --to-offset, --shift-by, --to-datetime")
    place: int | str | datetime = "earliest" if to_earliest else "latest"
    if to_offset is not None:
        place = to_offset
    if to_datetime is not None:
        place = datetime.fromtimestamp(
            parse_time_ms(to_datetime.removeprefix("@"), option="--to-datetime") / 1000, tz=UTC
        )
    with options.admin() as admin:
        tps = _partitions(admin, topics, numbers)
        before = _committed(admin, name)
        places = dict.fromkeys(tps, place)
        if shift_by is not None:
            missing = [f"{tp.topic}:{tp.partition}" for tp in tps if tp not in before]
            if missing:
                raise click.UsageError(f"--shift-by: {name} has committed nothing in {', '.join(missing)}")
            places = {tp: max(0, before[tp] + shift_by) for tp in tps}
        found = admin.find_offsets(places)
        if execute:
            admin.alter_group_offsets(name, {**found})
    rows: list[list[Cell]] = [[name, *tp, before.get(tp), found[tp]] for tp in tps]
    print_table(options, ("GROUP", "TOPIC", "PARTITION", "CURRENT-OFFSET", "NEW-OFFSET"), rows)
    if not execute:
        options.note("nothing was changed: --execute does it")


def _partitions(admin: AdminClient, topics: tuple[str, ...], numbers: tuple[int, ...]) -> list[TopicPartition]:
    described = admin.describe_topics(topics)
    return [
        TopicPartition(name, number)
        for name in topics
        for number in (numbers or [one.partition for one in described[name].partitions])
    ]


def _committed(admin: AdminClient, name: str) -> dict[TopicPartition, int]:
    return {tp: one.offset for tp, one in admin.list_group_offsets(name).items()}


@groups.command(epilog=examples("groups export"), short_help="Print what groups have committed, for import.")
@click.argument("names", nargs=-1, required=True, metavar="GROUP...", shell_complete=complete_groups)
@shared_options
@pass_options
def export(options: Options, names: tuple[str, ...]) -> None:
    """Print what groups have committed, for `import`: lines of group,topic,partition,offset; with --json an array."""
    with options.admin() as admin:
        found = [(name, *tp, offset) for name in names for tp, offset in sorted(_committed(admin, name).items())]
        for name in names:
            if not any(line[0] == name for line in found):
                raise GroupIdNotFoundError(f"group {name!r} has committed nothing, or does not exist")
    if options.is_json:
        print_json([dict(zip(_CSV, line, strict=True)) for line in found])
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(_CSV)
    writer.writerows(found)


@groups.command(name="import", epilog=examples("groups import"), short_help="Set offsets as export wrote them.")
@click.argument("file", type=click.File("r"), metavar="FILE")
@click.option("--group", "into", metavar="GROUP", help="Into this group, whatever the file says.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@shared_options
@pass_options
def import_offsets(options: Options, file: io.TextIOBase, into: str | None, dry_run: bool) -> None:
    """Set what groups without members have committed, as FILE (-: stdin) says, which `export` has written."""
    wanted: dict[str, dict[TopicPartition, int]] = {}
    try:
        text = file.read()
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"not what `zbroker groups export` writes: {error}") from None
    for group_id, tp, offset in _read_lines(text):
        wanted.setdefault(into or group_id, {})[tp] = offset
    if not dry_run:
        with options.admin() as admin:
            for group_id, offsets in wanted.items():
                admin.alter_group_offsets(group_id, {**offsets})
    rows: list[list[Cell]] = [
        [group_id, *tp, offset] for group_id, offsets in wanted.items() for tp, offset in offsets.items()
    ]
    print_table(options, ("GROUP", "TOPIC", "PARTITION", "NEW-OFFSET"), rows)


def _read_lines(text: str) -> list[tuple[str, TopicPartition, int]]:
    try:
        if text.lstrip().startswith("["):
            import msgspec

            lines = [[one[name] for name in _CSV] for one in msgspec.json.decode(text)]
        else:
            lines = [line for line in csv.reader(text.splitlines()) if line and tuple(line) != _CSV]
        found = [
            (str(name), TopicPartition(str(topic), int(number)), int(offset)) for name, topic, number, offset in lines
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise click.BadParameter(f"not what `zbroker groups export` writes: {error}") from None
    for name, tp, offset in found:
        if not 0 <= offset <= _OFFSET_MAX:
            raise click.BadParameter(f"{name}: {offset} is no offset of {tp.topic}:{tp.partition}")
    return found
