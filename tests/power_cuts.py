"""Real power cuts: a broker on an ext4 of its own in a loop device, that loses at once what was not on its disk.

The file system is shut down with FS_IOC_SHUTDOWN while all processes of the broker stand still (a write that races the
shutdown may be told that it was synced), then it is mounted again, which replays its journal. Run as a program this is
what `zbroker.testing.serve` is, with a boot id from the environment: after a cut the host has another.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
import uuid
from pathlib import Path

import msgspec
import psutil

from tests.conditions import wait_until, wait_until_stopped
from zbroker import testing
from zbroker.config.schema import ServerConfig
from zbroker.storage.files import Files
from zbroker.workers import supervisor
from zbroker.workers.process import die_with_parent

BOOT_VARIABLE = "ZBROKER_TEST_BOOT_ID"
SIZE_BYTES = 128 << 20
_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN
_WITHOUT_JOURNAL = struct.pack("I", 2)  # nothing more reaches the disk, not even the journal


class NoLoopDiskError(Exception):
    """Why no power can be cut here."""


class LoopDisk:
    """An ext4 in a file, mounted at `mount`."""

    def __init__(self, directory: Path) -> None:
        """Raises NoLoopDiskError."""
        self._image = directory / "disk"
        self.mount = directory / "mount"
        if os.geteuid() != 0:
            raise NoLoopDiskError("only root may mount")
        if shutil.which("mkfs.ext4") is None:
            raise NoLoopDiskError("there is no mkfs.ext4")
        self.mount.mkdir()
        with self._image.open("wb") as file:
            file.truncate(SIZE_BYTES)
        _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self._image))
        self._mount()

    def _mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.mount))

    def cut(self) -> None:
        """Nothing that was not on the disk will ever be."""
        fd = os.open(self.mount, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, _WITHOUT_JOURNAL)
        except OSError as error:
            raise NoLoopDiskError(f"ext4 does not know FS_IOC_SHUTDOWN: {error}") from error
        finally:
            os.close(fd)

    def mount_again(self) -> None:
        """The power is back. Nobody may have a file open."""
        self.close()
        self._mount()

    def close(self) -> None:
        """Unmount."""
        wait_until(lambda: subprocess.run(["umount", str(self.mount)], capture_output=True).returncode == 0)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NoLoopDiskError(f"{' '.join(command)}: {done.stderr.strip()}")


class Broker(testing.Broker):
    """A broker whose data are on a disk that loses its power."""

    program = "tests.power_cuts"

    def cut_power(self, disk: LoopDisk) -> None:
        """All processes and what was not on the disk are gone; the host is booted again, and the broker started."""
        processes = [psutil.Process(self.supervisor_pid)]
        processes += processes[0].children(recursive=True)
        for one in processes:
            os.kill(one.pid, signal.SIGSTOP)
        wait_until_stopped(*(one.pid for one in processes))
        disk.cut()
        self.kill_all()
        for memory in (self.paths.run_dir, self.paths.boards_dir):
            shutil.rmtree(memory, ignore_errors=True)
        disk.mount_again()
        os.environ[BOOT_VARIABLE] = str(uuid.uuid4())
        self.start()


if __name__ == "__main__":
    boot_id = os.environ[BOOT_VARIABLE]
    Files.boot_id = lambda self: boot_id  # type: ignore[method-assign]  # the host's own would say that nothing was lost
    die_with_parent(int(sys.argv[2]))
    sys.exit(supervisor.main(msgspec.json.decode(sys.argv[1], type=ServerConfig)))
