"""One connection to a replica: sends a request, relays the raw answer, knows where it ends.

The answer's head is parsed and handed over as a `ResponseHead`; its body is passed on exactly as
it came, framing included, while llhttp follows along to find its end; or, where the
sink would rather have that, without the framing.
"""

import asyncio
from typing import Protocol, cast

import httptools

from router.dataplane.http1 import NO_FIELDS, Header, ResponseHead, connection_tokens
from router.dataplane.known_head import KnownHead
from router.dataplane.tls import TlsFailed

_HEAD_START = b"HTTP/1."
_HEAD_END = b"\r\n\r\n"
_SWITCHING = 101  # an end, not an interim answer: other bytes than HTTP follow
_LARGE_BODY_BYTES = 65536  # from here on, joining head and body costs more than a second write
_BROKE_HTTP = "the replica broke HTTP/1.1"
_SURPLUS = f"{_BROKE_HTTP}: it sent more than one answer"


class AnswerSink(Protocol):
    """Who takes an answer, in this order: head, body bytes (raw), then ended or broken, once."""

    def answer_head(self, head: ResponseHead) -> None: ...
    def answer_bytes(self, data: bytes, framed: bytes = b"") -> None:
        """`framed`: the same with its framing, if that is gone and it came as exactly one chunk."""

    def answer_ended(self) -> None: ...
    def answer_broken(self, reason: str) -> None: ...


class ConnectionOwner(Protocol):
    """The pool: told when a connection can serve again, and when it is gone."""

    def connection_idle(self, connection: "ReplicaConnection") -> None: ...
    def connection_gone(self, connection: "ReplicaConnection") -> None: ...


class ReplicaConnection(asyncio.Protocol):
    """States: idle (no sink) or busy (one request out). Closed for good on any surprise."""

    _parser: httptools.HttpResponseParser
    _answer_head: ResponseHead

    def __init__(self, owner: ConnectionOwner, max_head_bytes: int) -> None:
        self._owner = owner
        self._max_head_bytes = max_head_bytes
        self._transport: asyncio.Transport | None = None
        self._sink: AnswerSink | None = None
        self._served = 0
        self._known: tuple[KnownHead, ResponseHead] | None = None  # the last answer's, if whole
        self._reset()

    def _reset(self) -> None:
        self._head = b""
        self._head_bytes = 0
        self._head_parsed = False
        self._head_done = False
        self._head_only = False
        self._status = 0
        self._headers: list[Header] = []
        self._answered = False
        self._complete = False
        self._surplus = False
        self._payload: list[bytes] | None = None  # wanted instead of the raw body
        self._between_chunks = False  # of such a body
        self._until_close = False
        self._keep_alive = False
        self._reading_paused = False

    @property
    def reused(self) -> bool:
        """Whether it has answered a request before: then the replica may have closed it unseen."""
        return self._served > 0

    @property
    def got_bytes(self) -> bool:
        """Whether anything of the current answer has arrived."""
        return self._answered

    def send(self, head: bytes, body: bytes, sink: AnswerSink, *, head_only: bool) -> None:
        """Sends a request, its answer to `sink`. `head_only`: a HEAD, answered without body."""
        assert self._sink is None, "a connection serves one request at a time"
        assert self._transport is not None
        self._reset()
        self._head_only = head_only
        self._sink = sink
        if len(body) < _LARGE_BODY_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    def unframe(self) -> None:
        """The sink, told the head, wants the body without its framing."""
        self._payload = []

    def abandon(self) -> None:
        """Drops the answer under way: the replica sees the connection close and frees its work."""
        self._sink = None
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        if self._transport is not None and not self._reading_paused and self._sink is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only

    def data_received(self, data: bytes) -> None:
        received = data
        if self._sink is None:
            # Nobody asked: the replica speaks out of turn (or after we gave up on it).
            self._close()
            return
        if self._between_chunks and (payload := _one_chunk(data)):
            self._sink.answer_bytes(payload, data)  # the parser, between chunks, does not miss it
            return
        begins, self._answered = not self._answered, True
        if begins:
            if self._take_known(data):
                return
            self._parser = httptools.HttpResponseParser(self)
        try:
            if not self._head_done:
                rest = self._take_head(data)
                if rest is None:
                    return
                data = rest
            if data and self._sink is not None:
                if not self._complete:
                    self._parser.feed_data(data)
                else:
                    self._surplus = True
                if self._surplus:
                    self._break(_SURPLUS)
                    return
                if self._payload is not None:
                    data = b"".join(self._payload)
                    self._payload.clear()
                if data:
                    self._sink.answer_bytes(data)
        except httptools.HttpParserUpgrade:
            self._break(f"{_BROKE_HTTP}: it switched protocols unasked")
            return
        except httptools.HttpParserError as error:
            self._break(f"{_BROKE_HTTP}: {error}")
            return
        if self._complete and self._sink is not None:
            if begins:
                self._learn(received)
            self._end()

    def eof_received(self) -> bool:
        if self._sink is None:
            self._owner.connection_gone(self)  # not to be handed out before connection_lost
        return False  # close; connection_lost says the rest

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._owner.connection_gone(self)
        sink, self._sink = self._sink, None
        if sink is None:
            return
        if self._head_done and self._until_close and exc is None:
            sink.answer_ended()
        else:
            why = f" ({exc})" if isinstance(exc, TlsFailed) else ""
            sink.answer_broken(f"the replica closed the connection{why}")

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._surplus = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_parsed:  # else it is a trailer: relayed as it came
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._head_parsed = True
        # llhttp forgets this with the end of the message.
        self._keep_alive = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        if self._payload is not None:
            self._payload.append(body)

    def on_chunk_header(self) -> None:
        self._between_chunks = False

    def on_chunk_complete(self) -> None:
        self._between_chunks = self._payload is not None

    def on_message_complete(self) -> None:
        self._complete = True

    # inside

    def _take_head(self, data: bytes) -> bytes | None:
        """Collects the head; once whole, hands it over and returns what came after it."""
        self._head += data
        while (end := self._head.find(_HEAD_END)) >= 0:
            head, rest = self._head[: end + 4], self._head[end + 4 :]
            self._parser.feed_data(head)
            self._status = self._parser.get_status_code()
            self._head_bytes += len(head)
            if not self._head_parsed or self._head_bytes > self._max_head_bytes:
                break
            if 100 <= self._status < 200 and self._status != _SWITCHING:
                # Interim answers are ours to swallow (RFC 9110 §15.2).
                self._parser = httptools.HttpResponseParser(self)
                self._headers, self._head_parsed, self._complete = [], False, False
                self._head = rest
                continue
            self._head_done = True
            self._head = b""
            if (wrong := self._hand_over_head()) is not None:
                self._break(f"{_BROKE_HTTP}: {wrong}")
                return None
            return rest
        if (end >= 0 and not self._head_parsed) or _is_no_head(self._head):
            self._break(f"{_BROKE_HTTP}: it sent something else than an answer's head")
        elif self._head_bytes + len(self._head) > self._max_head_bytes:
            self._break("the replica's answer head is too large")
        return None

    def _hand_over_head(self) -> str | None:
        """Gives the head to the sink, or returns what is wrong with it."""
        length: int | None = None
        codings = 0
        not_forwarded = NO_FIELDS
        for name, value in self._headers:
            if name == b"content-length":
                length = int(value)  # llhttp lets pass digits and blanks after them
            elif name == b"transfer-encoding":
                codings += 1
                if value.strip(b" \t").lower() != b"chunked":
                    return "a transfer coding nobody asked for"
            elif name == b"connection":
                not_forwarded |= connection_tokens(value)
        version = self._parser.get_http_version()
        if self._status < 200:
            return f"the status {self._status}"
        if version not in ("1.1", "1.0") or codings > 1 or (codings and version == "1.0"):
            return f"transfer codings in HTTP/{version}" if codings else f"HTTP/{version}"
        chunked = codings == 1
        if self._head_only or self._status in (204, 304):
            self._complete = True
        self._until_close = length is None and not chunked and not self._complete
        self._answer_head = ResponseHead(
            status=self._status,
            headers=self._headers,
            content_length=length,
            chunked=chunked,
            keep_alive=self._keep_alive,
            not_forwarded=not_forwarded,
        )
        assert self._sink is not None
        self._sink.answer_head(self._answer_head)
        return None

    def _learn(self, answer: bytes) -> None:
        """The head of an answer that came whole, in one piece: the next may have the same."""
        head, self._known = self._answer_head, None
        bodiless = self._head_only or self._status in (204, 304)
        if head.content_length is not None and head.keep_alive and not bodiless:
            known = KnownHead.of(answer, head.content_length)
            if known is not None:
                self._known = known, head

    def _take_known(self, data: bytes) -> bool:
        """Whether this was a whole answer with the head of the last one; then it was taken."""
        if self._known is None or self._head_only:
            return False
        known, head = self._known
        place = known.body_in(data)
        if place is None or place[1] != len(data):
            return False
        begin, end = place
        self._keep_alive = self._head_done = self._complete = True
        sink = self._sink
        assert sink is not None
        sink.answer_head(head.with_length(end - begin))
        if begin < end and self._sink is not None:
            sink.answer_bytes(data[begin:])
        if self._sink is not None:
            self._end()
        return True

    def _end(self) -> None:
        sink, self._sink = self._sink, None
        self._served += 1
        assert self._transport is not None
        reusable = (
            self._keep_alive
            and not self._until_close
            # Some servers send a body after HEAD, too: it must not meet the next request.
            and not self._head_only
            # Answered before it had the whole request: it may never read the rest.
            and self._transport.get_write_buffer_size() == 0
        )
        if reusable:
            self.resume_reading()
            self._owner.connection_idle(self)
        else:
            self._close()
        if sink is not None:
            sink.answer_ended()

    def _break(self, reason: str) -> None:
        sink, self._sink = self._sink, None
        self._close()
        if sink is not None:
            sink.answer_broken(reason)

    def _close(self) -> None:
        self._owner.connection_gone(self)  # not to be handed out before connection_lost
        if self._transport is not None:
            self._transport.abort()


def _one_chunk(data: bytes) -> bytes | None:
    """What is in the one chunk that this is, if it is exactly one, its length spelt as usual."""
    at = data.find(b"\r\n", 1, 9)
    length = len(data) - at - 4
    if at > 0 and length > 0 and data.endswith(b"\r\n") and data[:at].lower() == b"%x" % length:
        return data[at + 2 : -2]
    return None


def _is_no_head(beginning: bytes) -> bool:
    """Whether this cannot become a head, so that its end need not be waited for."""
    if not _HEAD_START.startswith(beginning[: len(_HEAD_START)]):
        return True
    return beginning.count(b"\n") != beginning.count(b"\r\n")
