"""What every test may take for granted of its own process."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Take signals as a program in the foreground does. Started in the background of a shell, or by nohup, this process
    would have its children ignore what the tests send them."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
