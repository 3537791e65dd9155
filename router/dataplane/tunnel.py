"""One WebSocket's life: the handshake goes where a request would, then bytes pass both ways.

1. `route.enter` and `route.assign`, as for any request; a connection of its own is opened.
2. Until the replica answers 101, another one can be tried. Any other answer is relayed as it is,
   and the client's connection closes behind it: what came behind the request is not HTTP.
3. From the 101 on bytes are relayed as they come, and neither side is read faster than the other
   takes them. What is in them is none of our business.
4. A side that closes its half only ends that half, as TCP has it. When both have, or one is lost,
   or nothing has passed for too long, the lease is released, once.

Sources: RFC 6455 §4 (handshake), §7.1.1 (closing); RFC 9110 §7.8 (Upgrade).
"""

import asyncio
import math
from typing import Protocol

from protocol.errors import (
    FirstByteTimedOut,
    InternalError,
    ProtocolError,
    TotalTimedOut,
    UpstreamFailed,
)
from router.config import TimeoutsConfig
from router.core.answer_scan import AnswerUsage
from router.dataplane.attempt import no_connection
from router.dataplane.http1 import (
    Header,
    Request,
    ResponseHead,
    request_head,
    response_head,
    switching_head,
)
from router.dataplane.pool import ConnectFailed, PoolFull
from router.dataplane.request_reader import BUG
from router.dataplane.route import Assignment, Client, Outcome, Route, answer_fields
from router.dataplane.tunnel_connection import TunnelConnection


class TunnelClient(Client, Protocol):
    """The connection that becomes a tunnel's end."""

    def open_tunnel(self) -> bytes:
        """From now on its bytes are the tunnel's. Returns those that came early."""

    def end_writing(self) -> bool:
        """Closes our half once what was written has gone out; False where halves cannot be."""

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Tunnel:
    """A WebSocket under way. The sink of both sides."""

    def __init__(
        self,
        client: TunnelClient,
        request: Request,
        route: Route,
        timeouts: TimeoutsConfig,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.request = request
        self.status = 0
        self.attempts = 0
        self.resumes = 0
        self.usage = AnswerUsage()
        self.first_byte_at: float | None = None
        self.replica_id: str | None = None
        self.matched_tokens = 0
        self.failure: str | None = None
        self._client = client
        self._route = route
        self._timeouts = timeouts
        self._loop = loop
        self._assignment: Assignment | None = None
        self._connection: TunnelConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._head: ResponseHead | None = None  # of an answer that refuses
        self._open = False
        self._client_ended = False
        self._replica_ended = False
        self._client_paused = False
        self._moved_at = 0.0  # the last byte came, or the request was sent
        self._ends_by = math.inf
        if timeouts.total_s is not None:
            self._ends_by = request.started_at + timeouts.total_s
        self._done = False

    @property
    def started(self) -> bool:
        """Whether the client has got a byte of the answer."""
        return self.first_byte_at is not None

    def start(self) -> None:
        now = self._loop.time()
        if now > self._ends_by:
            self._time_over()  # while it waited behind others on its connection
            return
        try:
            enters = self._route.enter(self, now)
        except ProtocolError as error:
            self._fail(error)
            return
        if enters:
            self._attempt()

    def admitted(self) -> None:
        """There is room now."""
        if not self._done:
            self._attempt()

    def turned_away(self, error: ProtocolError) -> None:
        """There was no room in time."""
        if not self._done:
            self._fail(error)

    def client_gone(self) -> None:
        """The client is lost, and so is what it had not yet read."""
        if self._done:
            return
        if not self._open:
            self.status = 499
        self._drop_connection()
        self._end(Outcome.CLIENT_GONE)

    def crashed(self) -> None:
        """A bug of ours has shown while this was started: nothing of it is left behind."""
        if self._done:
            return
        self._drop_connection()
        self._release(Outcome.CRASHED)
        self._fail(InternalError(BUG))

    def pause(self) -> None:
        """The client reads too slowly: stop reading from the replica."""
        self._client_paused = True
        self._moved_at = self._loop.time()
        if self._connection is not None:
            self._connection.pause_reading()

    def resume(self) -> None:
        self._client_paused = False
        self._moved_at = self._loop.time()
        if self._connection is not None:
            self._connection.resume_reading()

    def check_timeouts(self, now: float) -> None:
        """Called about once a second."""
        if self._done:
            return
        if now > self._ends_by:
            self._time_over()
        elif self._open:
            limit_s = self._timeouts.tunnel_idle_s
            if self._client_ended or self._replica_ended:
                limit_s = min(limit_s, self._timeouts.between_bytes_s)
            if now - self._moved_at > limit_s:
                self._cut(f"nothing passed through the tunnel for {limit_s} s")
        elif self._connection is None:
            return
        elif self.started:
            if now - self._moved_at > self._timeouts.between_bytes_s:
                self._break_refusal("the refusal came to no end", Outcome.BROKEN_STREAM)
        elif now - self._moved_at > self._timeouts.first_byte_s:
            self._drop_connection()
            self._release(Outcome.BROKEN)
            limit_s = self._timeouts.first_byte_s
            self._fail(FirstByteTimedOut(f"the replica did not answer within {limit_s} s"))

    # What the client does once it is open

    def client_bytes(self, data: bytes) -> None:
        self._moved_at = self._loop.time()
        if self._connection is not None:
            self._connection.write(data)

    def client_ended(self, *, can_go_on: bool) -> bool:
        """It sends no more. Returns whether it is still sent to, if it can be."""
        self._client_ended = True
        connection = self._connection
        assert connection is not None
        if self._replica_ended or not can_go_on or not connection.end_writing():
            self._close()
            return False
        return True

    # Reaching a replica

    def _attempt(self) -> None:
        try:
            assignment = self._route.assign(self._loop.time())
        except ProtocolError as error:
            self._fail(error)
            return
        self.attempts += 1
        self._assignment = assignment
        self.replica_id = assignment.replica_id
        self.matched_tokens = assignment.matched_tokens
        self._connecting = self._loop.create_task(self._connect(assignment))

    async def _connect(self, assignment: Assignment) -> None:
        try:
            connection = await assignment.pool.open(TunnelConnection)
        except (ConnectFailed, PoolFull) as error:
            self._connecting = None
            self._replica_failed(*no_connection(error))
        else:
            self._connecting = None
            self._connection = connection
            self._moved_at = self._loop.time()
            connection.send(request_head(self.request, assignment.pool.host_header, 0), self)

    # TunnelSink

    def switched(self, head: ResponseHead) -> None:
        assert self._connection is not None
        self._begin(head.status)
        self._open = True
        self._client.write(switching_head(head, self._added()))
        early = self._client.open_tunnel()
        if early:
            self._connection.write(early)

    def replica_bytes(self, data: bytes) -> None:
        self._moved_at = self._loop.time()
        self._client.write(data)

    def replica_ended(self, *, can_go_on: bool) -> bool:
        self._replica_ended = True
        if self._client_ended or not can_go_on or not self._client.end_writing():
            self._close()
            return False
        return True

    def replica_lost(self, *, broken: bool) -> None:
        """Nothing of what it sent is lost by that: it is with the client, or on its way."""
        self._connection = None
        outcome = Outcome.ANSWERED
        if broken and not self._replica_ended:
            outcome = Outcome.BROKEN_STREAM
            self.failure = "the replica broke the connection"
        self._client.exchange_done(keep_alive=False)
        self._end(outcome)

    def replica_full(self) -> None:
        self._client.pause_reading()

    def replica_takes_more(self) -> None:
        self._client.resume_reading()

    # AnswerSink: it refuses

    def answer_head(self, head: ResponseHead) -> None:
        if head.status in (429, 503) and self._route.may_retry(self._loop.time()):
            self._drop_connection()
            self.failure = f"the replica answered {head.status}"
            self._release(Outcome.REFUSED)
            self._attempt()
            return
        self._head = head

    def answer_bytes(self, data: bytes, framed: bytes = b"") -> None:
        if self._head is None:
            return  # tried elsewhere: its body is of no interest
        self._moved_at = self._loop.time()
        if self.started:
            self._client.write(data)
        else:
            self._relay_refusal(self._head, data)

    def answer_ended(self) -> None:
        if self._done or self._head is None:
            return
        self._connection = None
        if not self.started:
            self._relay_refusal(self._head, b"")
        self._client.exchange_done(keep_alive=False)
        self._end(Outcome.ANSWERED)

    def answer_broken(self, reason: str) -> None:
        if self._done:
            return
        if self.started:
            self._break_refusal(reason, Outcome.BROKEN_STREAM)
            return
        self._connection = self._head = None
        self._replica_failed(Outcome.BROKEN, reason, UpstreamFailed)

    # inside

    def _added(self) -> list[Header]:
        assert self._assignment is not None
        return answer_fields(self.request, self._assignment)

    def _begin(self, status: int) -> None:
        """The client gets its first byte: no other replica from here on."""
        assert self._assignment is not None
        self.status = status
        self.first_byte_at = self._moved_at = self._loop.time()
        self._assignment.first_byte(self.first_byte_at, status)

    def _relay_refusal(self, head: ResponseHead, data: bytes) -> None:
        self._begin(head.status)
        added = self._added()
        self._client.write(
            response_head(head, added=added, chunked=head.chunked, keep_alive=False) + data
        )

    def _break_refusal(self, reason: str, outcome: str) -> None:
        self.failure = reason
        self._drop_connection()
        self._client.abort()
        self._end(outcome)

    def _replica_failed(self, outcome: str, reason: str, kind: type[ProtocolError]) -> None:
        """An attempt failed before the first byte: another replica, or the end."""
        self.failure = reason
        replica_id = self.replica_id
        self._release(outcome)  # first: what it says may let others have requests
        if self._route.may_retry(self._loop.time()):
            self._attempt()
        else:
            self._fail(kind(f"replica {replica_id}: {reason}", retry_after_s=1.0))

    def _time_over(self) -> None:
        reason = f"the request was not over within {self._timeouts.total_s} s"
        if self._open:
            self._cut(reason)
        elif self.started:
            self._break_refusal(reason, Outcome.CUT_OFF)
        else:
            self._drop_connection()
            self._release(Outcome.CUT_OFF)
            self._fail(TotalTimedOut(reason))

    def _cut(self, reason: str) -> None:
        self.failure = reason
        self._drop_connection()
        self._client.exchange_done(keep_alive=False)
        self._end(Outcome.CUT_OFF)

    def _close(self) -> None:
        """Neither side has more to say: what is on its way still arrives."""
        connection, self._connection = self._connection, None
        assert connection is not None
        connection.finish()
        self._client.exchange_done(keep_alive=False)
        self._end(Outcome.ANSWERED)

    def _fail(self, error: ProtocolError) -> None:
        self.status = error.status
        self.failure = error.message
        self._client.answer_error(error, self.request)
        self._finish()

    def _end(self, outcome: str) -> None:
        self._release(outcome)
        self._finish()

    def _release(self, outcome: str) -> None:
        assignment, self._assignment = self._assignment, None
        if assignment is not None:
            assignment.release(outcome, self.status, self.usage, self._loop.time())

    def _drop_connection(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon()

    def _finish(self) -> None:
        if not self._done:
            self._done = True
            self._route.finished(self, self._loop.time())
