"""The fields of a request head that the router itself reads, found in one pass and checked.

Sources: RFC 9112 §3.2 (target and Host), §6 (framing); RFC 9110 §7.6.1 (Connection), §10.1.1
(Expect); RFC 6455 §4.1 (what asks for a WebSocket).
"""

import re
from collections.abc import Sequence

from protocol.errors import BadRequest, MethodNotAllowed
from router.dataplane.http1 import WEBSOCKET, Header, connection_tokens

# What else llhttp knows is WebDAV's, UPnP's or RTSP's, or (CONNECT, TRACE) not for a gateway.
_METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")
_ALLOW = ", ".join(method.decode() for method in _METHODS)
_VERSIONS = ("1.1", "1.0")
# uri-host [":" port] of RFC 3986 §3.2.2; empty for a target without an authority.
_HOST = re.compile(
    rb"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*(?::[0-9]{0,5})?"
    rb"|\[[0-9A-Fa-f:.]+\](?::[0-9]{0,5})?"
)
_ABSOLUTE = re.compile(rb"https?://([^/?]*)(.*)", re.IGNORECASE)
_MAX_REQUEST_ID_BYTES = 128

_READ = frozenset(
    {
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"traceparent",
        b"tracestate",
        b"transfer-encoding",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-request-id",
    }
)


class RequestFields:
    """What a request head says to the router. Fields that `connection` names count as absent."""

    __slots__ = (
        "content_length",
        "expects_continue",
        "forwarded_for",
        "forwarded_host",
        "forwarded_proto",
        "has_trace_state",
        "host",
        "not_forwarded",
        "request_id",
        "trace_parents",
    )

    def __init__(self) -> None:
        self.content_length: int | None = None
        self.expects_continue = False
        self.forwarded_for: list[bytes] | None = None
        self.forwarded_host = False
        self.forwarded_proto = False
        self.has_trace_state = False
        self.host: bytes | None = None
        self.not_forwarded: frozenset[bytes] = frozenset()
        self.request_id: bytes | None = None
        self.trace_parents: list[bytes] | None = None


def read_request_fields(headers: Sequence[Header], version: str) -> RequestFields:
    """The fields, each in its only meaning.

    Raises:
        BadRequest: framing or Host that two readers could read differently.
    """
    fields = RequestFields()
    if version not in _VERSIONS:
        raise BadRequest(f"HTTP/{version} is not spoken here, but HTTP/1.1")
    lengths = codings = hosts = 0
    for name, value in headers:
        if name not in _READ:
            continue
        if name == b"host":
            hosts += 1
            fields.host = value.rstrip(b" \t")
        elif name == b"content-length":
            lengths += 1
            # Not int(): it takes signs, spaces and underscores.
            if not value.isdigit():
                raise BadRequest("content-length must be a plain number")
            fields.content_length = int(value)
        elif name == b"transfer-encoding":
            codings += 1
            # One spelling only. Others may be right, but it is by those that requests are smuggled.
            if value.lower() != b"chunked":
                raise BadRequest("transfer-encoding can only be: chunked")
        elif name == b"connection":
            fields.not_forwarded |= connection_tokens(value)
        elif name == b"expect":
            fields.expects_continue = value.lower() == b"100-continue"
        elif name == b"x-request-id":
            if fields.request_id is None and 0 < len(value) <= _MAX_REQUEST_ID_BYTES:
                fields.request_id = value
        elif name == b"x-forwarded-for":
            fields.forwarded_for = [*(fields.forwarded_for or ()), value]
        elif name == b"x-forwarded-host":
            fields.forwarded_host = True
        elif name == b"x-forwarded-proto":
            fields.forwarded_proto = True
        elif name == b"traceparent":
            fields.trace_parents = [*(fields.trace_parents or ()), value]
        else:
            fields.has_trace_state = True
    if lengths + codings > 1:
        raise BadRequest("a request has one content-length or one transfer-encoding")
    if codings and version == "1.0":
        raise BadRequest("HTTP/1.0 has no transfer-encoding")
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise BadRequest("a request has exactly one Host header")
    if fields.host is not None and _HOST.fullmatch(fields.host) is None:
        raise BadRequest("the Host header must be a host, and may have a port")
    if fields.not_forwarded:
        _forget_hop_by_hop(fields)
    return fields


def _forget_hop_by_hop(fields: RequestFields) -> None:
    named = fields.not_forwarded
    if b"x-forwarded-for" in named:
        fields.forwarded_for = None
    if b"x-forwarded-host" in named:
        fields.forwarded_host = False
    if b"x-forwarded-proto" in named:
        fields.forwarded_proto = False
    if b"traceparent" in named:
        fields.trace_parents = None
    if b"x-request-id" in named:
        fields.request_id = None


def check_method(method: bytes) -> None:
    """Raises MethodNotAllowed: not a method that is passed on."""
    if method not in _METHODS:
        raise MethodNotAllowed(f"the method must be one of {_ALLOW}", allow=_ALLOW)


def asks_for_websocket(method: bytes, version: str, headers: Sequence[Header]) -> bool:
    """Whether a request that asks for an upgrade asks for this one only, and has no body.

    Its key and version are for the replica to judge.
    """
    offers = [value.strip(b" \t").lower() for name, value in headers if name == b"upgrade"]
    return (
        method == b"GET"
        and version == "1.1"
        and offers == [WEBSOCKET]
        and not any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in headers
        )
    )


def origin_form(method: bytes, target: bytes, fields: RequestFields) -> bytes:
    """A target as servers get it: a path and its query (RFC 9112 §3.2.1).

    Absolute targets are what clients send to proxies; the host in them counts, not the Host field
    (§3.2.2).

    Raises:
        BadRequest: not a target for us.
    """
    if b"#" in target:
        raise BadRequest("the request target must not have a fragment")
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise BadRequest("the request target must be a path")
    fields.host, path = absolute.groups()
    if not fields.host or _HOST.fullmatch(fields.host) is None:
        raise BadRequest("the request target's host is not one")
    if not path and method == b"OPTIONS":
        return b"*"  # RFC 9112 §3.2.4
    return path if path.startswith(b"/") else b"/" + path
