"""A request whose model is known: where it may go, at first, and when something has failed."""

from typing import TYPE_CHECKING

from protocol.errors import ProtocolError
from protocol.resume import RESUMABLE_FIELD
from router.core.continued_events import ContinuedEvents
from router.core.ids import ReplicaId
from router.core.resume import (
    CannotResume,
    body_by_text,
    body_by_tokens,
    check_can_go_on,
    fields_of,
)
from router.core.said import Said
from router.core.ticket import Ticket, TicketState
from router.dataplane.http1 import Request
from router.dataplane.route import UnderWay
from router.request_view import CHAT_PATHS, COMPLETION_PATHS, RequestView
from router.served_model import ReplicaAssignment, ServedModel

if TYPE_CHECKING:
    from router.handler import RouterHandler

_TELL_TOKENS = RESUMABLE_FIELD + b": 1\r\n"


class _Continuation:
    """A stream that broke, and how each kind of replica is asked to go on with it."""

    def __init__(self, said: Said, body: bytes, *, chat: bool) -> None:
        """Raises CannotResume: no replica of any kind could."""
        self.said = said
        self.by_tokens: bytes | None = None
        self.by_text: bytes | None = None
        self.not_by_text = ""  # why
        self._chat = chat
        fields = fields_of(body)
        check_can_go_on(said, fields)
        if said.token_ids is not None:
            self.by_tokens = body_by_tokens(fields, said)
        try:
            self.by_text = body_by_text(fields, said, chat=chat)
        except CannotResume as error:
            if self.by_tokens is None:
                raise
            self.not_by_text = f": {error}"

    def give(self, assignment: ReplicaAssignment, *, by_tokens: bool) -> None:
        """
        Args:
            by_tokens: Whether the replica goes on from token ids.
        """
        if by_tokens and self.by_tokens is not None:
            assignment.body = self.by_tokens
            if self.said.finish_reason is not None:
                assignment.rewriter = ContinuedEvents(self.said, chat=self._chat, only_usage=True)
        else:
            assignment.body = self.by_text
            assignment.rewriter = ContinuedEvents(self.said, chat=self._chat)


class RoutedRequest:
    """The data plane's `Route`."""

    def __init__(
        self,
        handler: "RouterHandler",
        model: ServedModel,
        request: Request,
        view: RequestView,
        prompt: bytes | None,
        ticket: Ticket | None,
        ttft_target_s: float | None,
    ) -> None:
        """
        Args:
            ticket: What it asks admission for; None where room is not limited.
            ttft_target_s: Seconds from its first byte to the answer's, if it is a stream: else the
                first byte is no first token.
        """
        self.model = model
        self.hedge_after_s: float | None = None
        self.log: Said | None = None
        self.ttft_target_s = ttft_target_s if view.stream else None
        self._ticket = ticket
        self._handler = handler
        self._request = request
        self._view = view
        self._prompt = self._whole_prompt = prompt
        self._tried: set[ReplicaId] = set()
        self._last: ReplicaId | None = None
        self._goes_on = False  # the next assignment is a stream's that broke
        self._resumes = 0
        self._continuation: _Continuation | None = None
        if request.path in CHAT_PATHS or request.path in COMPLETION_PATHS:
            self.hedge_after_s = handler.hedge_after_s
            if view.is_one_stream and handler.resume.max_resumes:
                self.log = Said(handler.resume.max_bytes, wants_usage=view.wants_usage)
        handler.in_flight += 1

    def enter(self, exchange: UnderWay, now: float) -> bool:
        if self._ticket is None or not self.model.fleet.routable:
            return True
        self._ticket.owner = exchange
        return self._handler.gate.enter(self._ticket, now)

    def assign(self, now: float) -> ReplicaAssignment:
        budget = self._handler.retry_budget
        continuation, excluded = self._continuation, self._excluded()
        if not self._tried:
            budget.request(now)
        elif not self._goes_on:  # a stream that goes on is no retry: the fleet owes it an end
            budget.retry()
        self._goes_on = False
        admission, ticket = self._handler.gate.admission, self._ticket
        if ticket is not None and ticket.state is not TicketState.ADMITTED:
            ticket = None  # no replica was routable when it came: it was not asked for
        assignment = self.model.assign(
            self._prompt,
            self._view.namespace,
            output_tokens_max=self._view.expected_output_tokens,
            streaming=bool(self._view.stream),
            excluded=excluded if ticket is None else admission.excluded(ticket, excluded),
            now=now,
            ttft_target_s=self._target_left_s(now),
        )
        replica = assignment.replica_id
        self._tried.add(replica)
        self._last = replica
        if ticket is not None:
            admission.take(ticket, replica)
        by_tokens = replica in self.model.goes_on_by_tokens
        if self.log is not None and by_tokens:
            assignment.asks = _TELL_TOKENS
        if continuation is not None:
            continuation.give(assignment, by_tokens=by_tokens)
        return assignment

    def may_retry(self, now: float) -> bool:
        handler = self._handler
        return (
            len(self._tried) < handler.max_attempts
            and self.model.can_retry(self._excluded())
            and handler.retry_budget.affords_retry(now)
        )

    def resume(self, broken: ProtocolError) -> None:
        said, count = self.log, self._handler.metrics.resumes
        try:
            if said is None:
                raise CannotResume("it is not a stream of one choice, or resuming is off")
            if self._resumes == self._handler.resume.max_resumes:
                raise CannotResume(f"it was resumed {self._resumes} times before")
            said.read()
            chat = self._request.path in CHAT_PATHS
            continuation = _Continuation(said, self._request.body, chat=chat)
            excluded = {self._last or ""} | self._cannot_go_on(continuation)
            if not self.model.can_retry(excluded):
                reason = continuation.not_by_text
                raise CannotResume(f"no other replica is there that could go on with it{reason}")
        except CannotResume as error:
            count[self.model.name, "impossible"].inc()
            raise type(broken)(f"{broken.message}; it cannot be resumed: {error}") from error
        count[self.model.name, "resumed"].inc()
        if self._whole_prompt is not None:
            self._prompt = self._whole_prompt + said.text.encode()
        self._resumes += 1
        self._continuation = continuation
        self._tried = {self._last or ""}
        self._goes_on = True

    def finished(self, exchange: UnderWay, now: float) -> None:
        self._handler.in_flight -= 1
        self._handler.finished(self, exchange, now)
        if self._ticket is not None:
            self._handler.gate.leave(self._ticket, now)

    def _target_left_s(self, now: float) -> float | None:
        """Of its target, what waiting and tries have left; may be below 0."""
        if self.ttft_target_s is None or self._continuation is not None:
            return None
        return self.ttft_target_s - (now - self._request.started_at)

    def _excluded(self) -> set[ReplicaId]:
        """Those tried, and those that could not go on with what was said."""
        if self._continuation is None:
            return self._tried
        return self._tried | self._cannot_go_on(self._continuation)

    def _cannot_go_on(self, continuation: _Continuation) -> set[ReplicaId]:
        able: set[ReplicaId] = set()
        if continuation.by_tokens is not None:
            able |= self.model.goes_on_by_tokens
        if continuation.by_text is not None:
            able |= self.model.goes_on_by_text
        return {replica.id for replica in self.model.fleet.replicas} - able
