"""The options that every command takes, before or after its name, and what commands make of them.

`-b` says where the broker is; without it `-c FILE` does (its run directory), then ZBROKER_BOOTSTRAP_SERVERS, then the
place where a bare `zbroker serve` runs. `-C name=value` is a client's setting, or a server's in `serve` and `config`;
it wins over `[client.producer]` and `[client.consumer]` of the file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import click

from zbroker.errors import ConfigError

if TYPE_CHECKING:
    from zbroker.client.admin import AdminClient
    from zbroker.client.consumer import Consumer
    from zbroker.client.producer import Producer
    from zbroker.config.load import Loaded

DEFAULT_TIMEOUT_MS: Final = 10_000
_TIMEOUT_MS_MAX: Final = 24 * 86_400_000  # request_timeout_ms takes 31 bits
F = TypeVar("F", bound=Callable[..., Any])


class Options:
    """The global options of one run of the command."""

    def __init__(self) -> None:
        self.bootstrap_servers: str | None = None
        self.config_path: Path | None = None
        self.settings: list[str] = []
        self.is_json = False
        self.is_jsonl = False  # JSON, and lists as an object a line
        self.no_color = bool(os.environ.get("NO_COLOR"))
        self.verbosity = 0
        self.timeout_ms = DEFAULT_TIMEOUT_MS

    def load(self, overrides: list[str] | None = None, preset: Mapping[str, Any] | None = None) -> Loaded:
        """The server's settings: preset, file, environment, `-C`, then `overrides`. Raises ConfigError."""
        from zbroker.config.load import load

        return load(self.config_path, preset=preset, overrides=[*self.settings, *(overrides or [])])

    def where(self) -> str | None:
        """The broker's address, or None for the default. Raises ConfigError."""
        if self.bootstrap_servers is None and self.config_path is not None:
            from zbroker.config.load import load
            from zbroker.config.paths import paths_for

            return paths_for(load(self.config_path).config).bootstrap_servers
        return self.bootstrap_servers

    def admin(self) -> AdminClient:
        """Connect an AdminClient. Raises BrokerNotAvailableError, ConfigError."""
        from zbroker.client.admin import AdminClient

        return AdminClient(self._client_settings(None))

    def producer(self, **settings: object) -> Producer[Any, Any]:
        """Connect a Producer; `settings` win over the file's, `-C` over both."""
        from zbroker.client.producer import Producer

        return Producer({**self._client_settings("producer"), **settings, **self._given()})

    def consumer(self, **settings: object) -> Consumer[Any, Any]:
        """Connect a Consumer; `settings` win over the file's, `-C` over both."""
        from zbroker.client.consumer import Consumer

        return Consumer({**self._client_settings("consumer"), **settings, **self._given()})

    def _given(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for text in self.settings:
            name, separator, value = text.partition("=")
            if not separator:
                raise ConfigError(f"-C {text}: write it as name=value")
            found[name.strip().replace(".", "_")] = value.strip()
        return found

    def _client_settings(self, kind: Literal["producer", "consumer"] | None) -> dict[str, object]:
        found: dict[str, object] = {}
        if self.config_path is not None and kind is not None:
            from zbroker.client.settings import GROUP_SETTINGS
            from zbroker.config.load import load

            client = load(self.config_path).config.client
            section = client.producer if kind == "producer" else client.consumer
            # The file is one for all programs; a command joins a group only when it is told to.
            found.update({key: value for key, value in section.items() if key.replace(".", "_") not in GROUP_SETTINGS})
        found["bootstrap_servers"] = self.where()
        found["client_id"] = f"cli-{os.getpid()}"
        found["request_timeout_ms"] = self.timeout_ms
        found.update(self._given())
        return found

    def note(self, text: str, *, level: int = 0) -> None:
        """A remark on stderr for people: level 0 unless -q, 1 with -v, 2 with -vv."""
        if self.verbosity >= level:
            click.echo(text, err=True)

    @property
    def shows_progress(self) -> bool:
        """Whether a progress bar makes sense: somebody looks, and did not ask for quiet or for JSON."""
        return sys.stderr.isatty() and self.verbosity >= 0 and not self.is_json


def _duration(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    from zbroker.config.load import parse_duration_ms

    found_ms = parse_duration_ms(text if text[-1:].isalpha() else f"{text}s", "--timeout")
    if found_ms < 1:
        raise ConfigError(f"--timeout: {text!r} is not above 0; write it as 250ms, 10s or 5m")
    if found_ms > _TIMEOUT_MS_MAX:
        raise ConfigError(f"--timeout: {text!r} is longer than 24d")
    return found_ms


def _store(name: str, combine: Callable[[Any, Any], Any] = lambda old, new: new) -> Callable[..., None]:
    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if isinstance(parameter, click.Option) and value not in (None, False, (), 0):
            if name == "timeout_ms":
                value = _duration(context, parameter, value)
            options = context.ensure_object(Options)
            setattr(options, name, combine(getattr(options, name), value))
            if name == "is_jsonl":
                options.is_json = True
            if name == "bootstrap_servers":
                context.find_root().params[name] = value

    return callback


def global_options(command: F) -> F:
    """Let a command take the global options; they go to its `Options`, not to its function."""
    return _add_options(command, is_hidden=False)


def shared_options(command: F) -> F:
    """The same for a command below the root: taken, and shown in the root's help only (but for --json)."""
    return _add_options(command, is_hidden=True)


def shared_options_without(*taken: str) -> Callable[[F], F]:
    """The same but for names that mean something else in this command, as --config does in Kafka's topic tools."""
    return lambda command: _add_options(command, is_hidden=True, taken=taken)


def _add_options(command: F, *, is_hidden: bool, taken: tuple[str, ...] = ()) -> F:
    def option(*names: str, store: Callable[..., None], hidden: bool = is_hidden, **rest: Any) -> Callable[[F], F]:
        if any(name in taken for name in names) and len(names) == 2:
            return lambda unchanged: unchanged
        names = tuple(name for name in names if name not in taken)
        return click.option(*names, callback=store, expose_value=False, is_eager=True, hidden=hidden, **rest)

    decorators = (
        option(
            "-b", "--bootstrap-servers", "bootstrap_servers", store=_store("bootstrap_servers"), metavar="URL",
            help="The broker: ipc://RUN_DIR or tcp://127.0.0.1:PORT.",
        ),
        option(
            "-c", "--config", "config_path", store=_store("config_path"), help="zbroker.toml.",
            type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
        ),
        option(
            "-C", "client_settings", store=_store("settings", lambda old, new: [*old, *new]), multiple=True,
            metavar="NAME=VALUE", help="A setting of the client, or of the server in serve and config; repeatable.",
        ),
        option("--json", "is_json", store=_store("is_json"), is_flag=True, hidden=False, help="Print JSON."),
        option("--jsonl", "is_jsonl", store=_store("is_jsonl"), is_flag=True, help="The same, an object a line."),
        option("--no-color", "no_color", store=_store("no_color"), is_flag=True, help="No colours (also NO_COLOR)."),
        option(
            "-q", "--quiet", "quiet", store=_store("verbosity", lambda old, new: old - new), count=True,
            help="Only errors on stderr.",
        ),
        option(
            "-v", "--verbose", "verbose", store=_store("verbosity", lambda old, new: old + new), count=True,
            help="More on stderr; tracebacks of faults.",
        ),
        option(
            "--timeout", "timeout_ms", store=_store("timeout_ms"), metavar="TIME",
            help="Wait so long for an answer: 250ms, 10s, 5m.  [default: 10s]",
        ),
    )  # fmt: skip
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


pass_options = click.make_pass_decorator(Options, ensure=True)
