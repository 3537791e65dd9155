"""One client's connection: requests in, answers out in the order asked.

One request is under way at a time; pipelined ones wait, a few at most, then the socket is no longer
read.

A client that closes its sending side is taken to have left, as nginx does: that is how a closed
browser tab or a killed script looks, and what it asked for is expensive. Only in a tunnel it is as
TCP has it: one half is closed.

Sources: RFC 9112 §9.3.2 (pipelining), §9.6 (closing); RFC 9110 §10.1.1 (Expect).
"""

import asyncio
import logging
import socket
import struct
from random import Random
from typing import NamedTuple, Protocol, cast

from protocol.errors import (
    BodyTimedOut,
    HeadTimedOut,
    InternalError,
    MethodNotAllowed,
    ProtocolError,
    TotalTimedOut,
)
from router.config import LimitsConfig, TimeoutsConfig
from router.dataplane.exchange import Exchange
from router.dataplane.forwarding import Forwarding
from router.dataplane.http1 import CONTINUE, Header, OwnAnswer, Request, own_response
from router.dataplane.request_reader import BUG, RequestReader
from router.dataplane.route import Route
from router.dataplane.tunnel import Tunnel

log = logging.getLogger(__name__)

_MAX_PIPELINED = 8
# A pipelined body larger than this waits alone: eight of the largest would be much memory.
_LARGE_PIPELINED_BYTES = 64 * 1024
# A client should wait for the 101 before it goes on; beyond this it has to.
_MAX_BEHIND_BYTES = 16 * 1024
_LINGER_S = 2.0
_RESET = struct.pack("ii", 1, 0)  # struct linger: on, for no time
_trace_ids = Random()  # from the system's entropy


class Handler(Protocol):
    """The router behind the connections."""

    limits: LimitsConfig
    timeouts: TimeoutsConfig
    draining: bool

    def open(self, request: Request) -> "Route | OwnAnswer":
        """Where the request may go, or the answer. Raises ProtocolError."""

    def new_request_id(self) -> bytes: ...
    def connection_opened(self, connection: "ClientConnection") -> None: ...
    def connection_closed(self, connection: "ClientConnection") -> None: ...
    def refused(self, request: Request, error: ProtocolError) -> None:
        """A request was answered with an error before it had a route; for log and metrics."""


class _Refused(NamedTuple):
    """What could not be taken as a request, and why."""

    request: Request
    error: ProtocolError


class ClientConnection(asyncio.Protocol):
    def __init__(self, handler: Handler, loop: asyncio.AbstractEventLoop) -> None:
        self._handler = handler
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | Tunnel | None = None
        self._tunnel: Tunnel | None = None  # open: what comes is not HTTP any more
        self._ended = False  # a tunnel's client has closed its half
        self._waiting: list[Request | _Refused] = []  # a deque takes half a kilobyte
        self._reading_paused = False
        self._writing_paused = False
        self._closing = False
        self._free_since = 0.0  # nothing was being answered, and the client had read all there was
        self._unsent_bytes = 0
        self._sent_at = 0.0

    # Client, for the exchange

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def answer_error(self, error: ProtocolError, request: Request) -> None:
        headers: list[Header] = [(b"x-request-id", request.request_id)]
        if error.retry_after_s is not None or error.status in (429, 503):
            retry_after_s = max(1, round(error.retry_after_s or 0))
            headers.append((b"retry-after", str(retry_after_s).encode()))
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", error.allow.encode()))
        keep_alive = self.stays_open(request) and not isinstance(error, InternalError)
        self.write(
            own_response(
                error.status,
                error.body(),
                headers=headers,
                keep_alive=keep_alive,
                head_only=request.method == b"HEAD",
            )
        )
        self.exchange_done(keep_alive=keep_alive)

    def exchange_done(self, *, keep_alive: bool) -> None:
        self._exchange = self._tunnel = None
        self._free_since = self._loop.time()
        if not keep_alive or (self._handler.draining and not self.busy):
            self._close()
            return
        self.body_awaited()
        self._loop.call_soon(self._next)

    def stays_open(self, request: Request) -> bool:
        return request.keep_alive and not self._handler.draining

    def abort(self) -> None:
        """Ends it at once; by a reset if that is in the middle of an answer, since an end like any
        other would make an answer without a length look whole."""
        if self._transport is None:
            return
        sock = self._transport.get_extra_info("socket")
        if self._exchange is not None and sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    # Client, for the tunnel

    def open_tunnel(self) -> bytes:
        assert isinstance(self._exchange, Tunnel)
        self._tunnel = self._exchange
        early = bytes(self._reader.behind)
        self._reader.behind.clear()
        self.resume_reading()
        return early

    def end_writing(self) -> bool:
        if self._transport is None or not self._transport.can_write_eof():
            return False
        self._transport.write_eof()
        return True

    def pause_reading(self) -> None:
        # Once its half is closed there is nothing to read, and resuming would find that end again.
        if self._transport is not None and not self._reading_paused and not self._ended:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    # For the handler

    @property
    def busy(self) -> bool:
        return self._exchange is not None or bool(self._waiting) or self._reader.receiving

    def close_if_idle(self) -> None:
        """Draining: nothing is under way here, so nothing is lost."""
        if not self.busy:
            self._close()

    def check_timeouts(self, now: float) -> None:
        """Called about once a second."""
        if self._exchange is not None:
            self._exchange.check_timeouts(now)
        elif self._still_sending(now):
            self._free_since = now
        elif self._closing:
            if now - self._free_since > _LINGER_S:
                self.abort()
        elif self._reader.receiving and not self._reader.ended:
            self._check_receiving(now)
        elif now - max(self._reader.since, self._free_since) > self._handler.timeouts.keep_alive_s:
            self.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        peer = transport.get_extra_info("peername")
        proto = b"https" if transport.get_extra_info("sslcontext") else b"http"
        self._reader = RequestReader(
            self,
            self._handler.limits,
            Forwarding(peer[0] if peer else "", proto, _trace_ids),
            self._loop.time,
            self._handler.new_request_id,
        )
        self._handler.connection_opened(self)

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel.client_bytes(data)
        elif not self._closing:
            self._reader.feed(data)
            if len(self._reader.behind) > _MAX_BEHIND_BYTES:
                self.pause_reading()

    def eof_received(self) -> bool:
        if self._tunnel is None or self._transport is None:
            return False
        self._ended = True
        return self._tunnel.client_ended(can_go_on=self._transport.can_write_eof())

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._closing = True
        self._waiting.clear()
        self._handler.connection_closed(self)
        exchange, self._exchange, self._tunnel = self._exchange, None, None
        if exchange is not None:
            exchange.client_gone()

    def pause_writing(self) -> None:
        self._writing_paused = True
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._exchange is not None:
            self._exchange.resume()
        else:
            self._next()

    # RequestSink

    def request_received(self, request: Request) -> None:
        if self._closing:
            return
        self._waiting.append(request)
        if self._exchange is None and len(self._waiting) == 1:
            self._next()
        if self._waiting and (
            len(self._waiting) >= _MAX_PIPELINED or len(request.body) > _LARGE_PIPELINED_BYTES
        ):
            self.pause_reading()

    def request_refused(self, request: Request, error: ProtocolError) -> None:
        """Answered when its turn comes."""
        self._waiting.append(_Refused(request, error))
        if self._exchange is None and len(self._waiting) == 1:
            self._loop.call_soon(self._next)

    def body_awaited(self) -> None:
        """100 Continue, once it is this request's turn: earlier answers must go out first."""
        if self._reader.continue_owed and self._exchange is None and not self._waiting:
            self._reader.continue_owed = False
            self.write(CONTINUE)

    # inside

    def _next(self) -> None:
        """Starts on the next request that waits, in the order they came.

        Not while the client has not read the answers before it: they would pile up here.
        """
        if self._exchange is not None or self._closing or self._writing_paused:
            return
        if not self._waiting:
            return
        request = self._waiting.pop(0)
        if not self._waiting:
            self.resume_reading()
        if isinstance(request, _Refused):
            self._handler.refused(*request)
            self.answer_error(request.error, request.request)
            return
        try:
            self._start(request)
        except Exception:  # the edge: a bug of ours must not look like the client's fault
            log.exception("request %s failed", request.request_id.decode(errors="replace"))
            if self._exchange is not None:
                self._exchange.crashed()
            else:
                self.answer_error(InternalError(BUG), request)

    def _start(self, request: Request) -> None:
        try:
            opened = self._handler.open(request)
        except ProtocolError as error:
            self._handler.refused(request, error)
            self.answer_error(error, request)
            return
        if isinstance(opened, OwnAnswer):
            self._answer_own(opened, request)
            return
        kind = Tunnel if request.upgrades else Exchange
        self._exchange = kind(self, request, opened, self._handler.timeouts, self._loop)
        self._exchange.start()

    def _answer_own(self, answer: OwnAnswer, request: Request) -> None:
        keep_alive = self.stays_open(request)
        self.write(
            own_response(
                answer.status,
                answer.body,
                headers=((b"x-request-id", request.request_id), *answer.headers),
                keep_alive=keep_alive,
                head_only=request.method == b"HEAD",
                content_type=answer.content_type,
            )
        )
        self.exchange_done(keep_alive=keep_alive)

    def _check_receiving(self, now: float) -> None:
        timeouts, reader = self._handler.timeouts, self._reader
        if timeouts.total_s is not None and now - reader.started_at > timeouts.total_s:
            limit_s = timeouts.total_s
            reader.refuse(TotalTimedOut(f"the request was not over within {limit_s} s"))
            return
        waited_s = now - max(reader.since, self._free_since)
        if not reader.head_done and waited_s > timeouts.request_head_s:
            limit_s = timeouts.request_head_s
            reader.refuse(HeadTimedOut(f"the request's head did not arrive within {limit_s} s"))
        elif reader.head_done and waited_s > timeouts.request_body_s:
            limit_s = timeouts.request_body_s
            reader.refuse(BodyTimedOut(f"the request's body did not arrive within {limit_s} s"))

    def _still_sending(self, now: float) -> bool:
        """Whether an answer is over for us and not for the client, who is still reading it.

        It may take its time, as long as it takes something.
        """
        unsent_bytes = self._transport.get_write_buffer_size() if self._transport is not None else 0
        if unsent_bytes != self._unsent_bytes:
            self._unsent_bytes, self._sent_at = unsent_bytes, now
        elif unsent_bytes and now - self._sent_at > self._handler.timeouts.between_bytes_s:
            self.abort()
        return unsent_bytes > 0

    def _close(self) -> None:
        """Closes once what was written has gone out.

        While the client is still sending, closing at once would make its kernel drop the answer
        unread (RFC 9112 §9.6): we say goodbye, read on for a moment and throw it away.
        """
        self._closing = True
        if self._transport is None:
            return
        reader = self._reader
        more_may_come = reader.refused or reader.receiving or reader.surplus or self._reading_paused
        self._waiting.clear()
        if (
            (more_may_come or reader.upgrading)
            and not self._ended
            and self._transport.can_write_eof()
        ):
            self._transport.write_eof()
            self.resume_reading()
        else:
            self._transport.close()
