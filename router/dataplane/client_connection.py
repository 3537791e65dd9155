"""One client's connection: requests in, checked and bounded, answers out in the order asked.

llhttp parses; what it lets through and we do not want (two framings, no Host, too large) is
refused here. One request is under way at a time; pipelined ones wait, a few at most, then the
socket is no longer read.

A client that closes its sending side is taken to have left, as nginx does: that is how a closed
browser tab or a killed script looks, and what it asked for is expensive.

Sources: RFC 9112 §3.2 (Host), §6.3 (framing), §9.3.2 (pipelining); RFC 9110 §10.1.1 (Expect).
"""

import asyncio
import logging
from collections import deque
from typing import Protocol, cast

import httptools

from protocol.errors import (
    BadRequest,
    HeadersTooLarge,
    InternalError,
    MethodNotAllowed,
    PayloadTooLarge,
    ProtocolError,
    RequestTimedOut,
)
from router.config import LimitsConfig, TimeoutsConfig
from router.dataplane.exchange import Exchange, Route
from router.dataplane.http1 import (
    CONTINUE,
    Header,
    OwnAnswer,
    Request,
    check_request_head,
    expects_continue,
    own_response,
)

log = logging.getLogger(__name__)

_BUG = "the router failed; its log says why"
_MAX_PIPELINED = 8
_LINGER_S = 2.0


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


class ClientConnection(asyncio.Protocol):
    def __init__(self, handler: Handler, loop: asyncio.AbstractEventLoop) -> None:
        self._handler = handler
        self._loop = loop
        self._limits = handler.limits
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._exchange: Exchange | None = None
        self._waiting: deque[Request | ProtocolError] = deque()
        self._reading_paused = False
        self._writing_paused = False
        self._closing = False
        # The request being received: begun with its first byte, whole with its last.
        self._receiving = False
        self._head_done = False
        self._rejection: ProtocolError | None = None
        self._head_bytes = 0
        self._continue_owed = False
        self._deadline = 0.0

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
        keep_alive = self._stays_open(request) and not isinstance(error, InternalError)
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
        self._exchange = None
        if not keep_alive or self._handler.draining:
            self._close()
            return
        self._set_deadline()
        self._send_continue_if_owed()
        self._loop.call_soon(self._next)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # For the handler

    @property
    def busy(self) -> bool:
        return self._exchange is not None or bool(self._waiting) or self._receiving

    def close_if_idle(self) -> None:
        """Draining: nothing is under way here, so nothing is lost."""
        if not self.busy:
            self._close()

    def check_timeouts(self, now: float) -> None:
        """Called about once a second."""
        if self._exchange is not None:
            self._exchange.check_timeouts(now)
        elif now > self._deadline:
            if self._receiving and self._rejection is None and not self._closing:
                what = "body" if self._head_done else "head"
                self._reject(RequestTimedOut(f"the request's {what} did not arrive in time"))
            else:
                self.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        self._handler.connection_opened(self)
        self._set_deadline()

    def data_received(self, data: bytes) -> None:
        if self._closing or self._rejection is not None:
            return
        if not self._head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # We switch to no other protocol: the request is served as HTTP/1.1, then we close.
            self._reading_paused = True
            if self._transport is not None:
                self._transport.pause_reading()
        except httptools.HttpParserCallbackError:
            log.exception("a request could not be taken")
            self._reject(InternalError(_BUG))
            return
        except httptools.HttpParserError as error:
            self._reject(BadRequest(f"not a valid HTTP/1.1 request: {error}"))
            return
        if self._head_bytes > self._limits.max_head_bytes and not self._head_done:
            self._reject(_head_too_large(self._limits))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._closing = True
        self._waiting.clear()
        self._handler.connection_closed(self)
        exchange, self._exchange = self._exchange, None
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

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._receiving = True
        self._head_done = False
        self._target = b""
        self._headers: list[Header] = []
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._started_at = self._loop.time()
        self._set_deadline()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._head_done = True
        head_bytes = len(self._target) + sum(len(n) + len(v) + 4 for n, v in self._headers)
        self._head_bytes = 0
        self._set_deadline()
        if head_bytes > self._limits.max_head_bytes:
            self._reject(_head_too_large(self._limits))
            return
        try:
            length = check_request_head(
                self._headers, self._parser.get_http_version(), self._target
            )
        except BadRequest as error:
            self._reject(error)
            return
        if length is not None and length > self._limits.max_body_bytes:
            self._reject(_body_too_large(self._limits))
        else:
            self._continue_owed = expects_continue(self._headers)
            self._send_continue_if_owed()

    def on_body(self, body: bytes) -> None:
        if self._rejection is not None:
            return
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.max_body_bytes:
            self._reject(_body_too_large(self._limits))
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._receiving = False
        self._head_done = False
        self._continue_owed = False
        self._set_deadline()
        if self._rejection is not None or self._closing:
            return
        request = Request(
            method=self._parser.get_method(),
            target=self._target,
            version=self._parser.get_http_version(),
            headers=self._headers,
            body=self._body[0] if len(self._body) == 1 else b"".join(self._body),
            keep_alive=self._parser.should_keep_alive() and not self._parser.should_upgrade(),
            request_id=self._request_id(),
            started_at=self._started_at,
        )
        self._body = []
        self._waiting.append(request)
        if len(self._waiting) >= _MAX_PIPELINED and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()
        if self._exchange is None and len(self._waiting) == 1:
            self._next()

    # inside

    def _next(self) -> None:
        """Starts on the next request that waits, in the order they came.

        Not while the client has not read the answers before it: they would pile up here.
        """
        if self._exchange is not None or self._closing or self._writing_paused:
            return
        if not self._waiting:
            return
        request = self._waiting.popleft()
        if isinstance(request, ProtocolError):
            self._answer_rejection(request)
            return
        if self._reading_paused and not self._waiting and request.keep_alive:
            self._reading_paused = False
            if self._transport is not None:
                self._transport.resume_reading()
        try:
            self._start(request)
        except Exception:  # the edge: a bug of ours must not look like the client's fault
            log.exception("request %s failed", request.request_id.decode(errors="replace"))
            if self._exchange is not None:
                self._exchange.crashed()
            else:
                self.answer_error(InternalError(_BUG), request)

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
        self._exchange = Exchange(self, request, opened, self._handler.timeouts, self._loop)
        self._exchange.start()

    def _answer_own(self, answer: OwnAnswer, request: Request) -> None:
        keep_alive = self._stays_open(request)
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

    def _stays_open(self, request: Request) -> bool:
        return request.keep_alive and not self._handler.draining

    def _reject(self, error: ProtocolError) -> None:
        """This request cannot be taken, nor anything after it; answered when its turn comes."""
        self._rejection = error
        self._waiting.append(error)
        if self._exchange is None and len(self._waiting) == 1:
            self._loop.call_soon(self._next)

    def _answer_rejection(self, error: ProtocolError) -> None:
        request = Request(
            method=b"",
            target=self._target if self._receiving else b"",
            version="1.1",
            headers=(),
            body=b"",
            keep_alive=False,
            request_id=self._handler.new_request_id(),
            started_at=self._loop.time(),
        )
        self._handler.refused(request, error)
        self.answer_error(error, request)

    def _set_deadline(self) -> None:
        timeouts = self._handler.timeouts
        if not self._receiving:
            limit_s = timeouts.keep_alive_s
        else:
            limit_s = timeouts.request_body_s if self._head_done else timeouts.request_head_s
        self._deadline = self._loop.time() + limit_s

    def _send_continue_if_owed(self) -> None:
        """100 Continue, once it is this request's turn: earlier answers must go out first."""
        if self._continue_owed and self._exchange is None and not self._waiting:
            self._continue_owed = False
            self.write(CONTINUE)

    def _request_id(self) -> bytes:
        for name, value in self._headers:
            if name == b"x-request-id" and 0 < len(value) <= 128:
                return value
        return self._handler.new_request_id()

    def _close(self) -> None:
        """Closes once what was written has gone out.

        While the client is still sending, closing at once would make its kernel drop the answer
        unread (RFC 9112 §9.6): we say goodbye, read on for a moment and throw it away.
        """
        self._closing = True
        if self._transport is None:
            return
        if self._rejection is not None and self._transport.can_write_eof():
            self._transport.write_eof()
            self._deadline = self._loop.time() + _LINGER_S
        else:
            self._transport.close()


def _head_too_large(limits: LimitsConfig) -> HeadersTooLarge:
    return HeadersTooLarge(f"request line and headers exceed {limits.max_head_bytes} bytes")


def _body_too_large(limits: LimitsConfig) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body exceeds {limits.max_body_bytes} bytes")
