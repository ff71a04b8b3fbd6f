"""`zbroker cluster`: the processes and the copies that they have; elect, move, drain."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Final

import click
from click.shell_completion import CompletionItem

from zbroker import ids
from zbroker.cli.examples import examples
from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.cli.output import Cell, print_json, print_table, progress
from zbroker.cli.topic_names import complete_partitions, complete_topics, options_for_completion
from zbroker.client.descriptions import TopicDescription
from zbroker.errors import RequestTimedOutError
from zbroker.ids import TopicPartition

_COLUMNS: Final = ("PROCESS", "PID", "STATE", "COPIES", "LEADS", "IN-SYNC", "BEHIND")
_WAIT_MS: Final = 600_000
_BEGIN_MS: Final = 1_000
_LOOK_S: Final = 0.2


@click.group()
def cluster() -> None:
    """Show the processes and their copies; have preferred copies lead; move copies."""


def complete_processes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of workers and replicas. Empty when no broker answers in half a second."""
    try:
        with options_for_completion(context).admin() as admin:
            names = [process.name for process in admin.describe_processes()]
        return [CompletionItem(name) for name in names if "-" in name and name.startswith(incomplete)]
    except Exception:
        return []  # A shell that completes has no place for an error.


@cluster.command(short_help="Show each process with its copies.")
@shared_options
@pass_options
def describe(options: Options) -> None:
    """Show each process: its copies, how many lead, are in sync, or are behind."""
    with options.admin() as admin:
        info = admin.describe_cluster()
        topics = admin.describe_topics()
    rows: list[list[Cell]] = []
    copies = [copy for topic in topics.values() for partition in topic.partitions for copy in partition.copies]
    for process in info.processes:
        own = [copy for copy in copies if copy.process == process.name]
        in_sync = sum(copy.is_in_sync for copy in own)
        leads = sum(copy.is_leader for copy in own)
        pid = ids.pid_of(process.incarnation) if process.incarnation else None
        rows.append([process.name, pid, process.state, len(own), leads, in_sync, len(own) - in_sync])
    if not options.is_json:
        leaderless = sum(partition.leader is None for topic in topics.values() for partition in topic.partitions)
        click.echo(
            f"Cluster: {info.cluster_id}  Software: {info.software}  Data: {info.data_dir}\n"
            f"Topics: {info.topic_count}  Partitions: {info.partition_count}  WithoutLeader: {leaderless}"
        )
    print_table(options, _COLUMNS, rows)


@cluster.command(name="elect-leaders")
@click.option("-t", "--topic", metavar="TOPIC", shell_complete=complete_topics, help="Only this topic's partitions.")
@click.option("-p", "--partition", "numbers", multiple=True, type=click.IntRange(0), help="Only these; repeatable.")
@click.option("--unclean", is_flag=True, help="Where no copy in sync is left: take another, and LOSE what it lacks.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask (--unclean).")
@shared_options
@pass_options
def elect_leaders(options: Options, topic: str | None, numbers: tuple[int, ...], unclean: bool, yes: bool) -> int:
    """Have the preferred copies lead again. Exits with 4 if one cannot.

    The coordinator does so by itself each second; this does it now, and says why one cannot.
    """
    if numbers and topic is None:
        raise click.UsageError("--partition needs --topic")
    if unclean and not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("--unclean loses records; say --yes if that is what you want")
        click.confirm("records that the new leaders do not have are lost; go on?", abort=True, err=True)
    with options.admin() as admin:
        asked = None
        if topic is not None:
            known = [partition.partition for partition in admin.describe_topics([topic])[topic].partitions]
            asked = [TopicPartition(topic, number) for number in numbers or known]
        found = admin.elect_leaders(asked, unclean=unclean, timeout_ms=options.timeout_ms, raise_errors=False)
    rows: list[list[Cell]] = [[tp.topic, tp.partition, error or "done"] for tp, error in sorted(found.items())]
    print_table(options, ("TOPIC", "PARTITION", "RESULT"), rows)
    return 4 if any(found.values()) else 0


@cluster.command(epilog=examples("cluster move"), short_help="Move a copy of a partition to another process.")
@click.argument("partition", metavar="TOPIC:PARTITION", shell_complete=complete_partitions)
@click.option("--to", "target", required=True, metavar="PROCESS", shell_complete=complete_processes, help="worker-1")
@click.option("--from", "source", metavar="PROCESS", shell_complete=complete_processes, help="[default: the leader]")
@click.option("--no-wait", is_flag=True, help="Return when it has begun.")
@shared_options
@pass_options
def move(options: Options, partition: str, target: str, source: str | None, no_wait: bool) -> None:
    """Move a copy of TOPIC:PARTITION, such as pay:2, to another process. Clients go on meanwhile."""
    topic, colon, number = partition.rpartition(":")
    if not colon or not number.isdecimal():
        raise click.BadParameter(f"{partition!r}: TOPIC:PARTITION, such as pay:2")
    tp = TopicPartition(topic, int(number))

    def ask(timeout_ms: int) -> list[TopicPartition]:
        with options.admin() as admin:
            admin.move(tp, target, source=source, timeout_ms=timeout_ms)
        return [tp]

    def left(topics: dict[str, TopicDescription]) -> int:
        partitions = topics[topic].partitions if topic in topics else []
        copies = [copy for one in partitions if one.partition == tp.partition for copy in one.copies]
        return int(not any(copy.process == target and copy.is_in_sync for copy in copies))

    _follow(options, ask, left, f"moving {partition}", no_wait=no_wait)


@cluster.command(epilog=examples("cluster drain"), short_help="Move every copy of a process to the others.")
@click.argument("process", shell_complete=complete_processes)
@click.option("--no-wait", is_flag=True, help="Return when it has begun.")
@shared_options
@pass_options
def drain(options: Options, process: str, no_wait: bool) -> None:
    """Move every copy of PROCESS, such as worker-0, to the others."""

    def ask(timeout_ms: int) -> list[TopicPartition]:
        with options.admin() as admin:
            return admin.drain(process, timeout_ms=timeout_ms)

    def left(topics: dict[str, TopicDescription]) -> int:
        every = [copy for topic in topics.values() for one in topic.partitions for copy in one.copies]
        return sum(copy.process == process for copy in every)

    _follow(options, ask, left, f"draining {process}", no_wait=no_wait)


def _follow(
    options: Options,
    ask: Callable[[int], list[TopicPartition]],
    left: Callable[[dict[str, TopicDescription]], int],
    what: str,
    *,
    no_wait: bool,
) -> None:
    """Ask in a thread, and show meanwhile how much is left. Ctrl-C ends the showing: what was begun goes on."""
    if no_wait:
        try:
            _tell(options, what, ask(_BEGIN_MS))
        except RequestTimedOutError:
            if options.is_json:
                print_json({"is_done": False, "moved": []})
            else:
                options.note(f"{what}: begun; zbroker topics describe shows how far it is")
        return
    moved: list[TopicPartition] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            moved.extend(ask(_WAIT_MS))
        except BaseException as error:
            errors.append(error)

    with options.admin() as admin:
        last = total = left(admin.describe_topics())
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        with progress(options, what, total, unit="copies") as advance:
            while thread.is_alive():
                thread.join(_LOOK_S)
                now = left(admin.describe_topics())
                advance(max(0, last - now))
                last = min(last, now)
    if errors:
        raise errors[0]
    _tell(options, what, moved)


def _tell(options: Options, what: str, moved: list[TopicPartition]) -> None:
    if options.is_json:
        print_json({"is_done": True, "moved": [{"topic": tp.topic, "partition": tp.partition} for tp in moved]})
    else:
        options.note(f"{what}: done, {len(moved)} {'copy' if len(moved) == 1 else 'copies'}")
