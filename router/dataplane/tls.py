"""TLS as a layer of ours between a TCP transport and a protocol, with the same ends as TCP's.

    ClientConnection, ReplicaConnection     plain bytes
    TlsStream                               their transport, and the protocol of the one below
    TCP transport of the event loop         records

The event loops have TLS of their own. uvloop's (0.23) loses what it holds unread when TCP ends
while reading is paused: a slow client would lose the end of an answer. asyncio's (3.11) takes a
stream that was cut off for a whole one. Neither closes one half, counts what the socket has yet to
take in `get_write_buffer_size`, or lets handshakes be counted and ended.

What is written is encrypted at once, so that all that waits, waits below, where it is counted and
paused as without TLS. What is read is handed up at once, so that nothing is held here either.

Sources: RFC 8446 §6.1 (close_notify, and each side closes its own half).
"""

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

from protocol.errors import BadRequest
from router.dataplane.http1 import own_response

_RECORD_BYTES = 16 * 1024  # a record holds no more (RFC 8446 §5.1)
_FLUSH_BYTES = 256 * 1024  # more in OpenSSL's buffer, and growing it costs more than a write
_SPOKE_HTTP = own_response(
    400,
    BadRequest("this port speaks HTTPS").body(),
    keep_alive=False,
)


class TlsFailed(ConnectionError):
    """The handshake failed, or the stream broke; the message says why."""


@dataclass
class TlsSide:
    """What connections are made with, from now on: reloading certificates puts in a new context.

    Attributes:
        server_name: Whom a connection must reach; None: this is the server's side.
    """

    context: ssl.SSLContext
    server_name: str | None = None


class StreamOwner(Protocol):
    """Who has a stream opened: told of its handshake's begin, and once of its end."""

    def handshake_begun(self, stream: "TlsStream") -> None: ...
    def handshake_over(self, stream: "TlsStream", failure: Exception | None) -> None: ...


async def connect_tls(
    protocol: asyncio.Protocol, host: str, port: int, side: TlsSide, timeout_s: float
) -> None:
    """Connects `protocol` to a server.

    Raises:
        OSError: no TCP connection could be made.
        TlsFailed: no TLS could be spoken there, or it is not who it should be.
    """
    loop = asyncio.get_running_loop()
    handshake = _Handshake(loop)
    stream = TlsStream(protocol, side, handshake, timeout_s)
    try:
        await loop.create_connection(lambda: stream, host, port)
        failure = await handshake.over
    finally:
        if not stream.opened:
            stream.abort()
    if failure is not None:
        raise failure


class TlsStream(asyncio.Transport, asyncio.Protocol):
    """One connection's TLS: a transport for the protocol above, a protocol of the one below."""

    def __init__(
        self,
        protocol: asyncio.BaseProtocol,
        side: TlsSide,
        owner: StreamOwner,
        handshake_timeout_s: float,
    ) -> None:
        super().__init__()
        self._protocol = cast(asyncio.Protocol, protocol)
        self._context = side.context
        self._is_server = side.server_name is None
        self._owner = owner
        self._handshake_timeout_s = handshake_timeout_s
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = side.context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=self._is_server,
            server_hostname=side.server_name,
        )
        self._below: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.opened = False  # the handshake is done, and the protocol above knows of us
        self._owner_told = False
        self._closing = False
        self._aborted = False
        self._we_ended = False  # close_notify is sent
        self._peer_ended = False  # close_notify has come
        self._failure: TlsFailed | None = None

    # To the protocol above: asyncio.Transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._we_ended or self._closing or self._below is None or not data:
            return
        try:
            written = self._tls.write(data)
            if written < len(data):
                rest = memoryview(data)
                while written < len(data):
                    written += self._tls.write(rest[written:])
                    if self._outgoing.pending > _FLUSH_BYTES:
                        self._flush()
        except ssl.SSLError as error:
            self._break(_reason(error))
            return
        self._below.write(self._outgoing.read())

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if self._closing or self._below is None:
            return
        self._say_end()
        if self._below.can_write_eof():
            self._below.write_eof()

    def close(self) -> None:
        if self._closing:
            return
        self._say_end()
        self._closing = True
        if self._below is not None:
            self._below.close()

    def abort(self) -> None:
        self._closing = self._aborted = True
        if self._below is not None:
            self._below.abort()

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        if self._below is not None and not self._closing:
            self._below.pause_reading()

    def resume_reading(self) -> None:
        if self._below is not None and not self._closing:
            self._below.resume_reading()

    def is_reading(self) -> bool:
        return self._below is not None and self._below.is_reading()

    def get_write_buffer_size(self) -> int:
        """Bytes that the socket has not taken, with what TLS adds to them."""
        return self._below.get_write_buffer_size() if self._below is not None else 0

    def get_write_buffer_limits(self) -> tuple[int, int]:
        assert self._below is not None
        return self._below.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self._below is not None:
            self._below.set_write_buffer_limits(high, low)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "sslcontext":
            return self._context
        if name == "ssl_object":
            return self._tls
        return self._below.get_extra_info(name, default) if self._below is not None else default

    # To the transport below: asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = cast(asyncio.Transport, transport)
        if self._aborted:
            self._below.abort()  # whoever wanted it has given up
            return
        self._timer = asyncio.get_running_loop().call_later(
            self._handshake_timeout_s, self._end_long_handshake
        )
        self._owner.handshake_begun(self)
        if not self._is_server:
            self._shake_hands()

    def data_received(self, data: bytes) -> None:
        if self._peer_ended or self._closing:
            return
        self._incoming.write(data)
        if not self.opened:
            self._shake_hands()
        if self.opened and not self._closing:
            self._read()

    def eof_received(self) -> bool:
        """TCP's end. Without close_notify before it, anybody may have cut the stream short."""
        if self._peer_ended:
            return not self._closing
        if self.opened and not self._closing:
            self._failure = TlsFailed("TLS was cut off without its close_notify")
            self._closing = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._below = None
        self._closing = True
        if self.opened:
            self._protocol.connection_lost(self._failure or exc)
        else:
            self._tell_owner(exc or TlsFailed("the connection was closed in the TLS handshake"))

    def pause_writing(self) -> None:
        if self.opened:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        if self.opened:
            self._protocol.resume_writing()

    # inside

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._refuse(error)
            return
        self._flush()
        assert self._timer is not None
        self._timer.cancel()
        self._tell_owner(None)
        self.opened = True
        self._protocol.connection_made(self)

    def _refuse(self, error: ssl.SSLError) -> None:
        """The peer gets to know why: by an alert, or in HTTP if it takes us for that.

        The timer goes on: it ends what the peer does not take.
        """
        assert self._below is not None
        self._flush()
        if error.reason == "HTTP_REQUEST":
            self._below.write(_SPOKE_HTTP)
        self._tell_owner(TlsFailed(_reason(error)))
        self._closing = True
        self._below.close()

    def _end_long_handshake(self) -> None:
        self._tell_owner(
            TlsFailed(f"the TLS handshake was not over within {self._handshake_timeout_s} s")
        )
        self.abort()

    def _tell_owner(self, failure: Exception | None) -> None:
        if not self._owner_told:
            self._owner_told = True
            self._owner.handshake_over(self, failure)

    def _read(self) -> None:
        pieces: list[bytes] = []
        broken: str | None = None
        try:
            while self._incoming.pending or self._tls.pending():
                piece = self._tls.read(_RECORD_BYTES)
                if not piece:
                    self._peer_ended = True
                    break
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass  # the rest of a record is to come
        except ssl.SSLZeroReturnError:
            self._peer_ended = True
        except ssl.SSLError as error:
            broken = _reason(error)
        self._flush()  # what TLS itself has to say
        if pieces:
            self._protocol.data_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._closing:
            return
        if broken is not None:
            self._break(broken)
        elif self._peer_ended and not self._protocol.eof_received():
            self.close()

    def _break(self, reason: str) -> None:
        self._failure = TlsFailed(reason)
        self.abort()

    def _say_end(self) -> None:
        """Sends close_notify: so the peer knows that nothing was cut off."""
        if not self.opened or self._we_ended:
            return
        self._we_ended = True
        # It also looks for the peer's close_notify, which has not come.
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        self._flush()

    def _flush(self) -> None:
        if self._below is not None and self._outgoing.pending:
            self._below.write(self._outgoing.read())


class _Handshake:
    """Waits for the end of one handshake."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.over: asyncio.Future[Exception | None] = loop.create_future()

    def handshake_begun(self, stream: TlsStream) -> None:
        pass

    def handshake_over(self, stream: TlsStream, failure: Exception | None) -> None:
        if not self.over.done():  # else whoever waited was cancelled
            self.over.set_result(failure)


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    return "TLS: " + (error.reason or str(error)).lower().replace("_", " ")
