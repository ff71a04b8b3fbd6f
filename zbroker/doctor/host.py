"""Rules for the host: limits, shared memory, clock, file system, leftovers, versions.

Each rule takes the values that it judges as parameters, so that a test can provoke it; `examine_host` reads them from
this machine. Nothing is changed.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from zbroker.config.load import worker_count
from zbroker.config.paths import TMPFS_ROOT, Paths
from zbroker.config.schema import MIB, ServerConfig
from zbroker.doctor.findings import Finding, failed, passed, warned
from zbroker.ids import is_alive, pid_of
from zbroker.shm.owned_directory import abandoned, temporary_parents

OPEN_FILES_WANTED = 65_536
OPEN_FILES_NEEDED = 1_024
MAPPINGS_WANTED = 65_530
GOOD_CLOCKS = frozenset({"tsc", "kvm-clock", "arch_sys_counter"})
NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "vboxsf"})
LIBZMQ_NEEDED = (4, 3, 5)


def open_files(soft: int, hard: int) -> Finding:
    """A partition needs a few descriptors, a client two: 1,024 is soon used up."""
    if hard < OPEN_FILES_NEEDED:
        fix = "ulimit -Hn 65536 in the shell, LimitNOFILE=65536 in the systemd unit"
        return failed("open files", f"the hard limit is {hard}", fix)
    if hard < OPEN_FILES_WANTED:
        fix = "raise the hard limit: LimitNOFILE=65536 in the systemd unit, nofile in /etc/security/limits.conf"
        return warned("open files", f"soft limit {soft}, hard limit {hard}", fix)
    return passed("open files", f"soft limit {soft}, hard limit {hard}; zbroker raises the soft one itself")


def shared_memory(free_bytes: int, lane_bytes_total: int) -> Finding:
    """Lanes and boards are allocated in full on /dev/shm or in memory; a full tmpfs refuses them."""
    text = f"{free_bytes // MIB} MiB free on {TMPFS_ROOT}"
    if free_bytes < 16 * MIB:
        return failed(
            "shared memory", text, f"remount it larger: mount -o remount,size=1G {TMPFS_ROOT}; docker --shm-size=1g"
        )
    if free_bytes < lane_bytes_total:
        fix = f"mount -o remount,size=1G {TMPFS_ROOT}, docker --shm-size=1g, or a lower limits.lane_bytes_total_max"
        return warned("shared memory", f"{text}, all lanes may take {lane_bytes_total // MIB} MiB", fix)
    return passed("shared memory", text)


def clock_source(name: str) -> Finding:
    """A clock that needs a system call and a device read (hpet, acpi_pm) makes every stamp cost microseconds."""
    if name in GOOD_CLOCKS or not name:
        return passed("clock", name or "not told by this kernel")
    fix = "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource, if it is available"
    return warned("clock", f"the kernel's clock source is {name}, which is slow to read", fix)


def data_directory(directory: Path, *, exists: bool, is_readable: bool) -> Finding:
    """Without it nothing is known of a broker's copies."""
    if not exists:
        return warned(
            "data directory",
            f"{directory} does not exist: no broker has run there",
            "zbroker serve makes it; --data-dir names another",
        )
    if not is_readable:
        return failed(
            "data directory", f"{directory} is closed to this user", "run this as the user whose broker it is"
        )
    return passed("data directory", f"{directory} is there")


def file_system(kind: str, directory: Path) -> Finding:
    """Locks and fsync of network file systems do not keep what a log needs."""
    if kind in NETWORK_FILE_SYSTEMS:
        return failed(
            "file system", f"{directory} lies on {kind}", "move broker.data_dir to a local file system: --data-dir"
        )
    if kind == "tmpfs":
        return warned(
            "file system", f"{directory} lies on tmpfs: gone at a reboot", "--data-dir on a disk, or --ephemeral"
        )
    return passed("file system", f"{directory} lies on {kind or 'a file system of unknown kind'}")


def disk_room(free_bytes: int, needed_bytes: int, directory: Path) -> Finding:
    """Below the watermark produce is refused."""
    text = f"{free_bytes // MIB} MiB free under {directory}"
    if free_bytes < needed_bytes:
        return failed(
            "disk room", text, "free space, lower retention.ms / retention.bytes, or storage.disk_free_min_bytes"
        )
    if free_bytes < 10 * needed_bytes:
        return warned("disk room", text, "lower retention.ms / retention.bytes, or a larger disk")
    return passed("disk room", text)


def mappings(limit: int) -> Finding:
    """Each segment that a consumer reads is one mapping; the kernel counts them for each process."""
    if limit < MAPPINGS_WANTED:
        return warned("mappings", f"vm.max_map_count is {limit}", f"sysctl -w vm.max_map_count={MAPPINGS_WANTED}")
    return passed("mappings", f"vm.max_map_count is {limit}")


def leftovers(dead_boards: int, run_dir: Path) -> Finding:
    """Boards of processes that are gone: a crash of everything leaves them until the next start."""
    if dead_boards:
        return warned(
            "leftovers", f"{dead_boards} boards of dead processes", f"zbroker serve removes them; or rm -r {run_dir}"
        )
    return passed("leftovers", "none")


def temporary_directories(found: Sequence[Path]) -> Finding:
    """Brokers that were made to be thrown away, and whose owner was killed, leave their data in memory."""
    if found:
        text = f"{len(found)} of dead processes, such as {found[0]}"
        fix = f"the next zbroker chaos, bench, demo or test removes them; or rm -r {' '.join(map(str, found))}"
        return warned("temporary directories", text, fix)
    return passed("temporary directories", "none was left by a dead process")


def versions(python: tuple[int, ...], libzmq: tuple[int, ...]) -> Finding:
    """libzmq before 4.3.5 has known crashes that a client can provoke."""
    text = f"Python {'.'.join(map(str, python))}, libzmq {'.'.join(map(str, libzmq))}"
    if libzmq < LIBZMQ_NEEDED:
        return failed("versions", text, "pip install -U pyzmq")
    if python < (3, 11):
        return failed("versions", text, "Python 3.11 or later")
    return passed("versions", text)


def cores(count: int, workers: int) -> Finding:
    """More busy processes than cores: they take each other's turns, and waiting by spinning is off."""
    if workers > count:
        return warned("cores", f"{workers} workers on {count} cores", "workers.count = 'auto'")
    return passed("cores", f"{count} cores, {workers or 'one for each partition'} workers")


def examine_host(config: ServerConfig, paths: Paths, libzmq: tuple[int, ...]) -> list[Finding]:
    """Apply every rule of this file to this machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    existing = _nearest_existing(paths.data_dir)
    return [
        versions(sys.version_info[:3], libzmq),
        cores(len(os.sched_getaffinity(0)), worker_count(config)),
        open_files(soft, hard),
        shared_memory(shutil.disk_usage(TMPFS_ROOT).free, config.limits.lane_bytes_total_max),
        mappings(int(_read("/proc/sys/vm/max_map_count") or MAPPINGS_WANTED)),
        clock_source(_read("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        data_directory(
            paths.data_dir,
            exists=os.path.exists(paths.data_dir),
            is_readable=os.access(paths.data_dir, os.R_OK | os.X_OK),
        ),
        file_system(file_system_of(existing), paths.data_dir),
        disk_room(shutil.disk_usage(existing).free, config.storage.disk_free_min_bytes, paths.data_dir),
        leftovers(len(dead_boards(paths.boards_dir)), paths.run_dir),
        temporary_directories([path for parent in temporary_parents() for path in abandoned(parent)]),
    ]


def dead_boards(boards_dir: Path) -> list[Path]:
    """The boards whose processes are gone."""
    found = []
    for path in sorted(boards_dir.glob("*.board")):
        incarnation = int(path.name.split(".")[-2], 16)
        if pid_of(incarnation) and not is_alive(incarnation):
            found.append(path)
    return found


def file_system_of(directory: Path) -> str:
    """The kind of file system that an existing directory lies on, from /proc/self/mounts; '' when not found."""
    best, kind = -1, ""
    for line in _read("/proc/self/mounts").splitlines():
        mount_point, mount_kind = line.split(" ")[1:3]
        at = Path(mount_point.replace("\\040", " "))
        if (directory == at or at in directory.parents) and len(at.parts) > best:
            best, kind = len(at.parts), mount_kind
    return kind


def _nearest_existing(path: Path) -> Path:
    while not os.path.exists(path):  # False too for what another user keeps closed
        path = path.parent
    return path


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
