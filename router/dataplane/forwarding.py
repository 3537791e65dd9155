"""What a replica is told of where a request came from: X-Forwarded-* and traceparent.

Sources: RFC 7239 §5.2 and common practice (X-Forwarded-For); W3C Trace Context, level 1, §3.2
(traceparent), §3.3 (tracestate goes with it).
"""

import re
from random import Random

from router.dataplane.request_fields import RequestFields

# version "-" trace-id "-" parent-id "-" flags; versions after 00 may add more.
_TRACE_PARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[^\r\n]*)?"
)
_TRACE_PARENT_BYTES = 55
_TRACE_STATE = frozenset({b"tracestate"})


class Forwarding:
    """The fields that one client connection adds to its requests."""

    __slots__ = ("_client", "_host", "_host_field", "_plain", "_proto", "_random")

    def __init__(self, client: str, proto: bytes, random: Random) -> None:
        """
        Args:
            client: The address the client connects from.
            proto: What it speaks: b"http" or b"https".
        """
        self._client = client.encode() or b"unknown"
        self._proto = b"x-forwarded-proto: " + proto + b"\r\n"
        self._plain = b"x-forwarded-for: " + self._client + b"\r\n" + self._proto
        self._random = random
        self._host: bytes | None = None
        self._host_field = b""

    def fields(self, fields: RequestFields) -> bytes:
        """Header lines for a request with these fields.

        A traceparent that cannot be read starts a new trace; the tracestate beside it is not
        forwarded.
        """
        if fields.forwarded_for is None and not fields.forwarded_proto:
            head = self._plain
        else:
            addresses = b", ".join((*(fields.forwarded_for or ()), self._client))
            head = b"x-forwarded-for: " + addresses + b"\r\n"
            if not fields.forwarded_proto:
                head += self._proto
        if fields.host and not fields.forwarded_host:
            if fields.host != self._host:
                self._host = fields.host
                self._host_field = b"x-forwarded-host: " + fields.host + b"\r\n"
            head += self._host_field
        parents = fields.trace_parents
        if parents is not None and len(parents) == 1 and valid_trace_parent(parents[0]):
            return head + b"traceparent: " + parents[0] + b"\r\n"
        if fields.has_trace_state:
            fields.not_forwarded |= _TRACE_STATE
        return head + self._new_trace_parent()

    def _new_trace_parent(self) -> bytes:
        """Not sampled: whether to record is for those behind us to decide."""
        bits = self._random.getrandbits
        return b"traceparent: 00-%032x-%016x-00\r\n" % (bits(128) or 1, bits(64) or 1)


def valid_trace_parent(value: bytes) -> bool:
    if _TRACE_PARENT.fullmatch(value) is None:
        return False
    return not value.startswith(b"00-") or len(value) == _TRACE_PARENT_BYTES
