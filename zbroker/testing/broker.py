"""A real broker for tests: all its processes, on a temporary directory, in a fraction of a second.

    with Broker(workers=2) as broker:
        producer = Producer(bootstrap_servers=broker.bootstrap_servers)
        broker.kill("worker-0")

Guarantees: when `start` returns, the broker answers; when `stop` returns, its processes are gone and so is its
directory; nothing survives the test run, however that ends, but the directory of one that was killed, which the next
broker of a test removes. Nothing is shared with a broker that runs on the host.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from zbroker.config.load import check
from zbroker.config.paths import Paths, paths_for
from zbroker.config.schema import ServerConfig
from zbroker.errors import ConfigError
from zbroker.shm.owned_directory import OwnedDirectory

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
_NAME_PREFIX = "zb-"


class BrokerFailedError(RuntimeError):
    """The broker ended, or did not answer in time. The message holds the last lines of its log."""


class Broker:
    """A broker of its own. Use it as a context manager, or call `start` and `stop`."""

    program = "zbroker.testing.serve"
    """The module that is run, with the settings in its argument."""

    def __init__(
        self,
        *,
        workers: int | str = 1,
        replicas: int = 0,
        config: Mapping[str, Any] | None = None,
        directory: Path | None = None,
    ) -> None:
        """`config` has the sections of zbroker.toml: {"topics": {"segment_bytes": 65536}}.

        `directory` keeps the data on a disk of choice, and after the stop; without it they are on /dev/shm and go.
        Raises ConfigError.
        """
        self._temporary: OwnedDirectory | None = None
        if directory is None:
            self._temporary = OwnedDirectory.make_in_memory(f"zbt-{os.getpid()}-")
            directory = self._temporary.path
        self.directory = directory
        try:
            self.config = self._config_of(config or {}, workers, replicas)
            self.paths: Paths = paths_for(self.config)
        except ConfigError:
            self._remove_temporary()
            raise
        self._log_path = self.directory / "log.txt"
        self._process: subprocess.Popen[bytes] | None = None

    def _config_of(self, config: Mapping[str, Any], workers: int | str, replicas: int) -> ServerConfig:
        tree: dict[str, Any] = {section: dict(values) for section, values in config.items()}
        tree.setdefault("workers", {}).setdefault("count", workers)
        tree.setdefault("replicas", {}).setdefault("count", replicas)
        broker = tree.setdefault("broker", {})
        broker.setdefault("data_dir", str(self.directory / "data"))
        broker.setdefault("run_dir", str(self.directory / "run"))
        try:
            found = msgspec.convert(tree, ServerConfig)
        except msgspec.ValidationError as error:
            raise ConfigError(str(error)) from error
        check(found)
        return found

    @property
    def bootstrap_servers(self) -> str:
        """What a client passes to reach this broker."""
        return self.paths.bootstrap_servers

    @property
    def log(self) -> str:
        """What the processes have written to stderr so far."""
        try:
            return self._log_path.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    @property
    def supervisor_pid(self) -> int:
        """The pid of the supervisor."""
        assert self._process is not None, "the broker is not started"
        return self._process.pid

    def start(self) -> Self:
        """Start every process and wait until the broker answers. Raises BrokerFailedError."""
        assert self._process is None, "the broker is started already"
        self.directory.mkdir(parents=True, exist_ok=True)
        settings = msgspec.json.encode(self.config).decode()
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.program, settings, str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                process_group=0,  # a terminal's Ctrl-C is for its user, who then stops it
            )
        try:
            self._wait_for_ready_line(self._process)
        except BaseException:
            self.kill_all()
            raise
        return self

    def _wait_for_ready_line(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        deadline_s = time.monotonic() + START_TIMEOUT_S
        # Not select: an application under test may have more descriptors than that takes.
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        line = b""
        while not line.endswith(b"\n"):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not poll.poll(left_s * 1_000):
                raise BrokerFailedError(f"the broker did not answer within {START_TIMEOUT_S} s:\n{self._log_end()}")
            read = os.read(process.stdout.fileno(), 4096)
            if not read:
                raise BrokerFailedError(f"the broker ended at its start ({process.wait()}):\n{self._log_end()}")
            line += read
        expected = f"zbroker ready {self.bootstrap_servers}\n"
        if line.decode() != expected:
            raise BrokerFailedError(f"the broker said {line!r} in place of {expected!r}")

    def stop(self) -> int:
        """Stop every process in order and give the supervisor's exit code. The data are kept until `remove`."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        return process.returncode

    def kill_all(self) -> None:
        """End every process at once, as a crash of all of them would. `start` then recovers."""
        process, self._process = self._process, None
        if process is None:
            return
        children = self._children(process.pid)
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while any(_is_alive(pid) for pid in children.values()) and time.monotonic() < deadline_s:
            time.sleep(0.002)

    def restart(self) -> Self:
        """Stop in order and start again on the same data."""
        self.stop()
        return self.start()

    def close(self) -> None:
        """Stop, and remove the directory when it is a temporary one."""
        self.stop()
        self._remove_temporary()

    def process_names(self) -> list[str]:
        """Names of the broker's processes that live: router, coordinator, worker-0..."""
        return sorted(self._children(self.supervisor_pid))

    def pid_of(self, name: str) -> int:
        """The pid of a process now. Raises KeyError while it is not there."""
        return self._children(self.supervisor_pid)[name]

    def signal(self, name: str, number: int) -> int:
        """Send a signal to a process; gives the pid it had."""
        pid = self.pid_of(name)
        os.kill(pid, number)
        return pid

    def kill(self, name: str) -> int:
        """SIGKILL a process and wait until it is gone; gives the pid it had. The supervisor starts it again."""
        pid = self.signal(name, signal.SIGKILL)
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while _is_alive(pid):
            assert time.monotonic() < deadline_s, f"{name} ({pid}) survives SIGKILL"
            time.sleep(0.0005)
        return pid

    def wait_for_restart(self, name: str, old_pid: int, *, timeout_s: float = START_TIMEOUT_S) -> int:
        """Wait until a process has another pid than `old_pid`, and give it. Raises BrokerFailedError."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            pid = self._children(self.supervisor_pid).get(name, old_pid)
            if pid != old_pid:
                return pid
            time.sleep(0.001)
        raise BrokerFailedError(f"{name} did not come back within {timeout_s} s:\n{self._log_end()}")

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _children(self, parent_pid: int) -> dict[str, int]:
        """The supervisor's children by name. A process that has not set its name yet is left out."""
        found = {}
        try:
            pids = Path(f"/proc/{parent_pid}/task/{parent_pid}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            return {}
        for pid in map(int, pids):
            try:
                name = Path(f"/proc/{pid}/comm").read_text().strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if name.startswith(_NAME_PREFIX) and _is_alive(pid):
                found[name.removeprefix(_NAME_PREFIX)] = pid
        return found

    def _log_end(self) -> str:
        return "\n".join(self.log.splitlines()[-40:])

    def _remove_temporary(self) -> None:
        if self._temporary is not None:
            self._temporary.remove()


def _is_alive(pid: int) -> bool:
    """Whether the process exists and is more than an entry that waits to be reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text[text.rindex(")") + 2] not in "ZX"
