"""How a command ends: exit codes, and an error as one line."""

from __future__ import annotations

import contextlib
import sys
import traceback
from typing import TYPE_CHECKING, Final

import click

from zbroker import errors

if TYPE_CHECKING:
    from zbroker.cli.options import Options

OK: Final = 0
ERROR: Final = 1
USAGE: Final = 2
NO_BROKER: Final = 3
CHECK_FAILED: Final = 4
LOCKED: Final = 75
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141  # what a shell says of a process that SIGPIPE ended

_UNREACHABLE = (errors.BrokerNotAvailableError, errors.CoordinatorNotAvailableError, errors.RequestTimedOutError)
_OWN = (
    errors.BrokerError, errors.ConfigError, errors.BufferFullError, errors.ForkError, errors.ConcurrentUseError,
    errors.ClosedError,
)  # fmt: skip


def exit_code_of(error: BaseException) -> int:
    """The exit code that tells what kind of error it was."""
    if isinstance(error, _UNREACHABLE):
        return NO_BROKER
    if isinstance(error, errors.DirectoryLockedError):
        return LOCKED
    if isinstance(error, errors.ConfigError):
        return USAGE
    return ERROR


def report(error: Exception, options: Options) -> int:
    """Say what went wrong in one line on stderr, as JSON where JSON was asked for; give the exit code."""
    is_known = isinstance(error, (*_OWN, OSError))
    name = type(error).__name__.rstrip("_")
    if not is_known and options.verbosity > 0:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, errors.BrokerError):
        message, hint, code = error.message, error.hint, error.code
    elif isinstance(error, OSError) and error.strerror:
        message, hint, code = ": ".join(filter(None, (error.filename, error.strerror))), "", -1
    else:
        message, hint, code = str(error), "" if is_known else "a fault of zbroker: -v shows where", -1
    if options.is_json:
        import msgspec

        text = msgspec.json.encode({"error": name, "code": code, "message": message, "hint": hint}).decode()
    else:
        text = f"zbroker: {name}: {message}" + (f" ({hint})" if hint else "")
    _say(" ".join(text.splitlines()))
    return exit_code_of(error)


def _say(text: str) -> None:
    """Print on stderr, if that can be written: the exit code tells the rest."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def report_usage(error: click.ClickException, options: Options) -> int:
    """Say what is wrong with the command line; give the exit code. A group of commands without one is its help."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        _say(error.format_message())
        return error.exit_code
    context = getattr(error, "ctx", None)
    hint = f"'{context.command_path} --help' explains" if context is not None else ""
    message = error.format_message()
    if options.is_json:
        import msgspec

        name = type(error).__name__
        text = msgspec.json.encode({"error": name, "code": -1, "message": message, "hint": hint}).decode()
    else:
        text = f"zbroker: {message}" + (f" ({hint})" if hint else "")
    _say(text)
    return error.exit_code
