"""One request's life, from its last byte to the last of its answer: `Exchange._life` is the order.

It is a generator: what happens to connections and clients is sent into it, or thrown where it ends
the request. Between two happenings it runs without interruption, so that choosing a replica and
taking its lease are one step. Bytes of an answer that is being relayed do not pass through it.
"""

import asyncio
import logging
import math
from collections.abc import Generator
from enum import Enum, auto
from types import GeneratorType
from typing import cast

from protocol.errors import (
    FirstByteTimedOut,
    InternalError,
    ProtocolError,
    StreamTimedOut,
    TotalTimedOut,
    UpstreamFailed,
)
from router.config import TimeoutsConfig
from router.core.answer_scan import AnswerUsage
from router.dataplane.attempt import Attempt, Failure
from router.dataplane.http1 import Request, ResponseHead
from router.dataplane.reply import Reply
from router.dataplane.request_reader import BUG
from router.dataplane.route import Client, Outcome, Route, answer_fields

log = logging.getLogger(__name__)

_BUSY = (429, 503)
_REPORTED_BYTES = 500
_LOST_SILENT_S = 1.0  # a replica that is taken to be gone, and has sent nothing for so long, is


class _Gone(Exception):
    """The client has left."""


class _What(Enum):
    STARTED = auto()
    ADMITTED = auto()
    ANSWERS = auto()
    ENDED = auto()
    FAILED = auto()
    HEDGE_DUE = auto()


class _Happening:
    """Something the life of a request waits for."""

    __slots__ = ("attempt", "data", "failure", "what")

    def __init__(
        self,
        what: _What,
        attempt: Attempt | None = None,
        data: bytes = b"",
        failure: Failure | None = None,
    ) -> None:
        self.what = what
        self.attempt = attempt
        self.data = data
        self.failure = failure


_Life = Generator[None, _Happening, None]
_STARTED = _Happening(_What.STARTED)
_ADMITTED = _Happening(_What.ADMITTED)
_HEDGE_DUE = _Happening(_What.HEDGE_DUE)


class Exchange:
    """A request under way."""

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
        self._reply = Reply(client, request, route.log)
        self._racing: list[Attempt] = []  # those under way: one, or two when hedged
        self._relayed: Attempt | None = None  # the one whose answer the client gets
        self._turned_away: ProtocolError | None = None
        self._client_paused_at: float | None = None
        self._ends_by = math.inf
        if timeouts.total_s is not None:
            self._ends_by = request.started_at + timeouts.total_s
        self._steps = cast("GeneratorType[None, _Happening, None]", self._life())
        next(self._steps)
        self._done = False

    # The life of a request

    def _life(self) -> _Life:
        """From a whole request (1) on; its numbers are those of docs/architecture.md."""
        outcome = Outcome.CRASHED
        try:
            yield  # until it is this request's turn on its connection
            yield from self._enter()  # 2 to 4: it has been read, and is let in
            while True:
                answering = yield from self._race()  # 5, 6 and 7: until one replica answers
                broken = yield from self._relay(answering)  # 8: to the last byte
                if broken is None or self._reply.ends_here():
                    return
                self._go_on_after(broken)  # 9: elsewhere, by another race
        except _Gone:
            self.status, outcome = 499, Outcome.CLIENT_GONE
        except ProtocolError as error:
            outcome = Outcome.CRASHED if isinstance(error, InternalError) else Outcome.CUT_OFF
            self._fail(error)
        except Exception:  # the edge: a bug of ours must not look like the client's fault
            log.exception("request %s failed", self.request.request_id.decode(errors="replace"))
            self._fail(InternalError(BUG))
        finally:
            for attempt in self._racing:
                attempt.release(outcome, self.status, self.usage)
            self._done = True
            self._route.finished(self, self._loop.time())

    def _enter(self) -> _Life:
        now = self._loop.time()
        if now > self._ends_by:
            raise self._time_over()  # while it waited behind others on its connection
        enters = self._route.enter(self, now)
        if self._turned_away is not None:
            raise self._turned_away
        if not enters:
            yield

    def _race(self) -> Generator[None, _Happening, Attempt]:
        """Asks replicas until one answers: the next when one fails, two when one is slow.

        Raises:
            ProtocolError: none does.
        """
        self._try_one()
        hedge = None
        if self._route.hedge_after_s is not None:
            hedge = self._loop.call_later(self._route.hedge_after_s, self._happen, _HEDGE_DUE)
        try:
            while True:
                happening = yield
                attempt = happening.attempt
                if happening.what is _What.ANSWERS:
                    assert attempt is not None
                    self._begin(attempt, happening.data)
                    return attempt
                if happening.what is _What.HEDGE_DUE:
                    if len(self._racing) == 1 and self._route.may_retry(self._loop.time()):
                        self._try_one()
                    continue
                assert happening.what is _What.FAILED
                assert attempt is not None
                assert happening.failure is not None
                self._drop(attempt, happening.failure)
        finally:
            if hedge is not None:
                hedge.cancel()

    def _relay(self, attempt: Attempt) -> Generator[None, _Happening, Failure | None]:
        """Until the answer is whole, or broken: then why. Its bytes are passed on meanwhile."""
        while True:
            happening = yield
            if happening.what is _What.HEDGE_DUE or happening.attempt is not attempt:
                continue
            self._relayed = None
            self._racing.remove(attempt)
            self.usage = self._reply.usage()
            if happening.what is _What.ENDED:
                usage = self.usage if not self.resumes else AnswerUsage()  # it is of all legs
                attempt.release(Outcome.ANSWERED, self.status, usage)
                self._reply.end()
                return None
            assert happening.failure is not None
            attempt.release(Outcome.BROKEN_STREAM, self.status, self.usage)
            self.failure = happening.failure.reason
            return happening.failure

    # The steps

    def _try_one(self) -> None:
        """Chooses a replica, takes its lease and sends the request there. Raises ProtocolError."""
        assignment = self._route.assign(self._loop.time())
        self.attempts += 1
        self.replica_id = assignment.replica_id
        self.matched_tokens = assignment.matched_tokens
        attempt = Attempt(self, self.request, assignment, self._loop)
        if self._client_paused_at is not None:
            attempt.pause_reading()
        self._racing.append(attempt)
        attempt.start()

    def _drop(self, attempt: Attempt, failure: Failure) -> None:
        """An attempt failed before its answer began. Another replica, or the end."""
        self._racing.remove(attempt)
        self.failure = failure.reason
        # First: what it says of its replica may let others have requests that did not get any.
        attempt.release(failure.outcome, self.status, self.usage)
        if self._racing:
            return
        slow = isinstance(failure.error, FirstByteTimedOut)  # as slow elsewhere, most likely
        if slow or not self._route.may_retry(self._loop.time()):
            raise failure.error
        self._try_one()

    def _begin(self, attempt: Attempt, data: bytes) -> None:
        """Its first bytes are there: whoever else was asked has lost."""
        now, assignment, head = self._loop.time(), attempt.assignment, attempt.head
        assert head is not None
        for other in self._racing:
            if other is not attempt:
                other.release(Outcome.OUTRUN, 0, self.usage)
        self._racing = [attempt]
        self._relayed = attempt
        self.replica_id = assignment.replica_id
        assignment.first_byte(now, head.status)
        if self._reply.begun:
            self._reply.continue_with(assignment.rewriter)
        else:
            self.status = head.status
            self.first_byte_at = now
            self.matched_tokens = assignment.matched_tokens
            self._reply.begin(head, answer_fields(self.request, assignment))
        self._reply.relay(data)

    def _go_on_after(self, broken: Failure) -> None:
        """What is assigned next begins anew, if the client has seen nothing of the answer, or else
        goes on where it broke. Raises ProtocolError: neither can be."""
        if self._reply.sent:
            self._route.resume(broken.error)
            self.resumes += 1
        elif self._route.may_retry(self._loop.time()):
            self._reply = Reply(self._client, self.request, self._route.log)
        else:
            raise broken.error

    def _fail(self, error: ProtocolError) -> None:
        self.failure = error.message
        if self._reply.sent:
            self._reply.break_off(error, f"the stream broke: {error.message}")
        else:
            self.status = error.status
            self._client.answer_error(error, self.request)

    # What happens to it

    def start(self) -> None:
        """It is its turn."""
        self._happen(_STARTED)

    def admitted(self) -> None:
        """There is room now. (If it is told while it enters, so is it by `Route.enter`.)"""
        if not self._steps.gi_running:
            self._happen(_ADMITTED)

    def turned_away(self, error: ProtocolError) -> None:
        """There was no room in time, or none to wait: then it is told while it enters."""
        if self._steps.gi_running:
            self._turned_away = error
        else:
            self._end(error)

    def client_gone(self) -> None:
        """The client has left: stop at once, so that the replica frees its blocks."""
        self._end(_Gone())

    def crashed(self) -> None:
        """A bug of ours has shown while this was started: nothing of it is left behind."""
        self._end(InternalError(BUG))

    def pause(self) -> None:
        """The client reads too slowly: stop reading from the replica."""
        self._client_paused_at = self._loop.time()
        for attempt in self._racing:
            attempt.pause_reading()

    def resume(self) -> None:
        self._client_paused_at = None
        for attempt in self._racing:
            attempt.waiting_since = self._loop.time()
            attempt.resume_reading()

    def check_timeouts(self, now: float) -> None:
        """Called about twice a second."""
        if now > self._ends_by:
            self._end(self._time_over())
            return
        if self._client_paused_at is not None:
            if now - self._client_paused_at > self._timeouts.between_bytes_s:
                self._client.abort()
            return
        for attempt in list(self._racing):
            if attempt.waiting_since is not None:
                self._check_wait(attempt, now - attempt.waiting_since)

    def attempt_refused(self, attempt: Attempt, head: ResponseHead) -> bool:
        if self._reply.begun:
            return head.status != 200 or not head.is_event_stream
        if head.status not in _BUSY:
            return False
        return len(self._racing) > 1 or self._route.may_retry(self._loop.time())

    def attempt_answers(self, attempt: Attempt, data: bytes, framed: bytes) -> None:
        if attempt is self._relayed:
            self._reply.relay(data, framed)
        else:
            self._happen(_Happening(_What.ANSWERS, attempt, data))
        if self._reply.reported and attempt is self._relayed:
            reported = self._reply.reported[:_REPORTED_BYTES].decode(errors="replace").strip()
            attempt.fail(Outcome.BROKEN_STREAM, f"the replica reported {reported}", UpstreamFailed)

    def attempt_ended(self, attempt: Attempt) -> None:
        if attempt is not self._relayed:  # an answer without a body
            self._happen(_Happening(_What.ANSWERS, attempt))
        self._happen(_Happening(_What.ENDED, attempt))

    def attempt_failed(self, attempt: Attempt, failure: Failure) -> None:
        self._happen(_Happening(_What.FAILED, attempt, failure=failure))

    # inside

    def _happen(self, happening: _Happening) -> None:
        """Lets its life go on. Whatever comes after its end is of no interest."""
        if self._done:
            return
        try:
            self._steps.send(happening)
        except StopIteration:
            return

    def _end(self, error: Exception) -> None:
        if self._done:
            return
        try:
            self._steps.throw(error)
        except StopIteration:
            return

    def _check_wait(self, attempt: Attempt, waited_s: float) -> None:
        """Whether a replica has been silent for too long."""
        lost = attempt.assignment.lost and waited_s > _LOST_SILENT_S
        if attempt is self._relayed:
            limit_s = self._timeouts.between_bytes_s
            if waited_s > limit_s:
                attempt.fail(
                    Outcome.BROKEN_STREAM, f"the replica was silent for {limit_s} s", StreamTimedOut
                )
            elif lost:
                attempt.fail(Outcome.BROKEN_STREAM, "the replica does not react", UpstreamFailed)
        elif waited_s > self._timeouts.first_byte_s:
            limit_s = self._timeouts.first_byte_s
            attempt.fail(
                Outcome.BROKEN, f"the replica did not answer within {limit_s} s", FirstByteTimedOut
            )
        elif lost:
            attempt.fail(Outcome.BROKEN, "the replica does not react", UpstreamFailed)

    def _time_over(self) -> TotalTimedOut:
        return TotalTimedOut(f"the request was not over within {self._timeouts.total_s} s")
