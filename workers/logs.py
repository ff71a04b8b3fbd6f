"""Log lines of a role: one line each to stderr, as text or JSON. Rotation is the supervisor's business.

A line carries what the call gave as `extra={...}`: names such as `topic`, `partition`, `error`. `OncePerMinute` keeps
what a hostile or broken client can provoke from filling a disk.
"""

from __future__ import annotations

import logging
import os
import sys
import time

import msgspec

from zbroker.clock import NS_PER_MS

ROOT_LOGGER = "zbroker"
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _TextFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        words = [_timestamp(record), self._process, record.levelname, record.getMessage()]
        words += [f"{name}={value}" for name, value in _extra(record).items()]
        text = " ".join(words).replace("\n", "\\n")
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "ts": _timestamp(record),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": os.getpid(),
            "event": record.getMessage(),
        }
        fields.update((name, str(value)) for name, value in _extra(record).items())
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(fields).decode()


def _timestamp(record: logging.LogRecord) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03d}Z"


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def start_logging(process: str, level: str, style: str) -> logging.Logger:
    """Send this process's log lines to stderr, from `level` up, as "text" or "json". Returns the root of our loggers.

    Called again it replaces what the earlier call did.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(process) if style == "json" else _TextFormatter(process))
    logger = logging.getLogger(ROOT_LOGGER)
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())
    return logger


class OncePerMinute:
    """Lets a log line of one kind through once a minute. It knows at most `KINDS_MAX` kinds."""

    KINDS_MAX = 1_000
    INTERVAL_NS = 60_000 * NS_PER_MS

    def __init__(self) -> None:
        self._last_ns: dict[str, int] = {}

    def allows(self, kind: str, now_ns: int) -> bool:
        """Whether a line of this kind may be written now."""
        last_ns = self._last_ns.get(kind)
        if last_ns is not None and now_ns - last_ns < self.INTERVAL_NS:
            return False
        if len(self._last_ns) >= self.KINDS_MAX:
            self._last_ns.clear()
        self._last_ns[kind] = now_ns
        return True
