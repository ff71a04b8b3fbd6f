"""`zbroker`: the root command, and how every command ends.

Guarantees: an error is one line on stderr with a hint, never a traceback (`-v` shows it for an error that zbroker does
not know); the exit code says what kind of end it was. SIGTERM and SIGHUP end a command as Ctrl-C does: what it has
begun is closed, and a broker of its own and its directory are gone. A standard stream that was closed stays unusable;
no other file takes its number. A noun's module is imported when it is used, so that `zbroker --help` and shell
completion stay quick.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import click

from zbroker import __version__
from zbroker.cli.failures import INTERRUPTED, OK, PIPE_CLOSED, report, report_usage
from zbroker.cli.lazy_group import LazyGroup, PipeClosed
from zbroker.cli.options import Options, global_options

_UNWRITABLE: Final = (errno.EBADF, errno.ENOSPC)
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


@click.group(
    cls=LazyGroup,
    commands_by_name=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="zbroker")
@global_options
def cli(**_: object) -> None:
    """zbroker: a Kafka-like log broker for one host.

    Tables are for terminals; in a pipe they are tab-separated. The options below may stand before or after a command.

    Exit codes: 0 done, 1 error, 2 usage or settings, 3 no broker, 4 a check failed, 75 another process holds what is
    needed, 130 interrupted, 143 terminated.
    """


def occupy_closed_streams() -> None:
    """Let stdin and stdout that were closed (`zbroker ... >&-`) fail when they are used.

    Its number would otherwise go to the next file or socket that is opened, and what is printed would go there. What is
    said on a closed stderr goes nowhere: its user wants to hear nothing.
    """
    for number, name, flags in ((0, "stdin", os.O_WRONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
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
            if error.errno in _UNWRITABLE:
                error.filename = "standard output"
        return report(error, options)


def _forget_output() -> None:
    """Let the interpreter's last flush of stdout succeed: it would complain a second time."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass  # a stdout without a descriptor has nothing to flush
