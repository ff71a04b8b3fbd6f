"""Read `bootstrap_servers`: where a broker is.

`ipc://RUN_DIR` names a broker by its run directory, `tcp://127.0.0.1:PORT` by its loopback port. Anything else is
refused with a hint; nothing is guessed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from zbroker.config.paths import SOCKET_PATH_BYTES_MAX, default_data_dir, default_run_dir
from zbroker.errors import ConfigError

ENVIRONMENT_VARIABLE = "ZBROKER_BOOTSTRAP_SERVERS"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})"
_TCP = re.compile(rf"tcp://(127(?:\.{_BYTE}){{3}}|localhost|\[::1\]):([0-9]{{1,5}})\Z")


class Endpoint(NamedTuple):
    """A broker's address: for ZeroMQ, and its run directory when it is reached by ipc."""

    address: str
    run_dir: Path | None

    @property
    def is_local(self) -> bool:
        """Whether shared memory can be thought of."""
        return self.run_dir is not None


def parse(bootstrap_servers: str | Sequence[str] | None) -> Endpoint:
    """The endpoint that a client shall connect to. Raises ConfigError that says how to write one.

    None means the environment's ZBROKER_BOOTSTRAP_SERVERS, or the broker that a bare `zbroker serve` starts.
    """
    text = _one(bootstrap_servers)
    if text.startswith("ipc://"):
        try:
            run_dir = Path(text[len("ipc://") :]).expanduser()
        except RuntimeError as error:
            raise ConfigError(f"bootstrap_servers: {text!r}: {error}") from error
        if "\0" in text:
            raise ConfigError(f"bootstrap_servers: {text!r}: a path holds no NUL")
        if not run_dir.is_absolute():
            raise ConfigError(
                f"bootstrap_servers: {text!r}: the run directory must be absolute, as `zbroker serve` prints it"
            )
        front = run_dir / "front.sock"
        length_bytes = len(os.fsencode(front))
        if length_bytes > SOCKET_PATH_BYTES_MAX:
            raise ConfigError(
                f"bootstrap_servers: {front} has {length_bytes} bytes, the kernel takes {SOCKET_PATH_BYTES_MAX}"
            )
        return Endpoint(f"ipc://{front}", run_dir)
    match = _TCP.match(text)
    if match and 0 < int(match.group(2)) < 65_536:
        return Endpoint(text, None)
    if text.startswith("kafka://"):
        raise ConfigError("bootstrap_servers: kafka:// is not supported by this version")
    raise ConfigError(
        f"bootstrap_servers: {text!r} is no address of a broker on this host; write ipc://RUN_DIR, as `zbroker serve` "
        f"prints it, or tcp://127.0.0.1:PORT"
    )


def _one(bootstrap_servers: str | Sequence[str] | None) -> str:
    if bootstrap_servers is None:
        found = os.environ.get(ENVIRONMENT_VARIABLE, "")
        return found or f"ipc://{default_run_dir(default_data_dir())}"
    if isinstance(bootstrap_servers, str):
        return bootstrap_servers
    if len(bootstrap_servers) != 1:
        raise ConfigError(f"bootstrap_servers: one address of one broker, not {len(bootstrap_servers)}")
    return bootstrap_servers[0]
