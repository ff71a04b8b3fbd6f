"""What a forked child does before it becomes a role, and what the host should know of it.

Guarantees, when `become_child` has returned: the child dies with its parent, however that dies; it holds no descriptor
but the three standard ones (a lock held before the fork would otherwise outlive its owner); signals mean what they mean
to a fresh process; its standard output is its standard error, because only the supervisor prints the ready line; it has
a process group of its own, so that Ctrl-C in a terminal reaches the supervisor alone, which stops it in order.

It does not take locks or open sockets: the role does, afterwards.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterable, Sequence

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_NAME_BYTES_MAX = 15
_DESCRIPTORS_MAX = 1 << 30  # closerange is one close_range(2) call, whatever the number.

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int | bytes) -> None:
    if _libc.prctl(option, ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_ulong(argument)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")


def die_with_parent(parent_pid: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent ends; end it now when the parent is gone already.

    The parent is looked at after the call: had it died before, no signal would ever come.
    """
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), number)


def set_name(process_name: str) -> None:
    """Show `zb-<process name>` in ps, top and /proc/PID/comm."""
    _prctl(_PR_SET_NAME, f"zb-{process_name}".encode()[:_NAME_BYTES_MAX])


def reset_signals(numbers: Iterable[int]) -> None:
    """Give signals the meaning that they have in a fresh Python process."""
    for number in numbers:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def become_child(process_name: str, parent_pid: int, handled_signals: Sequence[int]) -> None:
    """Leave everything of the supervisor behind. Called in the child, first, with these signals blocked."""
    die_with_parent(parent_pid)
    signal.set_wakeup_fd(-1)
    reset_signals(handled_signals)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handled_signals)
    os.setpgid(0, 0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.closerange(3, _DESCRIPTORS_MAX)
    set_name(process_name)
