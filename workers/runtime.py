"""Starting, running and ending a role, the same for every role.

`Role.start` leaves a process that holds its lock, has its board, and has a loop in which SIGTERM and SIGINT mean "drain
and end", a second one "end now", and SIGHUP "read the settings again". `exit_code_of` turns what a role raises into
the exit codes that supervisors know. Nothing is locked, mapped or bound before `start`, and `close` gives all of it
back in the reverse order, whatever failed in between.

It knows nothing of partitions or topics. How a partition's effects become I/O stands in `leader`.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Callable
from typing import Final, Self

from zbroker import ids
from zbroker.clock import Clock, HostClock
from zbroker.config.load import differences
from zbroker.config.paths import Paths, make_directories, paths_for
from zbroker.config.schema import RELOADABLE, ServerConfig
from zbroker.errors import BrokerError, ConfigError, DirectoryLockedError
from zbroker.shm.board import BoardWriter, HeaderWriter
from zbroker.shm.layout import ProcessState
from zbroker.transport.loop import IDLE_MS, Loop
from zbroker.workers import leftovers, logs

EXIT_CLEAN: Final = 0
EXIT_CONFIG: Final = 2
EXIT_INTERNAL: Final = 70
EXIT_TEMPORARY: Final = 75

Reload = Callable[[], ServerConfig]


class Role:
    """A started role. One for each process; the thread that started it runs it."""

    def __init__(self, config: ServerConfig, number: int, name: str, paths: Paths, clock: Clock) -> None:
        self.config = config
        self.number = number
        self.name = name
        self.paths = paths
        self.clock = clock
        self.incarnation = ids.own_incarnation()
        self.log = logging.getLogger(logs.ROOT_LOGGER)
        self.once = logs.OncePerMinute()
        self.stop_requests = 0
        self.loop = Loop(clock)
        self._reload: Reload | None = None
        self._on_reload: list[Callable[[], None]] = []
        self._closers: list[Callable[[], None]] = [self.loop.close]
        self._header: HeaderWriter | None = None

    @classmethod
    def start(
        cls, config: ServerConfig, number: int, *, clock: Clock | None = None, reload: Reload | None = None
    ) -> Role:
        """Start the role with this process number: directories, limits, log, lock, loop, signals.

        Raises ConfigError, or DirectoryLockedError while another process of this name runs.
        """
        os.umask(0o077)
        raise_descriptor_limit()
        name = ids.process_name(number)
        logs.start_logging(name, config.logging.level, config.logging.format)
        paths = paths_for(config)
        make_directories(paths)
        lock = leftovers.enter(paths, name)
        role = cls(config, number, name, paths, clock or HostClock())
        role.at_close(lambda: leftovers.leave(paths, lock))
        role._reload = reload
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            role.loop.on_signal(signal_number, role.request_stop)
        role.loop.on_signal(signal.SIGHUP, role._read_settings_again)
        return role

    @property
    def is_stopping(self) -> bool:
        """Whether the role was asked to end."""
        return self.stop_requests > 0

    @property
    def must_stop_now(self) -> bool:
        """Whether it was asked twice: what is still to be drained is given up."""
        return self.stop_requests > 1

    def request_stop(self) -> None:
        """Ask the role to end, as SIGTERM does."""
        self.stop_requests += 1
        if self._header is not None:
            self._header.set_state(ProcessState.STOPPING)

    def at_close(self, call: Callable[[], None]) -> None:
        """Have `call` made by `close`: the last one given is the first one made."""
        self._closers.append(call)

    def make_board(self, cells: int) -> BoardWriter:
        """Make this incarnation's board. `close` unmaps it and, as the process then ends in order, removes it."""
        board = BoardWriter.create(self.paths.boards_dir, self.number, self.incarnation, cells=cells)
        self.at_close(lambda: board.close(unlink=True))
        self.use_board(board)
        return board

    def use_board(self, board: HeaderWriter) -> None:
        """Beat on this board. The caller closes it (`at_close`)."""
        self._header = board

    def on_reload(self, call: Callable[[], None]) -> None:
        """Call after SIGHUP has changed `config`."""
        self._on_reload.append(call)

    def set_running(self) -> None:
        """Say on the board that the role takes requests."""
        if self._header is not None and not self.is_stopping:
            self._header.set_state(ProcessState.RUNNING)

    def beat(self) -> None:
        """Say on the board that the loop turns."""
        if self._header is not None:
            self._header.beat(self.clock.now_ns())

    def turn(self, timeout_ms: float = IDLE_MS) -> int:
        """Beat, and one turn of the loop. Returns how much there was to do."""
        self.beat()
        return self.loop.run_once(timeout_ms)

    def run_until(self, is_done: Callable[[], bool]) -> None:
        """Turn the loop until `is_done` or the role is asked to end."""
        while not self.is_stopping and not is_done():
            self.turn()

    def run(self) -> None:
        """Turn the loop until the role is asked to end."""
        self.run_until(lambda: False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back. A failure of one part is logged and does not keep the others."""
        while self._closers:
            call = self._closers.pop()
            try:
                call()
            except (BrokerError, OSError) as error:
                self.log.error("closing failed", extra={"error": error})

    def _read_settings_again(self) -> None:
        if self._reload is None:
            self.log.info("SIGHUP: this process was started with fixed settings")
            return
        try:
            fresh = self._reload()
        except ConfigError as error:
            self.log.error("SIGHUP: the settings are kept as they were", extra={"error": error})
            return
        changed = apply_reloadable(self.config, fresh)
        logs.start_logging(self.name, self.config.logging.level, self.config.logging.format)
        self.log.info("SIGHUP: settings read again", extra={"changed": ",".join(changed) or "none"})
        for call in self._on_reload:
            call()


def apply_reloadable(config: ServerConfig, fresh: ServerConfig) -> list[str]:
    """Take over into `config` what may change while a process runs. Returns the names of what did."""
    changed = sorted(RELOADABLE.intersection(differences(config, fresh)))
    for name in changed:
        section, _, key = name.partition(".")
        setattr(getattr(config, section), key, getattr(getattr(fresh, section), key))
    return changed


def raise_descriptor_limit() -> int:
    """Allow this process as many open files as its hard limit does. Returns that number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def exit_code_of(body: Callable[[], None]) -> int:
    """Run a role and give its exit code: 0 clean, 2 settings, 70 internal, 75 try again later. Errors are logged."""
    log = logging.getLogger(logs.ROOT_LOGGER)
    try:
        body()
    except ConfigError as error:
        log.error("%s", error)
        return EXIT_CONFIG
    except DirectoryLockedError as error:
        log.error("%s", error)
        return EXIT_TEMPORARY
    except BrokerError as error:
        log.error("%s: %s", type(error).__name__, error)
        return EXIT_INTERNAL
    except Exception:
        log.exception("ended by an error that nobody expected")
        return EXIT_INTERNAL
    return EXIT_CLEAN
