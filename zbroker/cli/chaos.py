"""`zbroker chaos` and `zbroker soak`: faults under load, and a check of everything that clients were told."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import click
import msgspec

from zbroker.cli.examples import examples
from zbroker.cli.failures import INTERRUPTED
from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.cli.output import print_json
from zbroker.config.load import parse_duration_ms
from zbroker.errors import ConfigError
from zbroker.load.chaos import ChaosReport, Watch, run_chaos
from zbroker.load.plan import ChaosError, Plan
from zbroker.load.soak import PROFILES, Soak, SoakError
from zbroker.shm.owned_directory import OwnedDirectory

CHECK_FAILED: Final = 4


class Attached(NamedTuple):
    """A broker that runs already."""

    bootstrap_servers: str
    boards_dir: Path


def _seconds(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        found_s = parse_duration_ms(text if text[-1:].isalpha() else f"{text}s", f"--{parameter.name}") / 1000
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None
    if found_s <= 0:
        raise click.BadParameter(f"{text!r} is not above 0; write it as 250ms, 10s, 5m, 1h or 7d")
    return found_s


@click.command(epilog=examples("chaos"))
@click.option("--seed", type=int, help="Draws the same faults again.  [default: a new one, printed]")
@click.option("--duration", default="60s", show_default=True, callback=_seconds, metavar="TIME", help="Time of faults.")
@click.option(
    "--every", default="1200ms", show_default=True, callback=_seconds, metavar="TIME", help="Mean between two."
)
@click.option("--kills", default=3, show_default=True, type=click.IntRange(0), help="Weight of SIGKILL.")
@click.option("--pauses", default=1, show_default=True, type=click.IntRange(0), help="Weight of SIGSTOP.")
@click.option("--moves", callback=_seconds, metavar="TIME", help="Move copies too, with this pause between two moves.")
@click.option("--acks", default="all", show_default=True, type=click.Choice(["1", "all", "fsync"]))
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 64), help="Workers of its own broker.")
@click.option(
    "--replicas", default=2, show_default=True, type=click.IntRange(0, 64), help="Replicas of its own broker."
)
@click.option("--copies", "-r", default=3, show_default=True, type=click.IntRange(1), help="Replication factor.")
@click.option("--attach", metavar="URL", help="Try a broker that runs already, instead of one of its own. Needs --yes.")
@click.option("--yes", is_flag=True, help="Its processes may be killed, and topics be made on it.")
@shared_options
@pass_options
def chaos(
    options: Options,
    seed: int | None,
    duration: float,
    every: float,
    kills: int,
    pauses: int,
    moves: float | None,
    acks: str,
    workers: int,
    replicas: int,
    copies: int,
    attach: str | None,
    yes: bool,
) -> int:
    """Kill and pause processes under load, then check every record.

    Producers and consumers run all the while and are hit as well. At the end one reader that nobody disturbs reads
    everything: nothing acknowledged may be missing, nothing may stand twice or out of order. Exits with 4 if a promise
    was broken, and keeps the history.
    """
    if attach is not None and not yes:
        raise click.UsageError(f"processes of {attach} would be killed: say --yes")
    if attach is None and copies > workers + replicas:
        raise click.UsageError(
            f"--copies {copies}: each has a process of its own, and there are {workers} workers, {replicas} replicas"
        )
    if not kills and not pauses and not moves:
        raise click.UsageError("--kills and --pauses are both 0, and no --moves: nothing would happen")
    plan = Plan(
        seed=random.SystemRandom().randrange(1 << 32) if seed is None else seed,
        duration_s=duration,
        fault_interval_s=every,
        kills=kills,
        pauses=pauses,
        move_interval_s=moves or 0.0,
        acks=acks,
        replication_factor=copies,
        min_insync_replicas=min(2, copies),
    )
    options.note(f"seed {plan.seed}")
    with OwnedDirectory.make("zbroker-chaos-") as directory, _target(attach, workers, replicas) as target:
        try:
            report = run_chaos(plan, target, directory, _watch(options))
        except ChaosError as error:
            raise click.ClickException(f"{error} (seed {plan.seed})") from error
        if report.history:
            kept = Path(tempfile.gettempdir()) / f"zbroker-chaos-{plan.seed}"
            shutil.copytree(directory, kept, ignore=shutil.ignore_patterns("owner-*"), dirs_exist_ok=True)
            report.history = str(kept / Path(report.history).name)
    if options.is_json:
        print_json({**msgspec.to_builtins(report), "is_sound": report.is_sound})
    else:
        click.echo(text_of(report))
    return 0 if report.is_sound else CHECK_FAILED


@contextmanager
def _target(attach: str | None, workers: int, replicas: int) -> Iterator[Attached]:
    if attach is None:
        from zbroker.testing import Broker

        with Broker(workers=workers, replicas=replicas) as broker:
            yield Attached(broker.bootstrap_servers, broker.paths.boards_dir)
        return
    from zbroker.config.paths import paths_for
    from zbroker.config.schema import BrokerSection, ServerConfig
    from zbroker.transport.endpoints import parse

    endpoint = parse(attach)
    if endpoint.run_dir is None:
        raise click.UsageError(f"{attach}: only processes of this host can be hit, so give it as ipc://RUN_DIR")
    paths = paths_for(ServerConfig(broker=BrokerSection(run_dir=str(endpoint.run_dir))))
    yield Attached(attach, paths.boards_dir)


def _watch(options: Options) -> Watch:
    def watch(what: str, share: float) -> None:
        options.note(f"{share:4.0%}  {what}")

    return watch


def text_of(report: ChaosReport) -> str:
    """A report for people."""
    faults = ", ".join(f"{count} x {name}" for name, count in sorted(report.faults.items())) or "none"
    lines = [
        f"seed {report.seed}: {sum(report.faults.values())} faults in {report.seconds:.0f} s ({faults})",
        f"records      {report.sent:>10,} sent   {report.acknowledged:>10,} acknowledged   {report.read:>10,} read",
        f"broken       {report.lost:>10,} lost   {report.duplicated:>10,} twice          "
        f"{report.reordered:>10,} out of order",
        f"longest wait for an acknowledgement after a fault: p50 {report.wait_p50_ms:.0f} ms, "
        f"p99 {report.wait_p99_ms:.0f} ms, longest {report.longest_wait_ms:.0f} ms",
    ]
    if report.moves:
        moves = ", ".join(f"{count} x {name}" for name, count in sorted(report.moves.items()))
        lines.append(f"copies moved: {moves}; the slowest took {report.slowest_move_ms:.0f} ms")
    if report.refusals:
        told = ", ".join(f"{count} x {name}" for name, count in sorted(report.refusals.items()))
        lines.append(f"errors that producers were shown: {told}")
    if report.unfinished_clients:
        lines.append(f"{report.unfinished_clients} clients did not come to an end")
    if report.is_sound:
        lines.append("checked: every acknowledged record is there once, and in order")
    else:
        lines.append("BROKEN: " + ", ".join(f"{name} {count}" for name, count in sorted(report.violations.items())))
        lines += [f"  {one}" for one in report.examples[:20]]
        lines.append(f"history: {report.history}")
    return "\n".join(lines)


@click.command()
@click.argument("profile", metavar="[PROFILE]", type=click.Choice(sorted(PROFILES)), required=False)
@click.option("--seed", default=1, show_default=True, type=int, help="Seed of the first round.")
@click.option(
    "--state", type=click.Path(dir_okay=False, path_type=Path), help="Keeps what is done; goes on from there."
)
@click.option("--rounds", type=click.IntRange(1), help="How many rounds.  [default: the profile's]")
@click.option("--duration", callback=_seconds, metavar="TIME", help="Faults of a round.  [default: the profile's]")
@shared_options
@pass_options
def soak(
    options: Options,
    profile: str | None,
    seed: int,
    state: Path | None,
    rounds: int | None,
    duration: float | None,
) -> int:
    """Run the long version of a fault test: PROFILE, or without it list them.

    Each round has a broker and a seed of its own. What was found is kept in a file as JSON after each round, and the
    next call goes on from there. Ctrl-C shows the report so far; the round that it cut short is made again then. Exits
    with 4 when a round broke a promise.
    """
    if profile is None and options.is_json:
        print_json([{"profile": name, "text": found.text} for name, found in sorted(PROFILES.items())])
        return 0
    if profile is None:
        width = max(map(len, PROFILES))
        for name, found in sorted(PROFILES.items()):
            click.echo(f"{name:<{width}}  {found.text}")
        return 0
    path = state or Path(f"zbroker-soak-{profile}.json")
    is_cut_short = False
    try:
        run = Soak.load(path, profile, seed, rounds, duration)
        run.check_place(path)
        try:
            while not run.is_done:
                options.note(f"round {run.rounds_done + 1} of {run.rounds}, seed {run.next_seed}")
                run.round(_watch(options))
                run.save(path)
        except KeyboardInterrupt:
            is_cut_short = True
            options.note(f"cut short; the same command goes on from {path}")
    except SoakError as error:
        raise click.ClickException(str(error)) from error
    if options.is_json:
        print_json({**msgspec.to_builtins(run.state), "is_sound": run.is_sound})
    else:
        click.echo(run.text())
    if is_cut_short and run.is_sound:
        return INTERRUPTED
    return 0 if run.is_sound else CHECK_FAILED
