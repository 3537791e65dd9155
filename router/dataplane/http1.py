"""HTTP/1.1 heads as bytes: what a request or answer head says, and how ours are written.

Sources: RFC 9110 §7.6.1 (hop-by-hop fields), RFC 9112 §6 (framing), RFC 8297 (1xx).
"""

from collections.abc import Iterable, Sequence
from http import HTTPStatus

Header = tuple[bytes, bytes]

# Fields that speak of one connection only, never forwarded (RFC 9110 §7.6.1). Framing
# (content-length, transfer-encoding) is forwarded by hand, since bodies are relayed as they are.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"upgrade",
    }
)
# Trailers of a request are dropped with its chunks; those of an answer are relayed.
_NOT_FORWARDED_UPSTREAM = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"trailer",
    b"expect",
    b"x-request-id",
    b"x-forwarded-for",  # these two are among Request.forwarded
    b"traceparent",
}
_NOT_FORWARDED_DOWNSTREAM = HOP_BY_HOP | {b"x-request-id", b"transfer-encoding", b"content-length"}

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
WEBSOCKET = b"websocket"
# Hop by hop, so each hop says it anew (RFC 9110 §7.8).
_UPGRADE = b"connection: Upgrade\r\nupgrade: " + WEBSOCKET + b"\r\n\r\n"


NO_FIELDS: frozenset[bytes] = frozenset()


class Request:
    """A client's request, whole: head and body as they came, names in lower case.

    headers: Of its content-length there may be another's value here.
    lines: Those of its fields that replicas get, as header lines.
    forwarded: More of these, about where the request came from.
    upgrades: It asks for a WebSocket; nothing behind it is HTTP, or is read as such.
    """

    __slots__ = ("body", "forwarded", "headers", "keep_alive", "lines", "method", "request_id",
                 "started_at", "target", "upgrades", "version")  # fmt: skip

    def __init__(
        self,
        *,
        method: bytes,
        target: bytes,
        version: str,
        headers: Sequence[Header],
        body: bytes,
        keep_alive: bool,
        request_id: bytes,
        started_at: float,
        lines: bytes = b"",
        forwarded: bytes = b"",
        upgrades: bool = False,
    ) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers
        self.body = body
        self.keep_alive = keep_alive
        self.request_id = request_id
        self.started_at = started_at
        self.lines = lines
        self.forwarded = forwarded
        self.upgrades = upgrades

    @property
    def path(self) -> bytes:
        """The target without its query."""
        return self.target.partition(b"?")[0]

    def header(self, name: bytes) -> bytes | None:
        """The first value of a field, by its lower-case name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class ResponseHead:
    """A replica's answer head, names in lower case.

    `content_length` is None and `chunked` False for a body that ends with the connection.
    `lines`: Those of its fields that clients get, as header lines.
    """

    __slots__ = (
        "chunked", "content_length", "headers", "is_event_stream", "keep_alive", "lines", "status",
    )  # fmt: skip

    def __init__(
        self,
        *,
        status: int,
        headers: Sequence[Header],
        content_length: int | None,
        chunked: bool,
        keep_alive: bool,
        not_forwarded: frozenset[bytes] = NO_FIELDS,
    ) -> None:
        """
        Args:
            not_forwarded: Names of fields that its Connection header keeps to that connection.
        """
        self.status = status
        self.headers = headers
        self.content_length = content_length
        self.chunked = chunked
        self.keep_alive = keep_alive
        self.lines = _lines(headers, _NOT_FORWARDED_DOWNSTREAM, not_forwarded)
        self.is_event_stream = any(
            name == b"content-type" and value.lower().startswith(b"text/event-stream")
            for name, value in headers
        )

    def with_length(self, content_length: int) -> "ResponseHead":
        """The same but for the length of the body."""
        other = ResponseHead.__new__(ResponseHead)
        other.status, other.headers, other.lines = self.status, self.headers, self.lines
        other.content_length, other.chunked = content_length, self.chunked
        other.keep_alive, other.is_event_stream = self.keep_alive, self.is_event_stream
        return other

    def has(self, name: bytes, value: bytes) -> bool:
        """Whether there is such a field, its name in lower case."""
        return (name, value) in self.headers


class OwnAnswer:
    """An answer the router gives itself."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(
        self,
        status: int,
        body: bytes,
        headers: tuple[Header, ...] = (),
        content_type: bytes = b"application/json",
    ) -> None:
        self.status = status
        self.body = body
        self.headers = headers
        self.content_type = content_type


def connection_tokens(value: bytes) -> frozenset[bytes]:
    """The fields that a Connection header names: hop-by-hop for this message too."""
    if value.lower() in (b"keep-alive", b"close"):
        return NO_FIELDS
    return frozenset(token.strip(b" \t").lower() for token in value.split(b","))


def lines_for_replica(headers: Iterable[Header], not_forwarded: frozenset[bytes]) -> bytes:
    """A request's end-to-end fields as header lines.

    Args:
        not_forwarded: Names of fields that stop here, beside those that always do.
    """
    return _lines(headers, _NOT_FORWARDED_UPSTREAM, not_forwarded)


def _lines(headers: Iterable[Header], stopped: frozenset[bytes], named: frozenset[bytes]) -> bytes:
    parts: list[bytes] = []
    for name, value in headers:
        if name not in stopped and name not in named:
            parts += (name, b": ", value, b"\r\n")
    return b"".join(parts)


def request_head(request: Request, host: bytes, body_bytes: int, asks: bytes = b"") -> bytes:
    """The head to send to a replica: same method, target and end-to-end fields, our framing.

    Args:
        asks: Header lines of our own.
    """
    length = b""
    if body_bytes or request.method in (b"POST", b"PUT", b"PATCH"):
        length = b"content-length: %d\r\n" % body_bytes
    head = b"%b %b HTTP/1.1\r\nhost: %b\r\n%b%b%b%bx-request-id: %b\r\n\r\n" % (
        request.method, request.target, host, request.lines, length, asks, request.forwarded,
        request.request_id,
    )  # fmt: skip
    return head[:-2] + _UPGRADE if request.upgrades else head


def response_head(
    head: ResponseHead, *, added: Iterable[Header], chunked: bool, keep_alive: bool
) -> bytes:
    """The head to send to a client: the replica's end-to-end fields and what we add.

    Args:
        added: Our own fields; they replace the replica's x-request-id.
        chunked: Whether the body that follows is framed in chunks.
        keep_alive: Whether the connection stays open after it.
    """
    parts = [status_line(head.status), head.lines]
    if head.status == 204:
        pass  # has neither (RFC 9110 §8.6, RFC 9112 §6.1)
    elif chunked:
        parts.append(b"transfer-encoding: chunked\r\n")
    elif head.content_length is not None:
        parts += (b"content-length: ", str(head.content_length).encode(), b"\r\n")
    for name, value in added:
        parts += (name, b": ", value, b"\r\n")
    parts.append(b"connection: keep-alive\r\n\r\n" if keep_alive else b"connection: close\r\n\r\n")
    return b"".join(parts)


def switching_head(head: ResponseHead, added: Iterable[Header]) -> bytes:
    """The head of a 101 for a client: the replica's end-to-end fields and what we add.

    It has no body, whatever its fields say (RFC 9112 §6.3).
    """
    parts = [status_line(head.status), head.lines]
    for name, value in added:
        parts += (name, b": ", value, b"\r\n")
    return b"".join(parts) + _UPGRADE


def own_response(
    status: int,
    body: bytes,
    *,
    headers: Iterable[Header] = (),
    keep_alive: bool,
    head_only: bool = False,
    content_type: bytes = b"application/json",
) -> bytes:
    """A whole answer of the router's own. `head_only` is for HEAD: the length, not the body."""
    parts = [
        status_line(status),
        b"content-type: ",
        content_type,
        b"\r\ncontent-length: ",
        str(len(body)).encode(),
        b"\r\n",
    ]
    for name, value in headers:
        parts += (name, b": ", value, b"\r\n")
    parts.append(b"connection: keep-alive\r\n\r\n" if keep_alive else b"connection: close\r\n\r\n")
    if not head_only:
        parts.append(body)
    return b"".join(parts)


def status_line(status: int) -> bytes:
    return _STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n".encode()


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
