"""The base of all errors that have a number. Import it from `zbroker.errors`, where the whole table is."""

from __future__ import annotations


class BrokerError(Exception):
    """Base of all errors that have a number. `hint` names the setting to change or the command to look at."""

    code = -1
    retriable = False
    fatal = False
    hint = "zbroker doctor checks the host; zbroker status shows every process"

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        if hint:
            self.hint = hint
        super().__init__(self.message)

    @property
    def wire_text(self) -> str:
        """What a reply carries: the message, and in a second line the hint, if it is not that of every such error."""
        return self.message if self.hint == type(self).hint else f"{self.message}\n{self.hint}"

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message
