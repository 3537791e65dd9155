"""One attempt on one replica: its lease, its connection, and what becomes of it, told to its owner.

An idle connection is used at once; else one is opened. What the replica answers before its first
body byte is kept here: until then another replica can still be tried.
"""

import asyncio
from typing import Protocol

from protocol.errors import (
    ConnectTimedOut,
    Overloaded,
    ProtocolError,
    Unavailable,
    UpstreamFailed,
)
from router.core.answer_scan import AnswerUsage
from router.dataplane.http1 import Request, ResponseHead, request_head
from router.dataplane.pool import ConnectFailed, ConnectTooSlow, PoolFull
from router.dataplane.replica_connection import ReplicaConnection
from router.dataplane.route import Assignment, Outcome


class Failure:
    """Why an attempt is over: its `Outcome`, and the error a client gets if it was the last."""

    __slots__ = ("error", "outcome", "reason")

    def __init__(self, outcome: str, reason: str, error: ProtocolError) -> None:
        self.outcome = outcome
        self.reason = reason
        self.error = error


def no_connection(error: ConnectFailed | PoolFull) -> tuple[str, str, type[ProtocolError]]:
    """Outcome, reason and kind of error of an attempt that a pool has no connection for."""
    if isinstance(error, PoolFull):
        return Outcome.REFUSED, str(error), Overloaded
    kind = ConnectTimedOut if isinstance(error, ConnectTooSlow) else Unavailable
    return Outcome.CONNECT_FAILED, f"cannot connect: {error}", kind


class Owner(Protocol):
    """Whose attempt it is."""

    def attempt_refused(self, attempt: "Attempt", head: ResponseHead) -> bool:
        """Whether an answer with this head is not wanted: then the attempt has failed."""

    def attempt_answers(self, attempt: "Attempt", data: bytes, framed: bytes) -> None:
        """Bytes of the body have come, perhaps none: the first time, its `head` is there.
        `framed` as in `AnswerSink`."""

    def attempt_ended(self, attempt: "Attempt") -> None: ...
    def attempt_failed(self, attempt: "Attempt", failure: Failure) -> None: ...


class Attempt:
    """The sink of one answer. `head` is None until there is one."""

    __slots__ = (
        "_connecting", "_connection", "_loop", "_owner", "_released", "_request",
        "_stale_retry_used", "assignment", "head", "reading_paused", "waiting_since",
    )  # fmt: skip

    def __init__(
        self,
        owner: Owner,
        request: Request,
        assignment: Assignment,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.assignment = assignment
        self.head: ResponseHead | None = None
        self.waiting_since: float | None = None  # for a byte of the answer; None: not yet asked
        self.reading_paused = False
        self._owner = owner
        self._request = request
        self._loop = loop
        self._connection: ReplicaConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._stale_retry_used = False
        self._released = False

    def start(self) -> None:
        connection = self.assignment.pool.take_idle()
        if connection is not None:
            self._send(connection)
        else:
            self._connect_anew()

    def pause_reading(self) -> None:
        self.reading_paused = True
        if self._connection is not None:
            self._connection.pause_reading()

    def resume_reading(self) -> None:
        self.reading_paused = False
        if self._connection is not None:
            self._connection.resume_reading()

    def unframe(self) -> None:
        """From here on the body comes without its framing. Only while its head is new."""
        if self._connection is not None:
            self._connection.unframe()

    def release(self, outcome: str, status: int, usage: AnswerUsage) -> None:
        """It is over: what still runs of it is dropped, its lease ends. Once; more are ignored."""
        if self._released:
            return
        self._released = True
        if self._connecting is not None:
            self._connecting.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon()
        self.assignment.release(outcome, status, usage, self._loop.time())

    def fail(self, outcome: str, reason: str, kind: type[ProtocolError]) -> None:
        """Ends it with an error of that kind."""
        error = kind(f"replica {self.assignment.replica_id}: {reason}", retry_after_s=1.0)
        self._owner.attempt_failed(self, Failure(outcome, reason, error))

    # AnswerSink

    def answer_head(self, head: ResponseHead) -> None:
        self.head = head
        if self._owner.attempt_refused(self, head):
            self.fail(Outcome.REFUSED, f"the replica answered {head.status}", Overloaded)
        elif head.is_event_stream or (head.chunked and self._request.version == "1.0"):
            self.unframe()

    def answer_bytes(self, data: bytes, framed: bytes = b"") -> None:
        self.waiting_since = self._loop.time()
        self._owner.attempt_answers(self, data, framed)

    def answer_ended(self) -> None:
        self._connection = None
        self._owner.attempt_ended(self)

    def answer_broken(self, reason: str) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None
        stale = connection.reused and not connection.got_bytes
        if stale and not self._stale_retry_used:
            # The replica had closed this idle connection before it saw the request: not its fault.
            self._stale_retry_used = True
            self._connect_anew()
        else:
            self.fail(Outcome.BROKEN, reason, UpstreamFailed)

    # inside

    def _connect_anew(self) -> None:
        self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            connection = await self.assignment.pool.connect()
        except (ConnectFailed, PoolFull) as error:
            self._connecting = None
            self.fail(*no_connection(error))
        else:
            self._connecting = None
            self._send(connection)

    def _send(self, connection: ReplicaConnection) -> None:
        self._connection = connection
        self.waiting_since = self._loop.time()
        assignment, request = self.assignment, self._request
        body = request.body if assignment.body is None else assignment.body
        connection.send(
            request_head(request, assignment.pool.host_header, len(body), assignment.asks),
            body,
            self,
            head_only=request.method == b"HEAD",
        )
        if self.reading_paused:
            connection.pause_reading()
