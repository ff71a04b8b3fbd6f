"""A wall clock that a test sets, for every process that it starts: a small library before libc, told by a file."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zbroker.load.plan import Plan, Target

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *jump_ns;
static int (*host_clock)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    host_clock = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("ZBROKER_TEST_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *cell = mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (cell != MAP_FAILED) jump_ns = cell;
}

int clock_gettime(clockid_t clock, struct timespec *found) {
    if (!host_clock) begin();
    int error = host_clock(clock, found);
    if (!error && jump_ns && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        long long ns = found->tv_sec * 1000000000LL + found->tv_nsec + *jump_ns;
        found->tv_sec = ns / 1000000000LL;
        found->tv_nsec = ns % 1000000000LL;
    }
    return error;
}

int gettimeofday(struct timeval *restrict found, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    found->tv_sec = now.tv_sec;
    found->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *found) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (found) *found = now.tv_sec;
    return now.tv_sec;
}
"""
JUMPS_S = (0, 1, -1, 60, -60, 3_600, -3_600)
STROBES = 50


class WallClock:
    """Set it for all processes that were started since it was made."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler: the wall clock cannot be set")
        library, file = directory / "clock.so", directory / "jump"
        (directory / "clock.c").write_text(SOURCE)
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(directory / "clock.c"), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
        file.write_bytes(bytes(8))
        fd = os.open(file, os.O_RDWR)
        self._cell = mmap.mmap(fd, 8)
        os.close(fd)
        monkeypatch.setenv("LD_PRELOAD", str(library))
        monkeypatch.setenv("ZBROKER_TEST_CLOCK", str(file))
        self.jump_count = 0

    def jump_to(self, ahead_s: float) -> None:
        """The wall clock is so much ahead of the true time."""
        struct.pack_into("<q", self._cell, 0, int(ahead_s * 1e9))
        self.jump_count += 1

    @contextmanager
    def over(self, plan: Plan, target: Target, places: list[tuple[str, int]]) -> Iterator[None]:
        """It jumps to and fro, now and then many times in a moment; afterwards it is right."""
        end = threading.Event()
        thread = threading.Thread(target=self._jump, args=(random.Random(f"clock {plan.seed}"), end))
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
            self.jump_to(0)

    def _jump(self, rng: random.Random, end: threading.Event) -> None:
        while not end.wait(rng.uniform(0.05, 0.4)):
            for _ in range(STROBES if rng.random() < 0.1 else 1):
                self.jump_to(rng.choice(JUMPS_S) * rng.uniform(0.5, 1))
                end.wait(0.002)
