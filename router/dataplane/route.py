"""What an exchange asks of the router behind it: replicas to try, and who hears of the end."""

from typing import Protocol

from protocol.errors import ProtocolError
from router.core.answer_scan import AnswerUsage
from router.dataplane.http1 import Header, Request
from router.dataplane.pool import ReplicaPool


class Outcome:
    """How one attempt on one replica ended."""

    ANSWERED = "answered"  # the answer was relayed to its end, whatever its status
    REFUSED = "refused"  # 429 or 503 before any of it was relayed: busy, not broken
    CONNECT_FAILED = "connect_failed"
    BROKEN = "broken"  # failed before the first byte
    BROKEN_STREAM = "broken_stream"  # failed after it
    CLIENT_GONE = "client_gone"  # nobody's fault
    CUT_OFF = "cut_off"  # the request's total time was over: nobody's fault either
    OUTRUN = "outrun"  # another replica, asked as well, was faster
    CRASHED = "crashed"  # a bug of ours


class UnderWay(Protocol):
    """A request under way, as its route sees it: an exchange, or a tunnel."""

    request: Request
    status: int  # what the client got
    attempts: int
    resumes: int
    usage: AnswerUsage
    first_byte_at: float | None
    replica_id: str | None
    matched_tokens: int
    failure: str | None

    def admitted(self) -> None: ...
    def turned_away(self, error: ProtocolError) -> None: ...


class Assignment(Protocol):
    """A replica chosen for a request, with its lease.

    body: What to send it; None: the request's own.
    asks: Header lines for it, beside those of the request.
    rewriter: What makes its events fit behind those of another replica.
    """

    replica_id: str
    matched_tokens: int
    pool: ReplicaPool
    body: bytes | None
    asks: bytes
    rewriter: "Rewriter | None"

    @property
    def lost(self) -> bool:
        """Whether the replica is taken to be gone, whatever it may still send."""

    def first_byte(self, now: float, status: int) -> None:
        """The first byte of the answer's body has arrived; its status is known before."""

    def release(self, outcome: str, status: int, usage: AnswerUsage, now: float) -> None:
        """The attempt is over. Called exactly once."""


def answer_fields(request: Request, assignment: Assignment) -> list[Header]:
    """The fields that every relayed answer carries, beside the replica's."""
    return [
        (b"x-request-id", request.request_id),
        (b"x-warmroute-replica", assignment.replica_id.encode()),
        (b"x-warmroute-matched-tokens", str(assignment.matched_tokens).encode()),
    ]


class EventLog(Protocol):
    """Keeps the events of a stream as far as they are needed."""

    def add(self, events: bytes) -> None: ...
    def usage(self) -> AnswerUsage: ...

    def end(self) -> bytes | None:
        """What is left to say when all has been said; None: not all has."""


class Rewriter(Protocol):
    """Makes a replica's events fit behind those of another."""

    def rewrite(self, events: bytes) -> bytes: ...


class Route(Protocol):
    """What the router knows of one request, and where it may go."""

    @property
    def hedge_after_s(self) -> float | None:
        """After so long without an answer another replica is asked as well. None: never."""

    @property
    def log(self) -> EventLog | None:
        """Of the events of its answer; None: nobody needs them."""

    def enter(self, exchange: UnderWay, now: float) -> bool:
        """Whether the request may be assigned at once. If not, the exchange will be told that it
        is admitted or turned away. Raises ProtocolError when it may not even wait."""

    def assign(self, now: float) -> Assignment:
        """A replica not yet tried, its lease taken. Raises ProtocolError when there is none."""

    def may_retry(self, now: float) -> bool:
        """Whether another replica may be tried: attempts and retry budget permitting."""

    def resume(self, broken: ProtocolError) -> None:
        """The stream broke after what `log` has: what is assigned next goes on from there.

        Raises:
            ProtocolError: it cannot; what to tell the client.
        """

    def finished(self, exchange: UnderWay, now: float) -> None:
        """The exchange is over; for the log line and the metrics. Called exactly once."""


class Client(Protocol):
    """The connection the request came from."""

    def write(self, data: bytes) -> None: ...
    def stays_open(self, request: Request) -> bool: ...
    def answer_error(self, error: ProtocolError, request: Request) -> None: ...
    def exchange_done(self, *, keep_alive: bool) -> None: ...
    def abort(self) -> None: ...
