"""A producer's one thread in the background: it closes batches whose linger is over, looks for leaders, sends again,
and receives when nobody else does.

It sleeps until the first record comes. With work it looks every millisecond, or every `linger_ms` up to five. While
threads wait for their own records it looks less often, and does not sleep for each one to wake it: what they do needs
no help, and a second thread fights them for the interpreter.

A record that `send` itself has sent, and of which nobody has asked to be told, needs no haste: its acknowledgement only
frees memory, and to wake this thread for it would take a core from those who carry the record on. So while such records
come this thread *dozes*: it looks every other millisecond by itself, and only what is in haste has to wake it.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final, Protocol

from zbroker.client.connection import Connection
from zbroker.clock import NS_PER_MS
from zbroker.errors import BrokerError

STAND_BACK_NS: Final = 2 * NS_PER_MS
NAP_MIN_MS: Final = 1.0
NAP_ATTENDED_MS: Final = 4.0
ATTENDED_NS: Final = 20 * NS_PER_MS
NAP_OF_LINGER_MAX_MS: Final = 5.0  # answers and what is full do not wait for a longer linger
IDLE_WAIT_S: Final = 5.0
EMITTER_WAIT_S: Final = 0.005
DOZE_S: Final = 0.002
DOZES_MAX: Final = 2  # after a record without haste; then it sleeps

_log = logging.getLogger(__name__)


class Emits(Protocol):
    """A `sender`, as the background thread sees it."""

    def hand_over(self) -> None:
        """Pass what was emitted on to the queues."""


class Work(Protocol):
    """What there is to do. All of it may be called from any thread."""

    @property
    def has_emitters(self) -> bool:
        """Whether records may come without anybody saying so."""

    @property
    def waited_ns(self) -> int:
        """When a thread last waited for a record of its own."""

    @property
    def tended_ns(self) -> int:
        """When a thread that sends last looked for answers, or tried to."""

    def has_work(self) -> bool:
        """Whether anything is not acknowledged."""

    def do_what_is_due(self) -> None:
        """Close, send again, look for leaders."""

    def until_service_ms(self) -> float:
        """How long answers may be waited for before something is due again."""


class Background:
    """See the module. The thread starts with the first `wake`."""

    def __init__(self, work: Work, connection: Connection, linger_ms: float) -> None:
        self.is_idle = True
        """Whether somebody who brings work that is in haste has to call `wake`."""
        self.is_asleep = True
        self._dozes_left = 0
        self._work = work
        self._connection = connection
        self._nap_ms = min(max(NAP_MIN_MS, linger_ms), NAP_OF_LINGER_MAX_MS)
        self._wake = threading.Lock()  # taken; who wakes the thread gives it back
        self._wake.acquire()
        self._is_closing = False
        self._pumped_ns = 0  # when this thread received last
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """There is work. Any thread may call it, with any lock held."""
        if self._thread is None:
            with self._start_lock:
                if self._thread is None and not self._is_closing:
                    self._thread = threading.Thread(target=self._run, name="zbroker-producer", daemon=True)
                    self._thread.start()
        self.is_idle = self.is_asleep = False
        self._dozes_left = 0
        self._end_wait()

    def doze(self) -> None:
        """There is work without haste. Any thread may call it, with any lock held."""
        if self.is_asleep:
            self.wake()
        self._dozes_left = DOZES_MAX

    def _end_wait(self) -> None:
        # An Event would do the same, in five calls of Python.
        if self._wake.locked():
            try:
                self._wake.release()
            except RuntimeError:
                pass  # another thread has done so a moment ago

    def close(self) -> None:
        """End the thread; returns when it has ended, or after two seconds."""
        self._is_closing = True
        self._end_wait()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=2)

    def _others_receive(self) -> bool:
        """Whether another thread has received a moment ago, and so will again."""
        last_ns = self._connection.last_pump_ns
        if last_ns == self._pumped_ns:
            last_ns = self._work.tended_ns
        return time.monotonic_ns() - last_ns < STAND_BACK_NS

    def _rest(self) -> bool:
        """Sleep or doze. Returns whether somebody has called."""
        left = self._dozes_left
        self.is_asleep = not left
        if left:
            self._dozes_left = left - 1
        self.is_idle = True
        if self.is_asleep and self._work.has_work():  # what came before these lines did not wake anybody
            is_called = True
        else:
            asleep_s = EMITTER_WAIT_S if self._work.has_emitters else IDLE_WAIT_S
            is_called = self._wake.acquire(timeout=asleep_s if self.is_asleep else DOZE_S)
        self.is_idle = self.is_asleep = False
        return is_called

    def _run(self) -> None:
        is_called = True
        while not self._is_closing:
            try:
                is_attended = time.monotonic_ns() - self._work.waited_ns < ATTENDED_NS
                is_dozing = False
                if not is_attended and not (is_called and self._work.has_work()):
                    is_called = self._rest()
                    is_dozing = not is_called
                self._work.do_what_is_due()
                if self._others_receive() or not self._work.has_work():
                    if not is_dozing:
                        nap_ms = max(self._nap_ms, NAP_ATTENDED_MS) if is_attended else self._nap_ms
                        time.sleep(min(nap_ms, self._work.until_service_ms()) / 1000)
                else:
                    self._connection.pump(min(self._nap_ms, self._work.until_service_ms()) if not is_dozing else 0)
                    self._pumped_ns = self._connection.last_pump_ns
            except Exception as error:
                if self._is_closing or self._connection.is_closed:
                    return
                # What failed is tried again at its own time; the thread that waits for it hears the reason.
                if not isinstance(error, BrokerError):
                    _log.exception("the producer's thread goes on after an error")
                time.sleep(self._nap_ms / 1000)
