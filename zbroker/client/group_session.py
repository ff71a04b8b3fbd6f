"""The thread that keeps a member alive: heartbeats over a connection of its own, however long the application works.

Guarantees: one heartbeat is out at any time, a long poll that the coordinator answers when it has news; news wake the
consumer that sleeps. A coordinator that dies is noticed by its pidfd where that can be seen, and asked again every
20 ms until there is one. A member whose application has not asked for records for `max_poll_interval_ms` leaves. The
thread ends with `close`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from zbroker import ids
from zbroker.client.assignors import Assignors
from zbroker.client.group_member import GroupMember
from zbroker.client.settings import ConsumerSettings
from zbroker.client.sleep import WakeableConnection
from zbroker.clock import NS_PER_MS
from zbroker.errors import BrokerError, CommitFailedError, error_for
from zbroker.shm.board import parse_board_name
from zbroker.wire.codec import decode, encode
from zbroker.wire.group_messages import AssignWork, GroupAssign, GroupAssignment, GroupLeave
from zbroker.wire.layout import Api
from zbroker.wire.messages import MetadataReply, MetadataRequest

ANSWER_MS: Final = 1_000  # beyond the time that the coordinator may hold a heartbeat
UNSEEN_ANSWER_MS: Final = 200  # the same while its death would not be noticed; doubles up to that with each try
UNSEEN_HOLD_MS: Final = 100
LOOK_MS: Final = 100
LEAVE_ATTEMPT_MS: Final = 500
LEAVE_TRIES: Final = 5
CONNECT_RETRY_S: Final = 0.05

_log = logging.getLogger(__name__)


class GroupSession:
    """See the module. The member is used under `lock` alone."""

    def __init__(
        self,
        settings: ConsumerSettings,
        member: GroupMember,
        assignors: Assignors,
        polled_ago_ms: Callable[[], int],
        on_news: Callable[[], None],
    ) -> None:
        """`on_news` is called by the session's thread when the consumer's thread has something to do."""
        self.lock = threading.Lock()
        self._settings = settings
        self._member = member
        self._assignors = assignors
        self._polled_ago_ms = polled_ago_ms
        self._on_news = on_news
        self._connection: WakeableConnection | None = None
        self._wakeup = threading.Event()
        self._is_closing = False
        self._correlation: int | None = None
        self._leaves: list[tuple[GroupLeave, threading.Event]] = []
        self._is_watching = False
        self._is_seen = False  # the coordinator's death would be
        self._unseen_answer_ms = UNSEEN_ANSWER_MS
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """The member has something to say. Starts the thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="zbroker-group", daemon=True)
            self._thread.start()
        self.wake_if_running()

    def wake_if_running(self) -> None:
        """As `wake`, for what only a member has to say."""
        self._wakeup.set()
        connection = self._connection
        if connection is not None:
            connection.wake()

    def leave(self, *, is_temporary: bool, reason: str) -> threading.Event:
        """Tell the coordinator that the member goes; the member has no name afterwards. The event: it has heard it, or
        does not answer. The lock is held."""
        done = threading.Event()
        member = self._member
        if member.member_id and self._thread is not None:
            self._leaves.append((GroupLeave(member.group_id, member.member_id, is_temporary, reason), done))
        else:
            done.set()
        return done

    def close(self, timeout_s: float) -> None:
        """End the thread, and the connection."""
        self._is_closing = True
        if self._thread is None:
            return
        self.wake()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    @property
    def has_ended(self) -> bool:
        """Whether no thread runs."""
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        connection = self._connect()
        if connection is None:
            return
        try:
            while not self._is_closing:
                try:
                    connection.pump(self._do_what_is_due(connection))
                except BrokerError:
                    if self._is_closing or connection.is_closed:
                        return
                    _log.exception("the thread of a group's member goes on after an error")
                    time.sleep(CONNECT_RETRY_S)
        finally:
            connection.close()

    def _connect(self) -> WakeableConnection | None:
        while not self._is_closing:
            try:
                self._connection = WakeableConnection(self._settings)
                return self._connection
            except BrokerError:  # the consumer itself has reached the broker: this one is away for a moment
                self._wakeup.wait(CONNECT_RETRY_S)
                self._wakeup.clear()
        return None

    def _do_what_is_due(self, connection: WakeableConnection) -> float:
        """Returns for how many ms nothing else is due."""
        with self.lock:
            now_ns = time.monotonic_ns()
            leaves, self._leaves = self._leaves, []
            for leave, done in leaves:
                self._say_goodbye(connection, leave, done, LEAVE_TRIES)
            member = self._member
            ago_ms = self._polled_ago_ms()
            if member.is_due and ago_ms > self._settings.max_poll_interval_ms:
                self._leave_for_silence(connection, ago_ms)
            if not member.is_due:
                self._forget(connection)
                return LOOK_MS
            if member.is_urgent or (self._correlation is None and now_ns >= member.next_send_ns):
                self._beat(connection, ago_ms)
            if self._correlation is not None:
                return LOOK_MS
            return max(0.1, min(LOOK_MS, (member.next_send_ns - now_ns) / NS_PER_MS))

    def _leave_for_silence(self, connection: WakeableConnection, ago_ms: int) -> None:
        member = self._member
        text = f"no poll for {ago_ms} ms, and max_poll_interval_ms={self._settings.max_poll_interval_ms}"
        leave = GroupLeave(member.group_id, member.member_id, bool(member.instance_id), text)
        self._say_goodbye(connection, leave, threading.Event(), LEAVE_TRIES)
        member.lose(CommitFailedError(f"this consumer has left its group: {text}"))
        self._on_news()

    def _beat(self, connection: WakeableConnection, ago_ms: int) -> None:
        member = self._member
        self._forget(connection)
        if not self._is_watching:
            self._watch_coordinator(connection)
        member.is_urgent = False
        member_id = member.member_id

        def answered(error: int, body: list[Any]) -> None:
            with self.lock:
                if self._correlation != correlation:
                    return
                self._correlation = None
                self._take(member_id, error, body)
                has_news = member.has_news or member.wants_match
                work = member.take_work()
            if work is not None:
                threading.Thread(target=self._assign, args=(connection, member_id, work), daemon=True).start()
            if has_news:
                self._on_news()

        hold_ms, answer_ms = member.hold_ms, ANSWER_MS
        if connection.shared_memory and not self._is_seen:
            hold_ms, answer_ms = min(hold_ms, UNSEEN_HOLD_MS), self._unseen_answer_ms
        # The answer cannot come before this returns: this thread alone takes it.
        correlation = self._correlation = connection.submit(
            ids.COORDINATOR,
            Api.GROUP_HEARTBEAT,
            [encode(member.heartbeat(ago_ms, hold_ms))],
            answered,
            timeout_ms=hold_ms + answer_ms,
        )

    def _take(self, member_id: str, error: int, body: list[Any]) -> None:
        now_ns = time.monotonic_ns()
        try:
            if error:
                raise error_for(error, bytes(body[0]).decode("utf-8", "replace") if body else "")
            self._member.take_answer(member_id, decode(GroupAssignment, body[0]), now_ns)
            self._unseen_answer_ms = UNSEEN_ANSWER_MS
        except BrokerError as failure:
            self._is_watching = self._is_seen = False
            self._unseen_answer_ms = min(ANSWER_MS, 2 * self._unseen_answer_ms)
            self._member.take_refusal(member_id, failure, now_ns)

    def _forget(self, connection: WakeableConnection) -> None:
        if self._correlation is not None:
            connection.forget(self._correlation)
            self._correlation = None

    def _watch_coordinator(self, connection: WakeableConnection) -> None:
        """Have what is asked of the coordinator lost at once when it dies: its incarnation is in its board's name."""
        self._is_watching = True

        def answered(error: int, body: list[Any]) -> None:
            board = "" if error else decode(MetadataReply, body[0]).coordinator_board
            parsed = parse_board_name(Path(board).name)
            self._is_seen = parsed is not None and connection.watch(ids.COORDINATOR, parsed[1])
            self._is_watching = self._is_seen

        if connection.shared_memory:
            body = encode(MetadataRequest([], False))
            wait_ms = UNSEEN_HOLD_MS + self._unseen_answer_ms
            connection.submit(ids.COORDINATOR, Api.METADATA, [body], answered, timeout_ms=wait_ms)

    def _assign(self, connection: WakeableConnection, member_id: str, work: AssignWork) -> None:
        targets, error = self._assignors.compute(work)
        body = encode(GroupAssign(self._member.group_id, member_id, work.number, targets, error))
        try:
            connection.submit(ids.COORDINATOR, Api.GROUP_ASSIGN, [body], lambda *_: None, timeout_ms=work.deadline_ms)
        except BrokerError:
            return  # closed meanwhile: the coordinator assigns without it after its deadline

    def _say_goodbye(
        self, connection: WakeableConnection, leave: GroupLeave, done: threading.Event, tries: int
    ) -> None:
        def answered(error: int, _: list[Any]) -> None:
            if error and error_for(error, "").retriable and tries > 1 and not connection.is_closed:
                self._say_goodbye(connection, leave, done, tries - 1)
            else:
                done.set()

        connection.submit(ids.COORDINATOR, Api.GROUP_LEAVE, [encode(leave)], answered, timeout_ms=LEAVE_ATTEMPT_MS)
