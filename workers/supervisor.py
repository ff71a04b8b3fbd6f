"""`zbroker serve`: makes the roles' processes, watches them, restarts them, and stops them in order.

Guarantees: one supervisor for a run directory (a second one exits with 75 and names the first); exactly one line on
stdout, `zbroker ready ipc://RUN_DIR`, once the coordinator's board says that the broker answers; SIGTERM and SIGINT
stop in order within stop_timeout_ms, the second one fast; after a clean stop nothing is left in /dev/shm, nor in a run
directory that was given by hand; killing the supervisor kills its children.

It has no ZeroMQ context and never a second thread, so it may fork: the roles' modules are imported once, and a child
is ready in milliseconds. It decides nothing (`core.lifecycle` does) and knows nothing of topics.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Final

from zbroker import ids
from zbroker.clock import NS_PER_MS, Clock, HostClock
from zbroker.config.load import differences, worker_count
from zbroker.config.paths import Paths, make_directories, paths_for
from zbroker.config.schema import RELOADABLE, ServerConfig
from zbroker.core import lifecycle
from zbroker.core.lifecycle import Lifecycle, Limits
from zbroker.errors import BrokerError, ConfigError, DirectoryLockedError
from zbroker.shm import reaper
from zbroker.shm.board import board_path
from zbroker.shm.coordinator_board import CoordinatorBoardReader
from zbroker.shm.lockfile import is_held
from zbroker.workers import leftovers, service
from zbroker.workers.logs import start_logging
from zbroker.workers.process import become_child
from zbroker.workers.signals import Signals

EXIT_BAD_CONFIG: Final = lifecycle.EXIT_BAD_CONFIG
EXIT_INTERNAL: Final = lifecycle.EXIT_INTERNAL
EXIT_TEMPORARY: Final = lifecycle.EXIT_TEMPORARY
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_READY_POLL_MS: Final = 2
_WANTED_POLL_MS: Final = 50
_IDLE_POLL_MS: Final = 1_000
_DATA_LOCK_WAIT_MS: Final = 500

log = logging.getLogger("zbroker.supervisor")

Reload = Callable[[], ServerConfig]
Role = Callable[[ServerConfig, int, Reload | None], int]


def run_role(config: ServerConfig, number: int, reload: Reload | None = None) -> int:
    """Be the process of this number until it is told to stop. Returns its exit code."""
    name = {ids.COORDINATOR: "coordinator", ids.ROUTER: "router"}.get(number, "partition")
    module = importlib.import_module(f"zbroker.workers.{name}")
    if name == "partition":
        role, _, index = ids.process_name(number).partition("-")
        return int(module.main(config, int(index), is_replica=role == "replica", reload=reload))
    return int(module.main(config, reload=reload))


def wanted_numbers(config: ServerConfig) -> tuple[int, ...]:
    """The processes of a configuration, in the order of their start; no worker for "per-partition"."""
    workers = (ids.worker_number(index) for index in range(worker_count(config)))
    replicas = (ids.replica_number(index) for index in range(config.replicas.count))
    return (ids.ROUTER, ids.COORDINATOR, *workers, *replicas)


def limits_of(config: ServerConfig) -> Limits:
    """The settings of [supervisor] for the state machine."""
    section = config.supervisor
    return Limits(
        restart_backoff_ms=section.restart_backoff_ms,
        restart_backoff_max_ms=section.restart_backoff_max_ms,
        crash_loop_limit=section.crash_loop_limit,
        crash_loop_window_ms=section.crash_loop_window_ms,
        stop_timeout_ms=section.stop_timeout_ms,
    )


class Supervisor:
    """The loop around `Lifecycle`: everything that happens becomes an event, every effect a system call."""

    def __init__(
        self,
        config: ServerConfig,
        paths: Paths,
        *,
        role: Role = run_role,
        clock: Clock | None = None,
        reload: Reload | None = None,
    ) -> None:
        self._config = config
        self._paths = paths
        self._role = role
        self._clock = clock or HostClock()
        self._reload = reload
        self._lifecycle = Lifecycle(limits_of(config))
        self._pidfds: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._board: CoordinatorBoardReader | None = None
        self._wanted_version = -1
        self._is_ready = False
        self._exit_code: int | None = None
        self._signals = Signals(_SIGNALS)
        self._poll = select.poll()
        self._poll.register(self._signals, select.POLLIN)

    def run(self) -> int:
        """Run until stopped. Returns the exit code."""
        self._handle(lifecycle.Wanted(wanted_numbers(self._config)))
        while self._exit_code is None:
            for fd, _ in self._poll.poll(self._timeout_ms()):
                if fd in self._numbers:
                    self._reap(fd)
            for number in self._signals.take():
                self._take_signal(number)
            self._look_at_board()
            self._handle(lifecycle.Tick())
        return self._exit_code

    def close(self) -> None:
        """Kill what is left (only after an error of our own) and close every descriptor."""
        for fd in list(self._numbers):
            try:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            except ProcessLookupError:
                pass  # It is dead already; the wait below takes it.
            os.waitid(os.P_PIDFD, fd, os.WEXITED)
            self._forget(fd)
        if self._board is not None:
            self._board.close()
            self._board = None
        self._signals.close()

    def _timeout_ms(self) -> float:
        timeout_ms: float = _IDLE_POLL_MS
        if not self._lifecycle.is_stopping:
            if not self._is_ready:
                timeout_ms = _READY_POLL_MS
            elif self._config.workers.count == "per-partition":
                timeout_ms = _WANTED_POLL_MS
        deadline_ns = self._lifecycle.next_deadline_ns
        if deadline_ns is not None:
            timeout_ms = min(timeout_ms, max(0.0, (deadline_ns - self._clock.now_ns()) / NS_PER_MS))
        return timeout_ms

    def _handle(self, event: lifecycle.Event) -> None:
        for effect in self._lifecycle.handle(event, self._clock.now_ns()):
            match effect:
                case lifecycle.Start(number):
                    self._start(number)
                case lifecycle.Signal(number, signal_number):
                    signal.pidfd_send_signal(self._pidfds[number], signal_number)
                case lifecycle.Report(text, is_error):
                    log.log(logging.WARNING if is_error else logging.INFO, "%s", text)
                case lifecycle.Finish(exit_code):
                    self._exit_code = exit_code

    def _start(self, number: int) -> None:
        assert len(os.listdir("/proc/self/task")) == 1, "the supervisor has a second thread and must not fork"
        parent_pid = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal that reached the child before its handlers are its own would be written to the supervisor's pipe.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                self._be_child(number, parent_pid)
        except OSError as error:
            pid = -1
            reason = error.strerror or str(error)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        if pid < 0:
            self._handle(lifecycle.StartFailed(number, reason))
            return
        # The child cannot be reaped by anybody else, so its pid is still its own here, even if it has died.
        fd = os.pidfd_open(pid)
        self._pidfds[number] = fd
        self._numbers[fd] = number
        self._poll.register(fd, select.POLLIN)
        self._handle(lifecycle.Started(number, pid))

    def _be_child(self, number: int, parent_pid: int) -> None:
        """Runs in the child and never returns: the stack above belongs to the supervisor."""
        exit_code = EXIT_INTERNAL
        try:
            become_child(ids.process_name(number), parent_pid, _SIGNALS)
            exit_code = self._role(self._config, number, self._reload)
        except SystemExit as leaving:
            exit_code = leaving.code if isinstance(leaving.code, int) else EXIT_INTERNAL
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(exit_code)

    def _reap(self, fd: int) -> None:
        number = self._numbers[fd]
        found = os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)
        if found is None:
            return
        self._forget(fd)
        status = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        self._handle(lifecycle.Exited(number, status))

    def _forget(self, fd: int) -> None:
        self._poll.unregister(fd)
        os.close(fd)
        del self._pidfds[self._numbers.pop(fd)]

    def _take_signal(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._reload_settings()
            return
        if not self._lifecycle.is_stopping:
            service.notify(service.STOPPING)
        self._handle(lifecycle.StopRequested())

    def _reload_settings(self) -> None:
        before = self._config
        try:
            if self._reload is not None:
                self._config = self._reload()
                self._lifecycle.limits = limits_of(self._config)
        except ConfigError as error:
            log.error("the settings stay as they were: %s", error)
            return
        log.info("settings read again")
        late = [name for name in differences(before, self._config) if not self._applies(name)]
        if late:
            log.warning("processes that run keep their %s: a restart of the broker changes that", ", ".join(late))
        for fd in self._pidfds.values():
            signal.pidfd_send_signal(fd, signal.SIGHUP)
        self._handle(lifecycle.Retry())

    @staticmethod
    def _applies(name: str) -> bool:
        """Whether SIGHUP is enough for a setting, or it is none of the broker."""
        return name in RELOADABLE or name.startswith(("supervisor.", "client."))

    def _look_at_board(self) -> None:
        """Follow the board of the coordinator that runs now: is it ready, and which processes does it want?"""
        if self._lifecycle.is_stopping:
            return
        pid = self._lifecycle.running().get(ids.COORDINATOR)
        if self._board is not None and self._board.pid != pid:
            self._board.close()
            self._board = None
        if self._board is None:
            self._board = self._attach_board(pid)
            self._wanted_version = -1
        if self._board is None:
            return
        if not self._is_ready and self._board.is_ready:
            self._is_ready = True
            try:
                os.write(1, f"zbroker ready {self._paths.bootstrap_servers}\n".encode())
            except OSError:
                pass  # Whoever started the broker reads no more (EPIPE, EBADF); that is no reason to end it.
            service.notify(service.READY)
        if self._config.workers.count == "per-partition" and self._board.wanted_version() != self._wanted_version:
            version, numbers = self._board.wanted_version(), self._board.wanted()
            if numbers is not None:
                self._wanted_version = version
                fixed = wanted_numbers(self._config)
                self._handle(lifecycle.Wanted((*fixed, *(number for number in numbers if number not in fixed))))

    def _attach_board(self, pid: int | None) -> CoordinatorBoardReader | None:
        if pid is None:
            return None
        try:
            return CoordinatorBoardReader.open(
                board_path(self._paths.boards_dir, ids.COORDINATOR, ids.incarnation_of(pid))
            )
        except (FileNotFoundError, ProcessLookupError):
            return None
        except BrokerError as error:
            log.error("the coordinator's board cannot be read: %s", error)
            return None


def check_data_lock(paths: Paths) -> None:
    """Make sure that no other broker, with a run directory of its own, has the data directory.

    The coordinator takes the lock; this only says early what would end it. A holder that was killed a moment ago may
    still be on its way out, so it is given some time. Raises DirectoryLockedError that names lock and holder.
    """
    path = paths.data_lock
    end_ns = time.monotonic_ns() + _DATA_LOCK_WAIT_MS * NS_PER_MS
    while is_held(path):
        if time.monotonic_ns() > end_ns:
            pid = path.read_text().strip()
            hint = "stop that broker first, or give this one a --data-dir of its own"
            raise DirectoryLockedError(f"{path} is held by process {pid}: another broker has these data", hint=hint)
        time.sleep(0.01)


def main(
    config: ServerConfig,
    paths: Paths | None = None,
    *,
    role: Role = run_role,
    reload: Reload | None = None,
) -> int:
    """Run a whole broker in the foreground. Returns 0, 2 (settings), 70 (internal, crash loop) or 75 (locked)."""
    os.umask(0o077)
    start_logging("supervisor", config.logging.level, config.logging.format)
    try:
        paths = paths or paths_for(config)
        make_directories(paths)
        lock = leftovers.enter(paths, "supervisor")
    except ConfigError as error:
        log.error("%s", error)
        return EXIT_BAD_CONFIG
    except DirectoryLockedError as error:
        log.error("another supervisor runs here: %s", error)
        return EXIT_TEMPORARY
    except BrokerError as error:
        log.error("%s", error)
        return EXIT_INTERNAL
    try:
        check_data_lock(paths)
    except DirectoryLockedError as error:
        log.error("%s", error)
        leftovers.leave(paths, lock)
        return EXIT_TEMPORARY
    for removed in reaper.sweep(paths.run_dir, paths.boards_dir):
        log.info("removed %s, left by a dead process", removed)
    if role is run_role:
        for name in ("router", "coordinator", "partition"):
            importlib.import_module(f"zbroker.workers.{name}")
    # Pages that the collector never touches again stay shared with the children.
    gc.collect()
    gc.freeze()
    supervisor = Supervisor(config, paths, role=role, reload=reload)
    try:
        exit_code = supervisor.run()
    finally:
        supervisor.close()
    if exit_code == 0:
        leftovers.remove_all(paths)
    lock.release()
    if exit_code == 0:
        leftovers.remove_default_run_dir(paths)
    return exit_code
