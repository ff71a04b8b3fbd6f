"""Where everything of one broker lies: one value that every process computes alike from the settings.

Guarantees: every path is absolute; every socket path fits into `sockaddr_un` (107 bytes), or `paths_for` raises
ConfigError before any process starts. It creates nothing: `make_directories` does, with mode 0700.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from zbroker.config.schema import BrokerSection, ServerConfig
from zbroker.errors import ConfigError

SOCKET_PATH_BYTES_MAX = 107  # sockaddr_un.sun_path is 108 bytes with its final zero
_LONGEST_SOCKET_NAME = "stream-replica-99999.sock"
TMPFS_ROOT = Path("/dev/shm")


class Paths(NamedTuple):
    """The directories of one broker and the names in them."""

    data_dir: Path
    run_dir: Path
    boards_dir: Path
    memory_dir: Path
    further_data_dirs: tuple[Path, ...]

    @property
    def bootstrap_servers(self) -> str:
        """What a client passes to reach this broker."""
        return f"ipc://{self.run_dir}"

    @property
    def front(self) -> Path:
        """The router's socket for clients."""
        return self.run_dir / "front.sock"

    @property
    def back(self) -> Path:
        """The router's socket for the other processes."""
        return self.run_dir / "back.sock"

    def lane_socket(self, process_name: str) -> Path:
        """The Unix socket over which a worker hands out lanes."""
        return self.run_dir / f"lane-{process_name}.sock"

    def stream_socket(self, process_name: str) -> Path:
        """The socket over which a process streams the partitions that it leads to those that follow."""
        return self.run_dir / f"stream-{process_name}.sock"

    def lock(self, process_name: str) -> Path:
        """The file that a process holds locked for as long as it lives."""
        return self.run_dir / f"lock-{process_name}"

    @property
    def data_lock(self) -> Path:
        """The file that the coordinator holds locked: one broker for one data directory."""
        return self.data_dir / "lock"

    @property
    def metadata_dir(self) -> Path:
        """The metadata log's directory."""
        return self.data_dir / "metadata"

    @property
    def offsets_dir(self) -> Path:
        """The log of the offsets that consumer groups have committed."""
        return self.data_dir / "offsets"

    @property
    def groups_dir(self) -> Path:
        """Where the slot files of the groups' members lie."""
        return self.boards_dir.parent / "groups"

    @property
    def data_dirs_file(self) -> Path:
        """The file in the run directory that names the data directories, for who knows only where the broker runs."""
        return self.run_dir / "data-dirs"

    @property
    def copies_dirs(self) -> tuple[Path, ...]:
        """The directories that hold copies, the first data directory's first."""
        return tuple(path / "copies" for path in (self.data_dir, *self.further_data_dirs))


def default_data_dir() -> Path:
    """$XDG_DATA_HOME/zbroker, or ~/.local/share/zbroker."""
    root = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(root).expanduser().absolute() / "zbroker"


def _absolute(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _user_root() -> Path:
    return TMPFS_ROOT / f"zbroker-{os.getuid()}"


def _short_hash(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:8]


def default_run_dir(data_dir: Path) -> Path:
    """The run directory of a data directory: short, on tmpfs, private to the user."""
    return _user_root() / _short_hash(data_dir)


def is_on_tmpfs(path: Path) -> bool:
    """Whether the path, or its nearest ancestor that exists, lies on /dev/shm's file system; no if it is closed."""
    try:
        while not path.exists():
            path = path.parent
        return path.stat().st_dev == TMPFS_ROOT.stat().st_dev
    except (FileNotFoundError, PermissionError):
        return False


def paths_for(config: ServerConfig) -> Paths:
    """Compute the paths of a broker. Raises ConfigError when a socket's path would be too long."""
    broker = config.broker
    data_dir = _absolute(broker.data_dir) if broker.data_dir else default_data_dir()
    run_dir = _absolute(broker.run_dir) if broker.run_dir else default_run_dir(data_dir)
    longest = run_dir / _LONGEST_SOCKET_NAME
    length_bytes = len(os.fsencode(longest))
    if length_bytes > SOCKET_PATH_BYTES_MAX:
        raise ConfigError(
            f"broker.run_dir: the socket path {longest} has {length_bytes} bytes, "
            f"the kernel takes {SOCKET_PATH_BYTES_MAX}; give a shorter directory with --run-dir"
        )
    tmpfs_dir = run_dir if is_on_tmpfs(run_dir) else _user_root() / _short_hash(run_dir)
    further = tuple(_absolute(entry.path) for entry in config.data_dirs)
    return Paths(data_dir, run_dir, tmpfs_dir / "boards", tmpfs_dir / "memory", further)


def _make(directory: Path) -> None:
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in made:
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def make_directories(paths: Paths) -> None:
    """Create the directories that a broker needs, mode 0700; those that were made survive a power cut. Those that exist
    are left as they are, but checked.

    Raises ConfigError when one cannot be made, or belongs to another user.
    """
    wanted = {
        "broker.data_dir": (paths.data_dir, paths.metadata_dir, paths.offsets_dir, *paths.copies_dirs),
        "broker.run_dir": (paths.run_dir, paths.boards_dir, paths.memory_dir, paths.groups_dir),
    }
    for setting, directories in wanted.items():
        for directory in directories:
            try:
                _make(directory)
                owner = directory.stat().st_uid
            except OSError as error:
                raise ConfigError(f"{setting}: cannot make {directory}: {error.strerror}") from error
            if owner != os.getuid():
                raise ConfigError(f"{setting}: {directory} belongs to uid {owner}, this process is uid {os.getuid()}")


def note_data_dirs(paths: Paths) -> None:
    """Write which data directories the broker of this run directory has: whole, or as before. Raises ConfigError."""
    names = b"\0".join(map(os.fsencode, (paths.data_dir, *paths.further_data_dirs)))
    try:
        if not (paths.data_dirs_file.exists() and paths.data_dirs_file.read_bytes() == names):
            unfinished = paths.data_dirs_file.with_name(f"data-dirs.{os.getpid()}.tmp")
            unfinished.write_bytes(names)
            unfinished.replace(paths.data_dirs_file)
    except OSError as error:
        raise ConfigError(f"broker.run_dir: cannot write {paths.data_dirs_file}: {error.strerror}") from error


def paths_at(run_dir: Path) -> Paths | None:
    """The paths of the broker that runs in a directory, or died there. None: none does, or it was stopped."""
    paths = paths_for(ServerConfig(broker=BrokerSection(run_dir=str(run_dir))))
    try:
        data_dir, *further = map(Path, map(os.fsdecode, paths.data_dirs_file.read_bytes().split(b"\0")))
    except OSError:
        return None
    return paths._replace(data_dir=data_dir, further_data_dirs=tuple(further))
