"""One request's life after its last byte came in: choose a replica, send, relay, end or try again.

1. `route.enter` lets it in, or has it wait until there is room.
2. `route.assign` chooses a replica and takes its lease, synchronously.
3. An idle connection is used at once; else one is opened.
4. The answer's head is held back until its first body byte, so that until then another replica
   can still be tried. From then on the bytes are relayed as they come.
5. At the true end (or failure, or the client's leaving) the lease is released, once.
"""

import asyncio
import math

from protocol import sse
from protocol.errors import (
    ConnectTimedOut,
    FirstByteTimedOut,
    InternalError,
    Overloaded,
    ProtocolError,
    StreamTimedOut,
    TotalTimedOut,
    Unavailable,
    UpstreamFailed,
    encode_error,
)
from router.config import TimeoutsConfig
from router.dataplane.answer_scan import AnswerScan, AnswerUsage
from router.dataplane.dechunker import Dechunker
from router.dataplane.http1 import (
    LAST_CHUNK,
    Header,
    Request,
    ResponseHead,
    chunk,
    request_head,
    response_head,
)
from router.dataplane.pool import ConnectFailed, ConnectTooSlow, PoolFull
from router.dataplane.replica_connection import ReplicaConnection
from router.dataplane.request_reader import BUG
from router.dataplane.route import Assignment, Client, Outcome, Route


class Exchange:
    """A request under way, and the sink of its answer."""

    def __init__(
        self,
        client: Client,
        request: Request,
        route: Route,
        timeouts: TimeoutsConfig,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.request = request
        self.status = 0
        self.attempts = 0
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
        self._connection: ReplicaConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._stale_retry_used = False
        self._head: ResponseHead | None = None
        self._scan = AnswerScan(is_stream=False)
        self._dechunker: Dechunker | None = None
        self._keep_alive = False  # what the answer's head said
        self._client_paused = False
        self._ends_by = math.inf
        if timeouts.total_s is not None:
            self._ends_by = request.started_at + timeouts.total_s
        self._waiting_since = 0.0  # of the replica, or of the client while it is paused
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
        """The client has left: stop at once, so that the replica frees its blocks."""
        if self._done:
            return
        self.status = 499
        if self._connecting is not None:
            self._connecting.cancel()
        self._drop_connection()
        self._release(Outcome.CLIENT_GONE)
        self._finish()

    def crashed(self) -> None:
        """A bug of ours has shown while this was started: nothing of it is left behind."""
        if self._done:
            return
        if self._connecting is not None:
            self._connecting.cancel()
        self._drop_connection()
        self._release(Outcome.CRASHED)
        self._fail(InternalError(BUG))

    def pause(self) -> None:
        """The client reads too slowly: stop reading from the replica."""
        self._client_paused = True
        self._waiting_since = self._loop.time()
        if self._connection is not None:
            self._connection.pause_reading()

    def resume(self) -> None:
        self._client_paused = False
        self._waiting_since = self._loop.time()
        if self._connection is not None:
            self._connection.resume_reading()

    def check_timeouts(self, now: float) -> None:
        """Called about once a second."""
        if self._done:
            return
        if now > self._ends_by:
            self._time_over()
            return
        if self._connection is None:
            return
        waited_s = now - self._waiting_since
        if self._client_paused:
            if waited_s > self._timeouts.between_bytes_s:
                self._client.abort()
        elif not self.started:
            if waited_s > self._timeouts.first_byte_s:
                self._drop_connection()
                self._release(Outcome.BROKEN)
                limit_s = self._timeouts.first_byte_s
                self._fail(FirstByteTimedOut(f"the replica did not answer within {limit_s} s"))
        elif waited_s > self._timeouts.between_bytes_s:
            connection = self._connection
            self._drop_connection()
            limit_s = self._timeouts.between_bytes_s
            error = StreamTimedOut(f"the replica was silent for {limit_s} s")
            self._end_broken_stream(error, connection, Outcome.BROKEN_STREAM)

    def _time_over(self) -> None:
        error = TotalTimedOut(f"the request was not over within {self._timeouts.total_s} s")
        if self._connecting is not None:
            self._connecting.cancel()
        connection = self._connection
        self._drop_connection()
        if self.started:
            self._end_broken_stream(error, connection, Outcome.CUT_OFF)
        else:
            self._release(Outcome.CUT_OFF)
            self._fail(error)

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
        self._reach(assignment)

    def _reach(self, assignment: Assignment) -> None:
        connection = assignment.pool.take_idle()
        if connection is not None:
            self._send(assignment, connection)
        else:
            self._connecting = self._loop.create_task(self._connect(assignment))

    async def _connect(self, assignment: Assignment) -> None:
        try:
            connection = await assignment.pool.connect()
        except ConnectFailed as error:
            self._connecting = None
            kind = ConnectTimedOut if isinstance(error, ConnectTooSlow) else Unavailable
            self._replica_failed(Outcome.CONNECT_FAILED, f"cannot connect: {error}", kind)
        except PoolFull as error:
            self._connecting = None
            self._replica_failed(Outcome.REFUSED, str(error), Overloaded)
        else:
            self._connecting = None
            self._send(assignment, connection)

    def _send(self, assignment: Assignment, connection: ReplicaConnection) -> None:
        self._connection = connection
        self._waiting_since = self._loop.time()
        connection.send(
            request_head(self.request, assignment.pool.host_header),
            self.request.body,
            self,
            head_only=self.request.method == b"HEAD",
        )
        if self._client_paused:
            connection.pause_reading()

    # AnswerSink

    def answer_head(self, head: ResponseHead) -> None:
        if head.status in (429, 503) and self._route.may_retry(self._loop.time()):
            self._drop_connection()
            self.failure = f"the replica answered {head.status}"
            self._release(Outcome.REFUSED)
            self._attempt()
            return
        self.status = head.status
        self._head = head
        self._scan = AnswerScan(is_stream=head.is_event_stream())
        if head.chunked and self.request.version == "1.0":
            self._dechunker = Dechunker()

    def answer_bytes(self, data: bytes) -> None:
        if self._head is None:
            return  # refused: its body is of no interest
        now = self._loop.time()
        self._waiting_since = now
        self._scan.feed(data)
        if self._dechunker is not None:
            data = self._dechunker.feed(data)
        if self.first_byte_at is None:
            self._first_byte(now, data)
        else:
            self._client.write(data)

    def answer_ended(self) -> None:
        if self._done or self._head is None:
            return
        self._connection = None
        if self.first_byte_at is None:  # an answer without a body
            self._first_byte(self._loop.time(), b"")
        self.usage = self._scan.usage()
        self._release(Outcome.ANSWERED)
        self._client.exchange_done(keep_alive=self._keep_alive)
        self._finish()

    def answer_broken(self, reason: str) -> None:
        if self._done:
            return
        connection, self._connection = self._connection, None
        if self.started:
            self._end_broken_stream(UpstreamFailed(reason), connection, Outcome.BROKEN_STREAM)
            return
        self._head = None
        assert connection is not None
        stale = connection.reused and not connection.got_bytes
        if stale and not self._stale_retry_used and self._assignment is not None:
            # The replica had closed this idle connection before it saw the request: not its fault.
            self._stale_retry_used = True
            self._connecting = self._loop.create_task(self._connect(self._assignment))
            return
        self._replica_failed(Outcome.BROKEN, reason, UpstreamFailed)

    # inside

    def _first_byte(self, now: float, data: bytes) -> None:
        assert self._head is not None
        assert self._assignment is not None
        self.first_byte_at = now
        self._assignment.first_byte(now)
        self._keep_alive = self._keeps_alive()
        added: list[Header] = [
            (b"x-request-id", self.request.request_id),
            (b"x-warmroute-replica", self._assignment.replica_id.encode()),
            (b"x-warmroute-matched-tokens", str(self._assignment.matched_tokens).encode()),
        ]
        head = response_head(
            self._head,
            added=added,
            chunked=self._head.chunked and self._dechunker is None,
            keep_alive=self._keep_alive,
        )
        self._client.write(head + data)

    def _keeps_alive(self) -> bool:
        """The client's wish, unless only closing can tell it where the body ends."""
        head = self._head
        if head is None or self._dechunker is not None:
            return False
        delimited = (
            head.chunked
            or head.content_length is not None
            or self.request.method == b"HEAD"
            or head.status in (204, 304)
        )
        return delimited and self._client.stays_open(self.request)

    def _replica_failed(self, outcome: str, reason: str, kind: type[ProtocolError]) -> None:
        """An attempt failed before the first byte: another replica, or the end."""
        now = self._loop.time()
        self.failure = reason
        may_retry = self._route.may_retry(now)
        replica_id = self.replica_id
        self._release(outcome)
        if may_retry:
            self._attempt()
        else:
            self._fail(kind(f"replica {replica_id}: {reason}", retry_after_s=1.0))

    def _end_broken_stream(
        self, error: ProtocolError, connection: ReplicaConnection | None, outcome: str
    ) -> None:
        """An answer ends in its middle: the client is told, not left guessing.

        Args:
            connection: It stands where the last byte was relayed.
        """
        assert self._head is not None
        self.failure = error.message
        self._release(outcome)
        raw_chunks = self._head.chunked and self._dechunker is None
        between_chunks = (
            connection is not None and connection.between_chunks and self._scan.ends_line()
        )
        can_speak = (
            self._head.is_event_stream()
            and self._head.content_length is None
            and (not raw_chunks or between_chunks)
        )
        if can_speak:
            message = f"the stream broke: replica {self.replica_id}: {error.message}"
            event = sse.frame(encode_error(message, type=error.type, code=error.code))
            if not self._scan.ends_between_events(chunked=self._head.chunked):
                event = b"\n\n" + event
            self._client.write(chunk(event) + LAST_CHUNK if raw_chunks else event)
            self._client.exchange_done(keep_alive=False)
        else:
            self._client.abort()
        self._finish()

    def _fail(self, error: ProtocolError) -> None:
        self.status = error.status
        self.failure = error.message
        self._client.answer_error(error, self.request)
        self._finish()

    def _release(self, outcome: str) -> None:
        assignment, self._assignment = self._assignment, None
        if assignment is not None:
            assignment.release(outcome, self.status, self.usage, self._loop.time())

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon()

    def _finish(self) -> None:
        if not self._done:
            self._done = True
            self._route.finished(self, self._loop.time())
