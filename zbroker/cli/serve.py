"""`zbroker serve`: a broker in the foreground, or one of its processes for supervisord and systemd."""

from __future__ import annotations

from typing import Final

import click

from zbroker import ids
from zbroker.cli.examples import examples
from zbroker.cli.options import Options, pass_options, shared_options
from zbroker.config.presets import PRESETS
from zbroker.config.schema import ServerConfig
from zbroker.errors import ConfigError
from zbroker.shm.owned_directory import OwnedDirectory

_ROLES: Final = ("all", "router", "coordinator", "worker", "replica")


@click.command(epilog=examples("serve"))
@click.option("--data-dir", metavar="DIR", help="Where logs and metadata live.  [default: ~/.local/share/zbroker]")
@click.option(
    "--run-dir",
    metavar="DIR",
    help="Sockets, locks and boards; short, on /dev/shm.  [default: a place of the data directory]",
)
@click.option(
    "--workers", metavar="N|auto|per-partition", help="Worker processes.  [default: auto: one a core, at most 8]"
)
@click.option("--replicas", type=click.IntRange(0), metavar="N", help="Replica processes.  [default: 0]")
@click.option("--preset", type=click.Choice(sorted(PRESETS)), help="A ready set of settings, below the file.")
@click.option("--ephemeral", is_flag=True, help="In a temporary directory that goes when it stops.")
@click.option("--role", type=click.Choice(_ROLES), default="all", show_default=True, help="One process only.")
@click.option("--id", "index", type=click.IntRange(0), default=0, metavar="N", help="Which worker or replica.")
@shared_options
@pass_options
def serve(
    options: Options,
    data_dir: str | None,
    run_dir: str | None,
    workers: str | None,
    replicas: int | None,
    preset: str | None,
    ephemeral: bool,
    role: str,
    index: int,
) -> int:
    """Run a broker in the foreground.

    Prints one line, "zbroker ready ipc://RUN_DIR", on stdout when it takes requests; logs go to stderr. SIGTERM and
    Ctrl-C stop it in order, SIGHUP reads the settings again. With --role it is one process of a broker that
    supervisord or systemd watches.
    """
    if ephemeral and (data_dir or run_dir or role != "all"):
        raise click.UsageError("--ephemeral chooses its directories, and is for a whole broker")
    given = {
        "broker.data_dir": data_dir,
        "broker.run_dir": run_dir,
        "workers.count": workers,
        "replicas.count": replicas,
    }
    own = OwnedDirectory.make_in_memory("zb-") if ephemeral else None
    if own is not None:
        given |= {"broker.data_dir": str(own.path / "data"), "broker.run_dir": str(own.path / "run")}
    overrides = [f"{name}={value}" for name, value in given.items() if value is not None]

    def load() -> ServerConfig:
        return options.load(overrides, PRESETS[preset] if preset else None).config

    try:
        return _run(load(), role, index, load)
    finally:
        if own is not None:
            own.remove()


def _run(config: ServerConfig, role: str, index: int, reload: object) -> int:
    from zbroker.workers import supervisor

    assert callable(reload)
    if role == "all":
        return supervisor.main(config, reload=reload)
    if config.workers.count == "per-partition":
        raise ConfigError("workers.count = 'per-partition' needs the built-in supervisor: zbroker serve without --role")
    numbers = {"router": ids.ROUTER, "coordinator": ids.COORDINATOR}
    number = numbers.get(role)
    if number is None:
        number = ids.worker_number(index) if role == "worker" else ids.replica_number(index)
    return supervisor.run_role(config, number, reload)
