"""`zbroker doctor`: what may hurt a broker on this host, and the fix for each."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import click
import msgspec

from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.cli.output import print_json, print_table

if TYPE_CHECKING:
    from zbroker.doctor.findings import Finding

_CHECK_FAILED: Final = 4


@click.command()
@click.option("--data-dir", metavar="DIR", help="Examine the broker of this data directory.")
@click.option("--run-dir", metavar="DIR", help="Where its sockets and boards are.")
@shared_options
@pass_options
def doctor(options: Options, data_dir: str | None, run_dir: str | None) -> int:
    """Check limits, shared memory, clock, disks, leftovers, versions, settings, and a broker's copies and traffic.

    The broker is the one that other commands would reach, where one runs. Exit code 4 when something fails. Nothing
    is changed.
    """
    from zbroker.config.paths import paths_for
    from zbroker.doctor.copies import damage
    from zbroker.doctor.findings import Level
    from zbroker.doctor.host import examine_host
    from zbroker.doctor.settings import examine_settings
    from zbroker.doctor.traffic import examine_traffic
    from zbroker.transport.sockets import libzmq_version

    overrides = [f"broker.{name}={value}" for name, value in (("data_dir", data_dir), ("run_dir", run_dir)) if value]
    if data_dir is None and run_dir is None:
        overrides += _directories_of_the_broker(options)
    config = options.load(overrides).config
    paths = paths_for(config)
    findings = [
        *examine_host(config, paths, libzmq_version()),
        *examine_settings(config),
        *examine_traffic(paths.boards_dir),
        damage([directory for directory in paths.copies_dirs if os.access(directory, os.R_OK | os.X_OK)]),
        *_examine_copies(options, paths.bootstrap_servers, is_up=paths.front.exists()),
    ]
    if options.is_json:
        print_json([msgspec.to_builtins(finding) for finding in findings])
    else:
        rows = [(finding.level.value, finding.rule, finding.message, finding.fix) for finding in findings]
        print_table(options, ("LEVEL", "RULE", "FOUND", "FIX"), rows)
    return _CHECK_FAILED if any(finding.level is Level.FAIL for finding in findings) else 0


def _examine_copies(options: Options, bootstrap_servers: str, *, is_up: bool) -> list[Finding]:
    """Rules that need a broker that answers."""
    from zbroker.client.admin import AdminClient
    from zbroker.doctor.copies import copies, leaders
    from zbroker.errors import BrokerError

    if not is_up:
        return []
    try:
        with AdminClient(bootstrap_servers=bootstrap_servers) as admin:
            topics = list(admin.describe_topics(raise_errors=False).values())
    except BrokerError as error:
        options.note(f"leaders and copies were not examined: {error}")
        return []
    return [leaders(topics), copies(topics)]


def _directories_of_the_broker(options: Options) -> list[str]:
    """The settings that name the directories of the broker that answers; those that are known of one that does not."""
    from zbroker.config.paths import paths_at
    from zbroker.errors import BrokerError
    from zbroker.transport.endpoints import parse

    run_dir = parse(options.where()).run_dir
    if run_dir is None or not (run_dir / "front.sock").exists():
        return [] if run_dir is None or options.where() is None else [f"broker.run_dir={run_dir}"]
    try:
        with options.admin() as admin:
            data_dir = admin.describe_cluster().data_dir
    except BrokerError as error:
        options.note(f"the broker at {run_dir} does not answer: {error}")
        died = paths_at(run_dir)
        return [f"broker.run_dir={run_dir}", *([f"broker.data_dir={died.data_dir}"] if died is not None else [])]
    return [f"broker.run_dir={run_dir}", f"broker.data_dir={data_dir}"]
