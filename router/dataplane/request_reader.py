"""Bytes in, whole requests out: within limits, and of one meaning only.

llhttp parses; what it lets through and we do not want (two framings, no Host, too large) is refused
here. Nothing is read after a refusal, nor after the last request a connection may carry.

Sources: RFC 9112 §6.3 (framing), §9.6 (what comes after the last request); RFC 9110 §6.5.1
(trailers are not headers), §7.8 (Upgrade may be ignored); RFC 6455 §4 (WebSockets, which are not).
"""

import logging
from collections.abc import Callable
from typing import Protocol

import httptools

from protocol.errors import (
    BadRequest,
    HeadersTooLarge,
    InternalError,
    PayloadTooLarge,
    ProtocolError,
)
from router.config import LimitsConfig
from router.dataplane.forwarding import Forwarding
from router.dataplane.http1 import Header, Request, lines_for_replica
from router.dataplane.known_head import KnownHead
from router.dataplane.request_fields import (
    asks_for_websocket,
    check_method,
    origin_form,
    read_request_fields,
)

log = logging.getLogger(__name__)

BUG = "the router failed; its log says why"


class RequestSink(Protocol):
    """Who takes what a client sent."""

    def request_received(self, request: Request) -> None: ...

    def request_refused(self, request: Request, error: ProtocolError) -> None:
        """The last there is of this connection; `request` says what is known of it."""

    def body_awaited(self) -> None:
        """The client waits for 100 Continue: see `RequestReader.continue_owed`."""


class RequestReader:
    """The requests of one connection. States: between requests, in a head, in a body, ended."""

    __slots__ = (
        "_body", "_clock", "_fields", "_forwarding", "_headers", "_known", "_limits", "_lines",
        "_method", "_new_request_id", "_parser", "_sink", "_taken", "_unfinished_bytes",
        "_version", "behind", "continue_owed", "ended", "head_done", "receiving", "refused",
        "since", "started_at", "surplus", "target", "upgrading",
    )  # fmt: skip

    def __init__(
        self,
        sink: RequestSink,
        limits: LimitsConfig,
        forwarding: Forwarding,
        clock: Callable[[], float],
        new_request_id: Callable[[], bytes],
    ) -> None:
        self._sink = sink
        self._limits = limits
        self._forwarding = forwarding
        self._clock = clock
        self._new_request_id = new_request_id
        self._parser = httptools.HttpRequestParser(self)
        self.receiving = False
        self.head_done = False
        self.continue_owed = False
        self.refused = False
        self.ended = False
        self.surplus = False  # more has come after the end
        self.upgrading = False  # the last request asks for a WebSocket...
        self.behind = bytearray()  # ...and this came behind it, which is not HTTP
        self.target = b""
        self.started_at = self.since = clock()  # `since`: the state was entered
        self._taken = 0
        # Bytes fed since a head or a piece of body was complete: a head or trailers, or a chunk's
        # extensions. All of these are bounded as heads are.
        self._unfinished_bytes = 0
        self._version = ""
        self._headers: list[Header] = []
        self._lines: bytes | None = None  # of these, to be forwarded
        self._body: bytes | bytearray = b""
        self._known: KnownHead | None = None  # what the attributes above say is of this head

    def feed(self, data: bytes) -> None:
        if self._known is not None and not self.receiving:
            data = self._take_known(self._known, data)
            if not data:
                return
        if self.ended:
            self.surplus = True
            if self.upgrading and not self.refused:
                self.behind += data
            return
        begins, taken = not self.receiving, self._taken
        self._known = None
        self._parse(data)
        if begins and self._taken == taken + 1 and not self.receiving:
            length = self._fields.content_length
            if length is not None and not self._fields.expects_continue:
                self._known = KnownHead.of(data, length)

    def _parse(self, data: bytes) -> None:
        self._unfinished_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._take_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError:
            log.exception("a request could not be taken")
            self.refuse(InternalError(BUG))
        except httptools.HttpParserError as error:
            self.refuse(BadRequest(f"not a valid HTTP/1.1 request: {error}"))
        if self._unfinished_bytes > self._limits.max_head_bytes:
            self.refuse(self._head_too_large())

    def _take_known(self, known: KnownHead, data: bytes) -> bytes:
        """Takes the requests at the beginning of `data` whose heads are those of the last one;
        returns what comes behind them. The parser, between messages, does not miss them."""
        while data and not self.ended:
            place = known.body_in(data)
            if place is None or place[1] - place[0] > self._limits.max_body_bytes:
                break
            begin, end = place
            self.started_at = self.since = self._clock()
            self._unfinished_bytes = 0
            body, data = data[begin:end], data[end:]
            try:
                self._hand_over(body, may_keep_alive=True)
            except Exception:  # as in the parser's callbacks
                log.exception("a request could not be taken")
                self.refuse(InternalError(BUG))
        return data

    def refuse(self, error: ProtocolError) -> None:
        """The request being received cannot be taken, nor anything after it."""
        if self.ended:
            self.surplus = True
            return
        self.refused = self.ended = True
        request = Request(
            method=b"",
            target=self.target if self.receiving else b"",
            version="1.1",
            headers=(),
            body=b"",
            keep_alive=False,
            request_id=self._new_request_id(),
            started_at=self.started_at if self.receiving else self._clock(),
        )
        self._sink.request_refused(request, error)

    # httptools callbacks

    def on_message_begin(self) -> None:
        if self.ended:
            return
        if not self.receiving:  # else it is an upgrade's head again
            self.receiving = True
            self.started_at = self.since = self._clock()
        self.target = b""
        self._headers = []
        self._lines = None
        self._body = b""

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head_done:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._unfinished_bytes = 0
        if self.ended or self._parser.should_upgrade():
            return  # an upgrade's head comes again, without the upgrade
        self.head_done = True
        self.since = self._clock()
        head_bytes = len(self.target) + sum([len(n) + len(v) + 4 for n, v in self._headers])
        if head_bytes > self._limits.max_head_bytes:
            self.refuse(self._head_too_large())
            return
        self._version = self._parser.get_http_version()
        try:
            self._method = self._parser.get_method()
            check_method(self._method)
            self._fields = read_request_fields(self._headers, self._version)
            self.target = origin_form(self._method, self.target, self._fields)
        except ProtocolError as error:
            self.refuse(error)
            return
        length = self._fields.content_length
        if length is not None and length > self._limits.max_body_bytes:
            self.refuse(self._body_too_large())
        elif self._fields.expects_continue:
            self.continue_owed = True
            self._sink.body_awaited()

    def on_body(self, body: bytes) -> None:
        self._unfinished_bytes = 0
        if self.ended:
            return
        if not self._body:
            self._body = body
        else:
            # Not a list of pieces: in chunks of a byte each it would take many times its size.
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body
        if len(self._body) > self._limits.max_body_bytes:
            self.refuse(self._body_too_large())

    def on_message_complete(self) -> None:
        self._unfinished_bytes = 0
        if self.ended or self._parser.should_upgrade():
            return
        self.receiving = self.head_done = self.continue_owed = False
        self.since = self._clock()
        body, self._body = self._body, b""
        self._hand_over(
            body if isinstance(body, bytes) else bytes(body),
            may_keep_alive=self._parser.should_keep_alive() and not self.upgrading,
        )

    # inside

    def _hand_over(self, body: bytes, *, may_keep_alive: bool) -> None:
        """A request is whole, its head the last one read."""
        self._taken += 1
        keep_alive = may_keep_alive and self._taken < self._limits.max_requests_per_connection
        self.ended = not keep_alive
        fields = self._fields
        forwarded = self._forwarding.fields(fields)
        if self._lines is None:
            self._lines = lines_for_replica(self._headers, fields.not_forwarded)
        self._sink.request_received(
            Request(
                method=self._method,
                target=self.target,
                version=self._version,
                headers=self._headers,
                lines=self._lines,
                body=body,
                keep_alive=keep_alive,
                request_id=fields.request_id or self._new_request_id(),
                started_at=self.started_at,
                forwarded=forwarded,
                upgrades=self.upgrading,
            )
        )

    def _take_upgrade(self, rest: bytes) -> None:
        """A WebSocket is asked for by the last request of a connection; we switch to no other
        protocol, and a request for one is an ordinary one, with or without body.

        llhttp stops after the head of an upgrade (and of CONNECT), so it gets that head again
        without the upgrade, and then the rest, if that is HTTP.
        """
        method = self._parser.get_method()
        if method == b"CONNECT":
            self.refuse(BadRequest("the router makes no tunnels for CONNECT"))
            return
        version = self._parser.get_http_version()
        self.upgrading = asks_for_websocket(method, version, self._headers)
        lines = [method + b" " + self.target + b" HTTP/" + version.encode()]
        lines += [name + b": " + value for name, value in self._headers if name != b"upgrade"]
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        self._parser = httptools.HttpRequestParser(self)
        if not self.upgrading:
            self.feed(head + rest)
            return
        self.feed(head)
        if rest:
            self.feed(rest)

    def _head_too_large(self) -> HeadersTooLarge:
        limit = self._limits.max_head_bytes
        return HeadersTooLarge(f"request line and headers exceed {limit} bytes")

    def _body_too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body exceeds {self._limits.max_body_bytes} bytes")
