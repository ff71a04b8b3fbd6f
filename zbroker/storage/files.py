"""The one seam between the log and the operating system.

Guarantees: every failure is a typed error of `zbroker.errors` (ENOSPC and EDQUOT: DiskFullError; EMFILE and ENFILE:
TooManyOpenFilesError; a held lock: DirectoryLockedError; the rest: StorageError), but for FileNotFoundError, which
callers expect. `pwrite` either wrote everything or raised. Every descriptor is close-on-exec and follows no link.

It decides nothing: what is synced, and when, is the log's business. Tests inject faults by a subclass.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from zbroker.errors import BrokerError, DirectoryLockedError, DiskFullError, StorageError, TooManyOpenFilesError
from zbroker.storage import syscalls

_FILE_MODE: Final = 0o600
_DIRECTORY_MODE: Final = 0o700
_ALWAYS: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_NO_SUCH_CALL: Final = (errno.EOPNOTSUPP, errno.ENOSYS)
_ZEROS: Final = bytes(1 << 16)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

Buffer = bytes | bytearray | memoryview


def storage_error(error: OSError, what: str) -> BrokerError:
    """The typed error for an OSError; `what` says what was being done to which file."""
    message = f"{what}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(message)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return TooManyOpenFilesError(message)
    return StorageError(message)


def _raise(error: OSError, what: str) -> NoReturn:
    if isinstance(error, FileNotFoundError):
        raise error
    raise storage_error(error, what) from error


class Files:
    """Calls on files and directories, as the operating system does them.

    `make_room` closes a descriptor that is not needed at the moment, and says whether it found one: calls that open a
    file use it when none is left, and try again.
    """

    def __init__(self) -> None:
        self.make_room: Callable[[], bool] = lambda: False

    # --- descriptors -------------------------------------------------------------------------------------------------

    def open(self, path: Path | str, flags: int = os.O_RDONLY) -> int:
        """Open a file; O_CREAT makes it with mode 0600. FileNotFoundError passes."""
        while True:
            try:
                return os.open(path, flags | _ALWAYS, _FILE_MODE)
            except OSError as error:
                if error.errno != errno.EMFILE or not self.make_room():
                    _raise(error, f"open {path}")

    def duplicate(self, fd: int) -> int:
        """A second descriptor of the same open file, which may be used and closed in another thread."""
        try:
            return os.dup(fd)
        except OSError as error:
            _raise(error, "dup")

    def close(self, fd: int) -> None:
        """Close a descriptor. An error is not reported: data that matter were synced before."""
        try:
            os.close(fd)
        except OSError:
            pass

    def size_bytes(self, fd: int) -> int:
        """The file's length."""
        try:
            return os.fstat(fd).st_size
        except OSError as error:
            _raise(error, "fstat")

    # --- bytes -------------------------------------------------------------------------------------------------------

    def write_some(self, fd: int, data: Buffer, position: int) -> int:
        """One pwrite(2): how many bytes it took, which may be fewer than asked."""
        return os.pwrite(fd, data, position)

    def pwrite(self, fd: int, data: Buffer, position: int) -> None:
        """Write all of `data`. On an error, any part of it may have been written."""
        try:
            written = self.write_some(fd, data, position)
            if written == len(data):
                return
            with memoryview(data) as view:
                while written < len(data):
                    with view[written:] as rest:
                        count = self.write_some(fd, rest, position + written)
                    if count == 0:
                        raise OSError(errno.EIO, "a write of 0 bytes")
                    written += count
        except OSError as error:
            _raise(error, f"write {len(data)} bytes at {position}")

    def pread(self, fd: int, size_bytes: int, position: int) -> bytes:
        """Up to `size_bytes` bytes; fewer only at the end of the file."""
        try:
            data = os.pread(fd, size_bytes, position)
            if len(data) == size_bytes or not data:
                return data
            parts = [data]
            missing = size_bytes - len(data)
            while missing:
                part = os.pread(fd, missing, position + size_bytes - missing)
                if not part:
                    break
                parts.append(part)
                missing -= len(part)
            return b"".join(parts)
        except OSError as error:
            _raise(error, f"read {size_bytes} bytes at {position}")

    def pread_into(self, fd: int, view: memoryview, position: int) -> int:
        """Fill `view`; how many bytes came, which are fewer only at the end of the file."""
        try:
            count = os.preadv(fd, [view], position)
            while 0 < count < len(view):
                with view[count:] as rest:
                    more = os.preadv(fd, [rest], position + count)
                if not more:
                    break
                count += more
            return count
        except OSError as error:
            _raise(error, f"read {len(view)} bytes at {position}")

    # --- durability and space ----------------------------------------------------------------------------------------

    def fdatasync(self, fd: int) -> None:
        """Return when the file's bytes are on the device. Never retry an error: the kernel then calls pages clean."""
        try:
            os.fdatasync(fd)
        except OSError as error:
            _raise(error, "fdatasync")

    def fsync_directory(self, path: Path) -> None:
        """Return when the directory's names are on the device."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        except OSError as error:
            _raise(error, f"fsync {path}")
        finally:
            self.close(fd)

    def fallocate(self, fd: int, position: int, size_bytes: int) -> bool:
        """Give the range blocks that read as zeros, and grow the file to its end. False: the file system cannot."""
        try:
            syscalls.fallocate(fd, 0, position, size_bytes)
        except OSError as error:
            if error.errno in _NO_SUCH_CALL:
                return False
            _raise(error, f"allocate {size_bytes} bytes at {position}")
        return True

    def punch_hole(self, fd: int, position: int, size_bytes: int) -> None:
        """Make the range read as zeros and give its blocks back; the file keeps its length."""
        mode = syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE
        try:
            syscalls.fallocate(fd, mode, position, size_bytes)
        except OSError as error:
            if error.errno not in _NO_SUCH_CALL:
                _raise(error, f"punch {size_bytes} bytes at {position}")
            end = position + size_bytes
            for at in range(position, end, len(_ZEROS)):
                self.pwrite(fd, _ZEROS[: end - at], at)

    def shorten(self, fd: int, size_bytes: int) -> None:
        """Cut the end of a file that nobody has mapped."""
        try:
            os.ftruncate(fd, size_bytes)
        except OSError as error:
            _raise(error, f"shorten to {size_bytes} bytes")

    def next_data(self, fd: int, position: int) -> int | None:
        """The first position at or after `position` that may hold written bytes. None: there is none."""
        try:
            return os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            if error.errno == errno.EINVAL:
                return position
            _raise(error, "lseek")

    def expect_random_reads(self, fd: int, expect: bool) -> None:
        """Whether the kernel shall read nothing ahead of what is asked for. A hint."""
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM if expect else os.POSIX_FADV_NORMAL)
        except OSError:
            pass

    def sync_file_range(self, fd: int, position: int, size_bytes: int) -> None:
        """Start the write-back of a range. A hint: an error of the device shows at the next fdatasync."""
        try:
            syscalls.sync_file_range(fd, position, size_bytes)
        except OSError:
            pass

    def free_bytes(self, path: Path) -> int:
        """Bytes that an unprivileged process may still allocate on the path's file system."""
        try:
            found = os.statvfs(path)
        except OSError as error:
            _raise(error, f"statvfs {path}")
        return found.f_bavail * found.f_frsize

    def is_tmpfs(self, path: Path) -> bool:
        """Whether the path lies in memory."""
        try:
            return syscalls.is_tmpfs(path)
        except OSError as error:
            _raise(error, f"statfs {path}")

    # --- names -------------------------------------------------------------------------------------------------------

    def list_directory(self, path: Path) -> list[str]:
        """The names of a directory's regular files."""
        while True:
            try:
                with os.scandir(path) as entries:
                    return [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
            except OSError as error:
                if error.errno != errno.EMFILE or not self.make_room():
                    _raise(error, f"list {path}")

    def make_directory(self, path: Path) -> bool:
        """Make a directory and its parents, mode 0700. False: it was there."""
        try:
            if path.is_dir():
                return False
            path.mkdir(_DIRECTORY_MODE, parents=True, exist_ok=True)
        except OSError as error:
            _raise(error, f"mkdir {path}")
        return True

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory."""
        try:
            path.rmdir()
        except OSError as error:
            _raise(error, f"rmdir {path}")

    def rename(self, source: Path, target: Path) -> None:
        """Rename, replacing the target."""
        try:
            os.rename(source, target)
        except OSError as error:
            _raise(error, f"rename {source} to {target.name}")

    def unlink(self, path: Path) -> None:
        """Remove a name; that it is gone already is no error."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            _raise(error, f"unlink {path}")

    def read_file(self, path: Path, size_bytes_max: int) -> bytes | None:
        """The first `size_bytes_max` bytes of a small file; None when there is no such file."""
        try:
            fd = self.open(path)
        except FileNotFoundError:
            return None
        try:
            # Not more than there is: a read allocates what it is asked for.
            return self.pread(fd, min(size_bytes_max, self.size_bytes(fd)), 0)
        finally:
            self.close(fd)

    def replace_file(self, path: Path, data: bytes, *, durable: bool) -> None:
        """Write a small file aside and rename it into place: after the death of the process either the old or the new
        content is there, and after a power cut too when `durable` is set."""
        aside = path.with_name(path.name + ".tmp")
        fd = self.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            self.pwrite(fd, data, 0)
            if durable:
                self.fdatasync(fd)
        finally:
            self.close(fd)
        self.rename(aside, path)
        if durable:
            self.fsync_directory(path.parent)

    # --- ownership ---------------------------------------------------------------------------------------------------

    def lock_directory(self, path: Path) -> int:
        """Hold the directory's lock until the descriptor is closed. Never waits: DirectoryLockedError if it is held."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close(fd)
            if error.errno == errno.EWOULDBLOCK:
                raise DirectoryLockedError(f"{path} is held by another process") from error
            _raise(error, f"lock {path}")
        return fd

    def boot_id(self) -> str:
        """The kernel's name for this boot: what the page cache held before another one is gone."""
        try:
            return _BOOT_ID.read_text().strip()
        except OSError as error:
            _raise(error, f"read {_BOOT_ID}")
