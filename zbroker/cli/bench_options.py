"""What the commands of `zbroker bench` share: their options, and how they show and keep what came out."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from zbroker.cli.options import Options
from zbroker.cli.output import print_json, print_table
from zbroker.load.bench_runs import Found
from zbroker.load.bench_target import Target, own_broker, running_broker
from zbroker.load.results import Figure, results, save_results

TOPIC: Final = "bench"
ACKS: Final = ("0", "1", "all", "fsync")
CODECS: Final = ("none", "lz4", "gzip", "zstd")
F = TypeVar("F", bound=Callable[..., Any])


WORKERS_MAX: Final = 64


class Numbers(click.ParamType[list[int]]):
    """Positive numbers with commas between: 1,2,4."""

    name = "numbers"

    def __init__(self, highest: int | None = None) -> None:
        """`highest`: what each may be at most."""
        self._highest = highest

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """Read them; fails with a usage error."""
        if isinstance(value, list):
            return value
        try:
            found = [int(part) for part in str(value).split(",")]
        except ValueError:
            found = []
        if not found or min(found) < 1:
            self.fail(f"{value!r}: write numbers above 0 with commas between, as 1,2,4", param, ctx)
        if self._highest is not None and max(found) > self._highest:
            self.fail(f"{value!r}: each from 1 to {self._highest}", param, ctx)
        return found


def place_for_data(context: click.Context, parameter: click.Parameter, directory: Path | None) -> Path | None:
    """The directory, in which something can be made. Fails with a usage error, before anything is measured."""
    if directory is not None and not context.resilient_parsing:
        try:
            tempfile.TemporaryFile(dir=directory).close()
        except OSError as error:
            raise click.BadParameter(f"nothing can be written in {directory}: {error.strerror}") from None
    return directory


def _place_for_results(context: click.Context, parameter: click.Parameter, file: Path | None) -> Path | None:
    if file is not None and not context.resilient_parsing:
        place_for_results(file)
    return file


def place_for_results(file: Path) -> None:
    """Make the file's directory if need be. Raises BadParameter where the file could not be kept in it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise click.BadParameter(f"{file} cannot be written: {error.strerror}") from None


_OPTIONS: Final[dict[str, Callable[[Any], Any]]] = {
    "topic": click.option("--topic", default=TOPIC, show_default=True, help="Topic; made with --partitions if absent."),
    "records": click.option(
        "--records", "-n", default=1_000_000, show_default=True, type=click.IntRange(1), help="How many."
    ),
    "size": click.option(
        "--size", default=100, show_default=True, type=click.IntRange(1, 1 << 20), help="Bytes of a value."
    ),
    "batch": click.option(
        "--batch", default=65_536, show_default=True, type=click.IntRange(1, 1 << 20), help="Bytes of a batch."
    ),
    "partitions": click.option(
        "--partitions", default=1, show_default=True, type=click.IntRange(1), help="Partitions of the topic."
    ),
    "workers": click.option(
        "--workers", default=1, show_default=True, type=click.IntRange(1, WORKERS_MAX), help="Workers of its broker."
    ),
    "acks": click.option("--acks", default="all", show_default=True, type=click.Choice(ACKS)),
    "compression": click.option(
        "--compression", "--compress", default="none", show_default=True, type=click.Choice(CODECS)
    ),
    "pin": click.option("--pin", is_flag=True, help="Bind worker N and client N to core N modulo the cores."),
    "rounds": click.option(
        "--rounds", default=3, show_default=True, type=click.IntRange(1), help="How often; one more as a warm-up."
    ),
    "producers": click.option(
        "--producers", default=1, show_default=True, type=click.IntRange(1, 64), help="Processes that produce."
    ),
    "consumers": click.option(
        "--consumers", default=1, show_default=True, type=click.IntRange(1, 64), help="Processes that consume."
    ),
    "seed": click.option("--seed", default=1, show_default=True, type=int, help="Draws the values."),
    "dir": click.option(
        "--dir", "directory", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
        callback=place_for_data,
        help="Keep the data below DIR, on a disk to measure, while it runs.  [default: /dev/shm]",
    ),
    "output": click.option(
        "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
        callback=_place_for_results, help="Keep the results.",
    ),
}  # fmt: skip


def bench_options(*names: str) -> Callable[[F], F]:
    """These of the options above, in this order."""

    def decorate(command: F) -> F:
        for name in reversed(names):
            command = _OPTIONS[name](command)
        return command

    return decorate


@contextmanager
def measured_target(
    options: Options, workers: int, *, pin: bool = False, directory: Path | None = None
) -> Iterator[tuple[Target, Path]]:
    """(the broker that -b names, or one of its own; where its data lie)."""
    given = options.where()
    if given:
        context = click.get_current_context()
        for name, option in (("workers", "--workers"), ("directory", "--dir")):
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"{option} is for a broker of its own: -b names one that is up")
        target = running_broker(given)
        yield target, target.boards_dir or Path("/")
        return
    with own_broker(workers=workers, pin=pin, directory=directory) as target:
        assert target.broker is not None
        yield target, target.broker.directory


def command_line() -> str:
    """The command as it was given, for the results; without where they go, and what is shown meanwhile."""
    is_own = Path(sys.argv[0]).name in ("zbroker", "__main__.py")
    given = iter(sys.argv[1:] if is_own else click.get_current_context().command_path.split()[1:])
    words = []
    for word in given:
        if word in ("-o", "--output"):
            next(given, None)
        elif word not in ("-q", "-v", "--json"):
            words.append(word)
    return shlex.join(["zbroker", *words])


def show(
    options: Options,
    found: Found,
    *,
    about: str,
    seed: int | None = None,
    directories: Mapping[str, Path] | None = None,
    output: Path | None = None,
) -> None:
    """Print what came out, and keep it where --output says. The data's directories exist still."""
    document = results(
        command_line(), found.rows, about=about, seed=seed, directories=directories, tables=found.tables,
        plots=found.plots,
    )  # fmt: skip
    if output is not None:
        save_results(document, output)
    if options.is_json:
        print_json(document)
        return
    if found.rows:
        print_figures(options, found.rows)
    for table in found.tables:
        click.echo()
        print_table(options, table.columns, table.rows, title=table.title)
    if output is not None:
        options.note(f"results: {output}; a page: zbroker bench report {output} -o report.html")


def print_figures(options: Options, rows: Sequence[Figure]) -> None:
    """The figures as a table: the columns that hold something."""
    columns = {"WHAT": "what", "BEST": "value", "MEDIAN": "median", "LOWEST": "low", "HIGHEST": "high", "UNIT": "unit",
               "BESIDE": "beside", "RATIO": "ratio", "TARGET": "target", "MET": "met"}  # fmt: skip
    used = {title: name for title, name in columns.items() if any(getattr(one, name) not in (None, "") for one in rows)}
    cells = [[_cell(getattr(one, name)) for name in used.values()] for one in rows]
    print_table(options, list(used), cells)


def _cell(value: Any) -> Any:
    return None if value == "" else value
