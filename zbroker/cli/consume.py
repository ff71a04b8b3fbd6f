"""`zbroker consume`: print records, from any place, for ever or up to a place."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from zbroker.cli.examples import examples
from zbroker.cli.group_names import complete_groups
from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.cli.quantities import Place, Span, parse_span
from zbroker.cli.record_format import Formatter, Record, json_lines, parse_format
from zbroker.cli.topic_names import complete_topics
from zbroker.errors import UnknownTopicOrPartitionError
from zbroker.ids import TopicPartition

if TYPE_CHECKING:
    from zbroker.client.consumer import Consumer

_GROUP_SPANS: Final = (Span(Place("start"), None), Span(Place("end"), None))
_RECORDS_MAX: Final = 5_000
_WAIT_MS: Final = 200  # how late Ctrl-C is noticed at the latest


@click.command(epilog=examples("consume"))
@click.argument("topics", nargs=-1, required=True, metavar="TOPIC...", shell_complete=complete_topics)
@click.option(
    "-o",
    "--offset",
    "where",
    metavar="WHERE",
    help="start, end, N, -N (the last N), @2026-11-23T10:00, @-1h; A:B reads from A up to B, :end what is there.  "
    "[default: end; of a group: where it has come to]",
)
@click.option(
    "-g",
    "--group",
    "group_id",
    metavar="GROUP",
    shell_complete=complete_groups,
    help="As a member of this group: commit what was printed. -o start|end: where the group has committed nothing.",
)
@click.option("-n", "--num", "count", type=click.IntRange(1), metavar="N", help="Stop after N records.")
@click.option("-p", "--partition", "chosen", multiple=True, type=click.IntRange(0), help="Only these; repeatable.")
@click.option("-e", "--exit", "stop_at_end", is_flag=True, help="Stop at the end, as it is now.")
@click.option(
    "-f",
    "--format",
    "template",
    default="%v\\n",
    show_default=True,
    metavar="FORMAT",
    help="%t topic %p partition %o offset %T time %k key %v value %h headers; %v{hex}, %T{iso}.",
)
@click.option("--grep", metavar="RE", help="Only records whose value matches.")
@shared_options
@pass_options
def consume(
    options: Options,
    topics: tuple[str, ...],
    where: str | None,
    group_id: str | None,
    count: int | None,
    chosen: tuple[int, ...],
    stop_at_end: bool,
    template: str,
    grep: str | None,
) -> None:
    """Print records of topics; with --json an object a line. No position changes without --group."""  # fmt: skip
    span = parse_span(where or "end")
    if group_id is not None and (chosen or span not in _GROUP_SPANS):
        raise click.UsageError("--group goes with -o start or -o end alone, and without -p")
    if stop_at_end and span.stop is None:
        span = Span(span.start, Place("end"))
    formatter = json_lines if options.is_json else parse_format(template)
    try:
        pattern = re.compile(grep.encode()) if grep is not None else None
    except re.error as error:
        raise click.BadParameter(f"--grep {grep!r}: {error}") from None
    if group_id is not None:
        reset = "earliest" if span.start.kind == "start" else "latest"
        settings = {"group_id": group_id, "auto_offset_reset": reset, "enable_auto_commit": False}
        with options.consumer(**settings) as consumer:
            consumer.subscribe(topics)
            wanted = Filter(pattern, {}, {})
            shown = _print_as_member(consumer, formatter, wanted, count, stop_at_end=span.stop is not None)
        options.note(f"{shown:,} records", level=1)
        return
    with options.consumer() as consumer:
        tps = _partitions(consumer, topics, chosen)
        consumer.assign(tps)
        floors, stops = _begin(options, consumer, tps, span)
        shown = _print(consumer, formatter, Filter(pattern, floors, stops), count)
    options.note(f"{shown:,} records", level=1)


def _partitions(consumer: Consumer[Any, Any], topics: Iterable[str], chosen: Iterable[int]) -> list[TopicPartition]:
    found = []
    for topic in topics:
        there = consumer.partitions_for_topic(topic)
        if not there:
            raise UnknownTopicOrPartitionError(f"topic {topic!r} does not exist")
        for partition in chosen:
            if partition not in there:
                raise UnknownTopicOrPartitionError(f"{topic} has partitions 0 to {len(there) - 1}, not {partition}")
        found += [TopicPartition(topic, partition) for partition in sorted(chosen or there)]
    return found


Offsets = dict[TopicPartition, int]


class Filter(NamedTuple):
    """Which of the records that are read shall be shown: those that match, from a floor on, below a stop."""

    pattern: re.Pattern[bytes] | None
    floors: Offsets
    stops: Offsets

    def wanted(self, tp: TopicPartition, records: list[Record]) -> list[Record]:
        """Those of one partition."""
        stop, floor = self.stops.get(tp), self.floors.get(tp)
        if stop is not None and records[-1].offset >= stop:
            records = [record for record in records if record.offset < stop]
        if floor is not None:
            records = [record for record in records if record.offset >= floor]
        if self.pattern is not None:
            search = self.pattern.search
            records = [record for record in records if record.value is not None and search(record.value)]
        return records


def _begin(
    options: Options, consumer: Consumer[Any, Any], tps: list[TopicPartition], span: Span
) -> tuple[Offsets, Offsets]:
    """Seek each partition to where it shall begin. Gives the offsets behind today's end from which on records are
    wanted, and those to stop at."""
    starts = _resolve(consumer, tps, span.start)
    stops = _resolve(consumer, tps, span.stop) if span.stop is not None else {}
    floors: Offsets = {}
    if span.start.kind == "offset":
        ends = consumer.end_offsets(tps)
        floors = {tp: starts[tp] for tp in tps if starts[tp] > ends[tp]}
    for tp, floor in floors.items():
        starts[tp] = ends[tp]
        if stops.get(tp, floor + 1) > floor:
            options.note(f"{tp.topic}:{tp.partition} ends at offset {ends[tp]}: waiting for {floor}")
    for tp in tps:
        if tp in stops and starts[tp] >= stops[tp]:
            consumer.pause(tp)
        consumer.seek(tp, starts[tp])
    return floors, stops


def _resolve(consumer: Consumer[Any, Any], tps: list[TopicPartition], place: Place) -> dict[TopicPartition, int]:
    first = consumer.beginning_offsets(tps)
    last = consumer.end_offsets(tps)
    if place.kind == "start":
        return first
    if place.kind == "end":
        return last
    if place.kind == "last":
        return {tp: max(first[tp], last[tp] - place.number) for tp in tps}
    if place.kind == "time":
        found = consumer.offsets_for_times(dict.fromkeys(tps, place.number))
        return {tp: last[tp] if (at := found[tp]) is None else at.offset for tp in tps}
    # An offset below the beginning was deleted: reading begins with what is left.
    return {tp: max(first[tp], place.number) for tp in tps}


def _print(consumer: Consumer[Any, Any], formatter: Formatter, chosen: Filter, count: int | None) -> int:
    out = sys.stdout.buffer
    stops = chosen.stops
    left = set(stops) - consumer.paused()
    shown = 0
    while (not stops or left) and (count is None or shown < count):
        for tp, records in consumer.poll(timeout_ms=_WAIT_MS, max_records=_RECORDS_MAX).items():
            wanted = chosen.wanted(tp, records)
            if count is not None:
                wanted = wanted[: count - shown]
            out.write(formatter(wanted))
            shown += len(wanted)
        out.flush()
        for tp in [tp for tp in left if consumer.position(tp) >= stops[tp]]:
            left.discard(tp)
            consumer.pause(tp)
    return shown


def _print_as_member(
    consumer: Consumer[Any, Any], formatter: Formatter, wanted: Filter, count: int | None, *, stop_at_end: bool
) -> int:
    """Print what this member is given, and commit what was printed, before the next is asked for."""
    out = sys.stdout.buffer
    shown = 0
    while count is None or shown < count:
        left = _RECORDS_MAX if count is None else min(_RECORDS_MAX, count - shown)
        found = consumer.poll(timeout_ms=_WAIT_MS, max_records=left)
        for tp, records in found.items():
            matching = wanted.wanted(tp, records)
            out.write(formatter(matching))
            shown += len(matching)
        out.flush()
        if found:
            consumer.commit()
        elif stop_at_end and consumer.assignment() and not any(consumer.lag().values()):
            break
    return shown
