"""A tunnel's connection to a replica: the handshake, then bytes both ways; never used again.

    shaking hands ──101, Upgrade: websocket──▶ open: what comes is handed over as it is
                  ──any other answer─────────▶ refused: a `ReplicaConnection` reads it

Sources: RFC 6455 §4.1 (what a server answers), RFC 9110 §15.2 (interim answers).
"""

import asyncio
import contextlib
from typing import Protocol, cast

import httptools

from router.dataplane.http1 import NO_FIELDS, WEBSOCKET, Header, ResponseHead, connection_tokens
from router.dataplane.replica_connection import AnswerSink, ReplicaConnection

_INTERIM = b"HTTP/1.1 1"
_HEAD_END = b"\r\n\r\n"
_SWITCHING = 101
# So long the last bytes may take to go out after the tunnel's end.
_FLUSH_S = 2.0
_BROKE_HTTP = "the replica broke HTTP/1.1"


class TunnelSink(AnswerSink, Protocol):
    """Who takes an answer that refuses, or `switched`, then bytes, until the replica is lost."""

    def switched(self, head: ResponseHead) -> None: ...
    def replica_bytes(self, data: bytes) -> None: ...

    def replica_ended(self, *, can_go_on: bool) -> bool:
        """It sends no more. Whether it is still sent to, if it can be."""

    def replica_lost(self, *, broken: bool) -> None: ...
    def replica_full(self) -> None:
        """It takes no more for now."""

    def replica_takes_more(self) -> None: ...


class TunnelOwner(Protocol):
    """The pool, which counts connections."""

    def connection_gone(self, connection: "TunnelConnection") -> None: ...


class TunnelConnection(asyncio.Protocol):
    """Closed for good at the first surprise."""

    def __init__(self, owner: TunnelOwner, max_head_bytes: int) -> None:
        self._owner = owner
        self._max_head_bytes = max_head_bytes
        self._transport: asyncio.Transport | None = None
        self._sink: TunnelSink | None = None
        self._head = b""
        self._head_bytes = 0
        self._headers: list[Header] = []
        self._open = False
        self._refusal: ReplicaConnection | None = None
        self._ended = False
        self._reading_paused = False

    def send(self, head: bytes, sink: TunnelSink) -> None:
        """Asks for the tunnel."""
        if self._transport is None:
            sink.answer_broken("the replica closed the connection")
            return
        self._sink = sink
        self._transport.write(head)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def end_writing(self) -> bool:
        """Closes our half once what was written has gone out; False where halves cannot be."""
        if self._transport is None or not self._transport.can_write_eof():
            return False
        self._transport.write_eof()
        return True

    def finish(self) -> None:
        """Closes once what was written has gone out, or has had its time to."""
        self._sink = None
        transport = self._transport
        if transport is None:
            return
        if transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(_FLUSH_S, transport.abort)
        transport.close()

    def abandon(self) -> None:
        """Drops whatever is under way; the replica sees the connection close."""
        self._sink = None
        if self._refusal is not None:
            self._refusal.abandon()
        elif self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        # Once its half is closed there is nothing to read, and resuming would find that end again.
        if self._transport is not None and not self._reading_paused and not self._ended:
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
        if self._sink is None:
            self._close()  # nobody asked
        elif self._open:
            self._sink.replica_bytes(data)
        elif self._refusal is not None:
            self._refusal.data_received(data)
        else:
            self._take_head(data, self._sink)

    def eof_received(self) -> bool:
        if self._refusal is not None:
            return self._refusal.eof_received()
        if self._sink is None or not self._open:
            return False
        assert self._transport is not None
        self._ended = True
        return self._sink.replica_ended(can_go_on=self._transport.can_write_eof())

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._owner.connection_gone(self)
        sink, self._sink = self._sink, None
        if self._refusal is not None:
            self._refusal.connection_lost(exc)
        elif sink is None:
            return
        elif self._open:
            sink.replica_lost(broken=exc is not None)
        else:
            sink.answer_broken("the replica closed the connection")

    def pause_writing(self) -> None:
        if self._sink is not None and self._open:
            self._sink.replica_full()

    def resume_writing(self) -> None:
        if self._sink is not None and self._open:
            self._sink.replica_takes_more()

    # Owner of the connection that reads a refusal

    def connection_idle(self, connection: ReplicaConnection) -> None:
        self._sink = None
        self._close()

    def connection_gone(self, connection: ReplicaConnection) -> None:
        self._owner.connection_gone(self)

    # httptools callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    # inside

    def _take_head(self, data: bytes, sink: TunnelSink) -> None:
        """Interim answers are passed over; then it is a 101, or not for us to read."""
        self._head += data
        while self._head:
            if not _INTERIM.startswith(self._head[: len(_INTERIM)]):
                self._hand_over(sink)
                return
            end = self._head.find(_HEAD_END)
            whole = self._head if end < 0 else self._head[: end + len(_HEAD_END)]
            if whole.count(b"\n") != whole.count(b"\r\n"):
                self._hand_over(sink)  # no head at all: it knows what to say
                return
            if self._head_bytes + len(whole) > self._max_head_bytes:
                self._break("the replica's answer head is too large")
                return
            if end < 0:
                return
            self._head_bytes += len(whole)
            self._head = self._head[len(whole) :]
            try:
                switching = self._read_interim(whole)
            except httptools.HttpParserError as error:
                self._break(f"{_BROKE_HTTP}: {error}")
                return
            if switching:
                self._switch(sink)
                return

    def _read_interim(self, head: bytes) -> bool:
        """Whether it is a 101, the last of them; its fields are in `_headers`."""
        self._headers = []
        parser = httptools.HttpResponseParser(self)
        with contextlib.suppress(httptools.HttpParserUpgrade):
            parser.feed_data(head)
        return bool(parser.get_status_code() == _SWITCHING)

    def _switch(self, sink: TunnelSink) -> None:
        tokens = NO_FIELDS
        for name, value in self._headers:
            if name == b"connection":
                tokens |= connection_tokens(value)
        upgrades = [
            value.strip(b" \t").lower() for name, value in self._headers if name == b"upgrade"
        ]
        if upgrades != [WEBSOCKET] or b"upgrade" not in tokens:
            self._break(f"{_BROKE_HTTP}: it switched to a protocol nobody asked for")
            return
        self._open = True
        rest, self._head = self._head, b""
        sink.switched(
            ResponseHead(
                status=_SWITCHING,
                headers=self._headers,
                content_length=None,
                chunked=False,
                keep_alive=False,
                not_forwarded=tokens,
            )
        )
        if rest and self._sink is not None:
            self._sink.replica_bytes(rest)

    def _hand_over(self, sink: TunnelSink) -> None:
        assert self._transport is not None
        data, self._head = self._head, b""
        self._refusal = ReplicaConnection(self, self._max_head_bytes)
        self._refusal.connection_made(self._transport)
        self._refusal.send(b"", b"", sink, head_only=False)
        self._refusal.data_received(data)

    def _break(self, reason: str) -> None:
        sink, self._sink = self._sink, None
        self._close()
        if sink is not None:
            sink.answer_broken(reason)

    def _close(self) -> None:
        self._owner.connection_gone(self)
        if self._transport is not None:
            self._transport.abort()
