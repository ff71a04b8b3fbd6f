"""`zbroker`: the root command, and how every command ends.

Guarantees: an error is one line on stderr with a hint, never a traceback (`-v` shows it for an error that zbroker does
not know); the exit code says what kind of end it was. SIGTERM and SIGHUP end a command as Ctrl-C does: what it has
begun is closed, and a broker of its own and its directory are gone. A standard stream that was closed stays unusable;
no other file takes its number. A noun's module is imported when it is used, so that `zbroker --help` and shell
completion stay quick.
"""

from __future__ import annotations

import difflib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Final

import click

from zbroker import __version__
from zbroker.cli.failures import INTERRUPTED, OK, PIPE_CLOSED, report, report_usage
from zbroker.cli.options import Options, global_options

COMMANDS: Final = {
    "serve": ("zbroker.cli.serve:serve", "Run a broker, or one of its processes, in the foreground."),
    "status": ("zbroker.cli.status:status", "Show every process of a broker."),
    "topics": ("zbroker.cli.topics:topics", "Create, list, describe, alter, delete, grow and truncate topics."),
    "produce": ("zbroker.cli.produce:produce", "Send lines of a file or of stdin as records."),
    "consume": ("zbroker.cli.consume:consume", "Print records."),
    "groups": ("zbroker.cli.groups:groups", "Show consumer groups and their lag; reset and copy offsets."),
    "cluster": ("zbroker.cli.cluster:cluster", "Show processes and copies; elect leaders, move and drain copies."),
    "offsets": ("zbroker.cli.offsets:offsets", "Show the offsets of a topic's partitions."),
    "log": ("zbroker.cli.log:log", "Look at log files, with the broker up or down."),
    "config": ("zbroker.cli.config:config", "Show, explain and check settings."),
    "doctor": ("zbroker.cli.doctor:doctor", "Check the host, the settings and the traffic."),
    "bench": ("zbroker.cli.bench:bench", "Measure this broker on this machine."),
    "demo": ("zbroker.cli.demo:demo", "Send real lines through a broker, and check every one."),
    "chaos": ("zbroker.cli.chaos:chaos", "Kill and pause processes under load, then check every record."),
    "soak": ("zbroker.cli.chaos:soak", "Run the long version of a fault test."),
    "completion": ("zbroker.cli.completion:completion", "Print the shell's completion script."),
}


class PipeClosed(Exception):  # noqa: N818 - nothing is wrong: `head` has enough
    """Who read the output has left."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and give a command; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        found = getattr(import_module(module), attribute)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is refused with the nearest known name."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            close = difflib.get_close_matches(args[0], COMMANDS, n=1, cutoff=0.5)
            raise click.UsageError(f"no command {args[0]!r}" + (f"; did you mean {close[0]!r}?" if close else ""), ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command. That its output's reader left is told apart here: click would call it an error."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise PipeClosed from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="zbroker")
@global_options
def cli(**_: object) -> None:
    """zbroker: a Kafka-like log broker for one host.

    Tables are for terminals; in a pipe they are tab-separated. The options below may stand before or after a command.

    Exit codes: 0 done, 1 error, 2 usage or settings, 3 no broker, 4 a check failed, 75 another process holds what is
    needed, 130 interrupted, 143 terminated.
    """


def occupy_closed_streams() -> None:
    """Let a standard stream that was closed (`zbroker ... >&-`) fail when it is used.

    Its number would otherwise go to the next file or socket that is opened, and what is printed would go there.
    """
    for number, name, flags in ((0, "stdin", os.O_WRONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            taken = os.open(os.devnull, flags)
            assert taken == number, "the lower numbers are taken"
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def _terminate(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, where nothing else was said about them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.Handlers.SIG_DFL
    ]
    for number in numbers:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and give the process's exit code. Raises SystemExit at SIGTERM and SIGHUP."""
    options = Options()
    occupy_closed_streams()
    try:
        with ending_in_order():
            result = cli.main(
                args=list(arguments) if arguments is not None else None,
                prog_name="zbroker",
                standalone_mode=False,
                obj=options,
            )
            sys.stdout.flush()
        return result if isinstance(result, int) else OK
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except (PipeClosed, BrokenPipeError):
        _forget_output()
        return PIPE_CLOSED
    except click.ClickException as error:
        return report_usage(error, options)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None:
            _forget_output()
        return report(error, options)


def _forget_output() -> None:
    """Let the interpreter's last flush of stdout succeed: it would complain a second time."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass  # a stdout without a descriptor has nothing to flush
