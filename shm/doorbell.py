"""Waking a process that sleeps, without a system call for one that does not.

WHY NO WAKE-UP IS LOST. `sleep_seq` is written by the sleeper alone; odd means asleep. The sleeper stores odd, FENCE,
looks at every ring again, and only then blocks on its pipe. A ringer stores its ring's head, FENCE, loads `sleep_seq`.
With both fences one of the two must see the other's store: either the sleeper sees the new head and does not block, or
the ringer sees odd and writes to the pipe, and the bytes stay there until the sleeper reads them. A ringer rings once
for each odd value. It never clears the flag: were it to die between clearing and ringing, the sleeper would sleep on,
and no other ringer would know. A sleeper blocks at most `SLEEP_MS_MAX`: what this argument overlooks is a delay.

WHEN THE PIPE IS READ. Any time between two sleeps will do, so it is done when nobody waits: after the work that the
ring was for, and before the next odd value is stored. A ring for that value comes after it and is kept; one for an
older value that comes late only ends a sleep too early.

RINGING AHEAD. A ringer may ring before it has stored anything, so that the sleeper wakes while the message is made:
what a wake-up takes and what making it takes then pass at the same time. To the argument above it is a ring too early:
the sleeper finds nothing, watches for a moment (`spin`), and before it blocks again stores the next odd value, FENCE,
and looks at every ring. The ringer stores its head and rings as ever. It may still load the odd value for which it
rang ahead, and be silent: then the sleeper had not stored the even one yet, and its look after its next FENCE, at the
latest, sees the head.

The bytes in the pipe name the lanes, 4 bytes each; such a write is atomic. They are hints from processes that need not
be friendly: `drain` gives `ALL_LANES` whenever they may be incomplete (the pipe was full, or holds part of a number).
"""

from __future__ import annotations

import fcntl
import os
from array import array

from zbroker.shm.fence import fence

SLEEP_MS_MAX = 100
ALL_LANES = 0xFFFF_FFFF
_NUMBER_BYTES = 4
_FIRST_READ_BYTES = 4096  # Enough for a thousand rings; a larger buffer costs more than the read.
_SLACK_BYTES = 4096  # The kernel counts a pipe's room in pages: nearly full may already have refused somebody.


class Doorbell:
    """A process's own pipe. The write end stays open here too: without it, the last ringer's exit makes poll spin."""

    __slots__ = ("_capacity_bytes", "_read_fd", "has_rung", "write_fd")

    def __init__(self) -> None:
        self._read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._capacity_bytes = fcntl.fcntl(self._read_fd, fcntl.F_GETPIPE_SZ)
        self.has_rung = False
        """Whether the pipe was found readable since `forget_rings`, which then has something to read."""

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        return self._read_fd

    def drain(self) -> set[int]:
        """Empty the pipe. Returns the numbers of the lanes that rang; with `ALL_LANES` in it, look at every lane."""
        data = b""
        try:
            data = os.read(self._read_fd, _FIRST_READ_BYTES)
            if len(data) == _FIRST_READ_BYTES:
                data += os.read(self._read_fd, self._capacity_bytes)
        except BlockingIOError:
            pass  # Empty: at once, or after exactly the first part.
        whole = len(data) & ~(_NUMBER_BYTES - 1)
        lanes = set(array("I", data[:whole]))
        if whole != len(data) or len(data) + _SLACK_BYTES >= self._capacity_bytes:
            lanes.add(ALL_LANES)
        return lanes

    def note_ring(self) -> None:
        """The pipe was found readable."""
        self.has_rung = True

    def forget_rings(self) -> None:
        """Empty the pipe if it was found readable, for a sleeper that looks at every lane anyway."""
        if not self.has_rung:
            return
        self.has_rung = False
        try:
            if len(os.read(self._read_fd, _FIRST_READ_BYTES)) == _FIRST_READ_BYTES:
                os.read(self._read_fd, self._capacity_bytes)
        except BlockingIOError:
            pass  # Empty: at once, or after exactly the first part.

    def close(self) -> None:
        """Close both ends. Ringers that are left get EPIPE, which `Bell` takes as silence."""
        os.close(self._read_fd)
        os.close(self.write_fd)


class Sleeper:
    """The sleeper's side of one `sleep_seq` word: `words[index]`. Only one Sleeper may exist for a word."""

    __slots__ = ("_index", "_sequence", "_words")

    def __init__(self, words: memoryview, index: int) -> None:
        self._words = words
        self._index = index
        sequence = words[index]
        self._sequence = sequence + (sequence & 1)

    def prepare(self) -> None:
        """Say that this process is about to sleep. Afterwards look at every ring once more, and only then block."""
        assert not self._sequence & 1, "prepare() twice without awake()"
        self._sequence += 1
        self._words[self._index] = self._sequence
        fence()

    def awake(self) -> None:
        """Say that this process runs: ringers write nothing until the next `prepare`."""
        if self._sequence & 1:
            self._sequence += 1
            self._words[self._index] = self._sequence


class Bell:
    """The ringer's side: rings the pipe behind `write_fd` for the sleeper whose `sleep_seq` is `words[index]`."""

    __slots__ = ("_index", "_message", "_rang", "_words", "write_fd")

    def __init__(self, write_fd: int, lane_number: int, words: memoryview, index: int) -> None:
        self.write_fd = write_fd
        self._message = lane_number.to_bytes(_NUMBER_BYTES, "little")
        self._words = words
        self._index = index
        self._rang = -1  # the odd value it rang for

    def ring_if_asleep(self) -> bool:
        """Call after the store that the sleeper should see. Returns whether it rang. Never blocks, never raises."""
        fence()
        sequence = self._words[self._index]
        if not sequence & 1 or sequence == self._rang:
            return False
        self._rang = sequence
        self.ring()
        return True

    def seems_asleep(self) -> bool:
        """Whether `ring_if_asleep` would ring, as far as can be told without a fence: enough to ring ahead."""
        sequence = self._words[self._index]
        return bool(sequence & 1) and sequence != self._rang

    def ring_sleeper(self) -> bool:
        """`ring_if_asleep`, but returns whether the sleeper sleeps, rung by this call or an earlier one."""
        return self.ring_if_asleep() or bool(self._words[self._index] == self._rang)

    def ring(self) -> None:
        """Write to the pipe whatever the sleeper does."""
        try:
            os.write(self.write_fd, self._message)
        except BlockingIOError:
            pass  # The pipe is full: the sleeper is awake, or about to be, and looks at all lanes after a full pipe.
        except BrokenPipeError:
            pass  # The sleeper is gone. Whoever needs to know watches its pidfd.
