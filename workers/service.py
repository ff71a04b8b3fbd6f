"""Telling systemd how the service is: the three words of sd_notify(3) that zbroker uses.

Guarantees: does nothing without NOTIFY_SOCKET; never raises, because a service that works must not fail on its report.
"""

from __future__ import annotations

import os
import socket

READY = "READY=1"
RELOADING = "RELOADING=1"
STOPPING = "STOPPING=1"


def notify(state: str) -> bool:
    """Send a state to the service manager. Returns whether one was there and took it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            # A leading '@' stands for the zero byte of Linux's abstract names.
            manager.connect("\0" + address[1:] if address[0] == "@" else address)
            manager.send(state.encode())
    except OSError:
        return False
    return True
