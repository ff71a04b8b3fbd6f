"""What a rule of the doctor says."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Level(StrEnum):
    """How bad it is."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"


class Finding(msgspec.Struct, frozen=True):
    """One rule's answer. `fix` names the setting to change or the command to run; it is empty for PASS."""

    rule: str
    level: Level
    message: str
    fix: str = ""


def passed(rule: str, message: str) -> Finding:
    """The rule found nothing wrong."""
    return Finding(rule, Level.PASS, message)


def warned(rule: str, message: str, fix: str) -> Finding:
    """The broker works, but slower or with less margin than it could."""
    return Finding(rule, Level.WARN, message, fix)


def failed(rule: str, message: str, fix: str) -> Finding:
    """The broker will not work, or will not keep what it promises."""
    return Finding(rule, Level.FAIL, message, fix)
