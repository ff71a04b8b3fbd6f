"""A disk in memory that can lose its power: what was not synced survives in part, torn, or not at all.

Rules, as strict as POSIX lets a file system be: fdatasync makes the bytes and the length of one file durable, and not
its name; syncing a directory makes the names in it durable, and not what the files hold. A rename is one operation:
both names change or none. Everything else may reach the disk in any order, in part, or never. A write may be torn at
every byte, but for one that lies within a sector of 512 bytes: that one is whole or not there.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from zbroker.errors import DirectoryLockedError
from zbroker.storage.files import Buffer, Files

SECTOR_BYTES: Final = 512
MODES: Final = ("none", "all", "prefix", "subset")


class Change(NamedTuple):
    """An operation on a file: bytes that go to a position, zeros that do, or a new length."""

    time: int
    kind: str  # "write", "grow", "punch", "length"
    position: int
    data: bytes = b""
    size_bytes: int = 0


class Rename(NamedTuple):
    """An operation on a directory: names that get another file, or none."""

    time: int
    directory: str
    names: dict[str, int | None]


class Inode:
    """A file: what is on the disk, what the page cache has, and the operations between the two."""

    __slots__ = ("live", "pending", "synced")

    def __init__(self, synced: bytes = b"") -> None:
        self.synced = synced
        self.live = bytearray(synced)
        self.pending: list[Change] = []


def apply(data: bytearray, change: Change, begin: int = 0, end: int | None = None) -> None:
    """Do an operation, or the bytes of it from `begin` to `end`."""
    if change.kind == "length":
        del data[change.size_bytes :]
        data.extend(bytes(change.size_bytes - len(data)))
        return
    size_bytes = len(change.data) if change.kind == "write" else change.size_bytes
    begin, end = change.position + begin, change.position + (size_bytes if end is None else end)
    if change.kind == "punch":
        end = min(end, len(data))
        data[begin:end] = bytes(max(0, end - begin))
        return
    data.extend(bytes(max(0, end - len(data))))
    if change.kind == "write":
        data[begin:end] = change.data[begin - change.position : end - change.position]


class Disk:
    """The disk. `names` and `inodes` are as the processes see them."""

    def __init__(self, *directories: str) -> None:
        """A disk with these directories, empty."""
        self.inodes: dict[int, Inode] = {}
        self.names: dict[str, dict[str, int]] = {path: {} for path in directories}
        self.synced_names: dict[str, dict[str, int]] = {path: {} for path in directories}
        self.renames: list[Rename] = []
        self.clock = itertools.count(1)
        self.number = itertools.count(1)

    def rename(self, directory: str, names: dict[str, int | None]) -> None:
        """Change names in one go."""
        self.renames.append(Rename(next(self.clock), directory, names))
        _rename(self.names[directory], names)

    def sync_names(self, directory: str) -> None:
        """What `Files.fsync_directory` does."""
        self.synced_names[directory] = dict(self.names[directory])
        self.renames = [one for one in self.renames if one.directory != directory]

    def change(self, inode: Inode, kind: str, position: int, data: bytes = b"", size_bytes: int = 0) -> None:
        """Change a file."""
        change = Change(next(self.clock), kind, position, data, size_bytes)
        inode.pending.append(change)
        apply(inode.live, change)

    def after_power_cut(self, generator: random.Random) -> Disk:
        """A disk as this one may be found when the power went now."""
        times = [change.time for inode in self.inodes.values() for change in inode.pending]
        times += [one.time for one in self.renames]
        latest = generator.choice(times) if times else 0
        cut = Disk()
        name_choice = _Choice(generator, latest)
        for directory, names in self.synced_names.items():
            cut.names[directory] = dict(names)
        for one in self.renames:
            if name_choice.takes(one.time):
                _rename(cut.names.setdefault(one.directory, {}), one.names)
        splits = {path: os.path.split(path) for path in cut.names}
        lost = [path for path, (parent, name) in splits.items() if name not in cut.names.get(parent, name)]
        for directory in lost:
            del cut.names[directory]
        choice = _Choice(generator, latest)
        kept = {number for names in cut.names.values() for number in names.values()}
        for number in kept:
            cut.inodes[number] = Inode(_survivor(self.inodes[number], choice))
        cut.synced_names = {directory: dict(names) for directory, names in cut.names.items()}
        cut.number = itertools.count(max(self.inodes, default=0) + 1)
        return cut


def _rename(names: dict[str, int], changes: dict[str, int | None]) -> None:
    for name, number in changes.items():
        if number is None:
            names.pop(name, None)
        else:
            names[name] = number


class _Choice:
    """Which unsynced operations survive: none, all, those before a moment, or any."""

    def __init__(self, generator: random.Random, latest: int) -> None:
        self.mode = generator.choice(MODES)
        self.share = generator.choice((0.1, 0.5, 0.9))
        self.latest = latest
        self.generator = generator

    def takes(self, time: int) -> bool:
        if self.mode == "prefix":
            return time <= self.latest
        return self.mode == "all" or (self.mode == "subset" and self.generator.random() < self.share)

    def tears(self, time: int) -> bool:
        if self.mode == "prefix":
            return time == self.latest
        return self.mode == "subset" and self.generator.random() < 0.3


def _survivor(inode: Inode, choice: _Choice) -> bytes:
    if not inode.pending or choice.mode == "none":
        return inode.synced
    if choice.mode == "all":
        return bytes(inode.live)
    data = bytearray(inode.synced)
    for change in inode.pending:
        if not choice.takes(change.time):
            continue
        size_bytes = len(change.data) or change.size_bytes
        is_in_sector = change.position // SECTOR_BYTES == (change.position + size_bytes - 1) // SECTOR_BYTES
        if change.kind == "length" or is_in_sector or not choice.tears(change.time):
            apply(data, change)
        else:
            apply(data, change, *_torn(choice.generator, size_bytes))
    return bytes(data)


def _torn(generator: random.Random, size_bytes: int) -> tuple[int, int]:
    """The part of an operation that survives: a beginning, an end, or something between."""
    first, second = sorted((generator.randint(0, size_bytes), generator.randint(0, size_bytes)))
    return generator.choice(((0, second), (first, size_bytes), (first, second)))


class _Opened:
    __slots__ = ("directory", "inode")

    def __init__(self, inode: Inode | None, directory: str | None = None) -> None:
        self.inode = inode
        self.directory = directory


class SimulatedFiles(Files):
    """The files of a process on a simulated disk. `before_change` is told before each operation that changes it."""

    def __init__(self, disk: Disk, boot: int) -> None:
        super().__init__()
        self.disk = disk
        self.before_change: Callable[[], None] = lambda: None
        self.locked: set[str] = set()
        self._boot = boot
        self._opened: dict[int, _Opened] = {}
        self._numbers = itertools.count(1_000_000)  # no descriptor of a real file

    def _inode(self, fd: int) -> Inode:
        inode = self._opened[fd].inode
        assert inode is not None
        return inode

    def _take(self, opened: _Opened) -> int:
        fd = next(self._numbers)
        self._opened[fd] = opened
        return fd

    def open(self, path: Path | str, flags: int = os.O_RDONLY) -> int:
        path = str(path)
        disk = self.disk
        if flags & os.O_DIRECTORY:
            if path not in disk.names:
                raise FileNotFoundError(errno.ENOENT, "no such directory", path)
            return self._take(_Opened(None, path))
        parent, name = os.path.split(path)
        number = disk.names.get(parent, {}).get(name)
        if number is None:
            if not flags & os.O_CREAT or parent not in disk.names:
                raise FileNotFoundError(errno.ENOENT, "no such file", path)
            self.before_change()
            number = next(disk.number)
            disk.inodes[number] = Inode()
            disk.rename(parent, {name: number})
        elif flags & os.O_TRUNC:
            self.before_change()
            disk.change(disk.inodes[number], "length", 0)
        return self._take(_Opened(disk.inodes[number]))

    def duplicate(self, fd: int) -> int:
        return self._take(_Opened(self._inode(fd)))

    def close(self, fd: int) -> None:
        directory = self._opened.pop(fd).directory
        if directory is not None:
            self.locked.discard(directory)

    def size_bytes(self, fd: int) -> int:
        return len(self._inode(fd).live)

    def write_some(self, fd: int, data: Buffer, position: int) -> int:
        self.before_change()
        self.disk.change(self._inode(fd), "write", position, bytes(data))
        return len(data)

    def pread(self, fd: int, size_bytes: int, position: int) -> bytes:
        return bytes(self._inode(fd).live[position : position + max(0, size_bytes)])

    def pread_into(self, fd: int, view: memoryview, position: int) -> int:
        data = self.pread(fd, len(view), position)
        view[: len(data)] = data
        return len(data)

    def fdatasync(self, fd: int) -> None:
        self.before_change()
        inode = self._inode(fd)
        inode.synced = bytes(inode.live)
        inode.pending.clear()

    def fsync_directory(self, path: Path) -> None:
        self.before_change()
        self.disk.sync_names(str(path))

    def fallocate(self, fd: int, position: int, size_bytes: int) -> bool:
        self.before_change()
        self.disk.change(self._inode(fd), "grow", position, size_bytes=size_bytes)
        return True

    def punch_hole(self, fd: int, position: int, size_bytes: int) -> None:
        self.before_change()
        self.disk.change(self._inode(fd), "punch", position, size_bytes=size_bytes)

    def shorten(self, fd: int, size_bytes: int) -> None:
        self.before_change()
        self.disk.change(self._inode(fd), "length", 0, size_bytes=size_bytes)

    def next_data(self, fd: int, position: int) -> int | None:
        return position if position < self.size_bytes(fd) else None

    def expect_random_reads(self, fd: int, expect: bool) -> None:
        pass

    def sync_file_range(self, fd: int, position: int, size_bytes: int) -> None:
        pass

    def free_bytes(self, path: Path) -> int:
        return 1 << 40

    def is_tmpfs(self, path: Path) -> bool:
        return False

    def list_directory(self, path: Path) -> list[str]:
        directories = {name for parent, name in map(os.path.split, self.disk.names) if parent == str(path)}
        return [name for name in self.disk.names[str(path)] if name not in directories]

    def make_directory(self, path: Path) -> bool:
        disk = self.disk
        if str(path) in disk.names:
            return False
        self.before_change()
        number = next(disk.number)
        disk.inodes[number] = Inode()
        disk.rename(str(path.parent), {path.name: number})
        disk.names[str(path)], disk.synced_names[str(path)] = {}, {}
        return True

    def rename(self, source: Path, target: Path) -> None:
        assert source.parent == target.parent
        parent, name = os.path.split(source)
        number = self.disk.names[parent].get(name)
        if number is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(source))
        self.before_change()
        self.disk.rename(parent, {name: None, target.name: number})

    def unlink(self, path: Path) -> None:
        parent, name = os.path.split(path)
        if name in self.disk.names.get(parent, {}):
            self.before_change()
            self.disk.rename(parent, {name: None})

    def lock_directory(self, path: Path) -> int:
        if str(path) in self.locked:
            raise DirectoryLockedError(f"{path} is held by another process")
        self.locked.add(str(path))
        return self.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def boot_id(self) -> str:
        return f"00000000-0000-0000-0000-{self._boot:012d}"
