"""`zbroker offsets`: where a topic's partitions begin and end, or which offset a time has."""

from __future__ import annotations

import click

from zbroker.cli.examples import examples
from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.cli.output import Cell, print_json, print_table
from zbroker.cli.quantities import parse_time_ms
from zbroker.cli.topic_names import complete_topics
from zbroker.ids import TopicPartition


@click.command(epilog=examples("offsets"))
@click.argument("topic", shell_complete=complete_topics)
@click.option(
    "--time", "when", metavar="earliest|latest|TIME", help="ISO 8601, -1h or epoch ms; prints topic:partition:offset."
)
@click.option("-p", "--partition", "chosen", multiple=True, type=click.IntRange(0), help="Only these; repeatable.")
@shared_options
@pass_options
def offsets(options: Options, topic: str, when: str | None, chosen: tuple[int, ...]) -> None:
    """Show the offsets of a topic's partitions.

    With --time: the first offset at or after that time, one topic:partition:offset a line, empty where no record is
    that late.
    """
    what: int | str | None = (
        when if when in (None, "earliest", "latest") else parse_time_ms((when or "").removeprefix("@"), option="--time")
    )
    with options.admin() as admin:
        described = admin.describe_topics([topic])[topic]
        numbers = list(chosen) or [partition.partition for partition in described.partitions]
        tps = [TopicPartition(topic, number) for number in numbers]
        if what is not None:
            found = admin.list_offsets(dict.fromkeys(tps, what))
            if options.is_json:
                print_json([{"topic": topic, "partition": tp.partition, "offset": found[tp].offset} for tp in tps])
                return
            for tp in tps:
                offset = found[tp].offset
                click.echo(f"{topic}:{tp.partition}:{offset if offset >= 0 else ''}")
            return
        starts = admin.list_offsets(dict.fromkeys(tps, "earliest"))
        ends = admin.list_offsets(dict.fromkeys(tps, "latest"))
    rows: list[list[Cell]] = [
        [topic, tp.partition, starts[tp].offset, ends[tp].offset, ends[tp].offset - starts[tp].offset] for tp in tps
    ]
    print_table(options, ("TOPIC", "PARTITION", "START-OFFSET", "END-OFFSET", "RECORDS"), rows)
