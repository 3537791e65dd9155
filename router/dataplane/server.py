"""Listens for clients, watches their timeouts, and drains: finishes what runs, no more."""

import asyncio
import logging

from router.dataplane.client_connection import ClientConnection, Handler
from router.dataplane.tls import TlsSide, TlsStream

log = logging.getLogger(__name__)

_SWEEP_INTERVAL_S = 0.5
_BACKLOG = 4096


class Server:
    """The client side of the data plane. The handler keeps its back-references in here."""

    def __init__(self, handler: Handler, max_connections: int) -> None:
        self._handler = handler
        self._max_connections = max_connections
        self._connections: set[ClientConnection] = set()
        self._handshakes: set[TlsStream] = set()
        self._tls: TlsSide | None = None
        self._server: asyncio.Server | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    async def listen(
        self, host: str, port: int, *, shared: bool = False, tls: TlsSide | None = None
    ) -> int:
        """Starts to accept, or, where the port is shared, when told to `start`; returns the port.

        Args:
            shared: The kernel spreads new connections over all processes that accept there.
            tls: None: plain TCP.

        Raises:
            OSError: the address cannot be had.
        """
        self._tls = tls
        self._server = await asyncio.get_running_loop().create_server(
            self._accept,
            host,
            port,
            backlog=_BACKLOG,
            reuse_port=shared or None,
            start_serving=not shared,
        )
        port_found: int = self._server.sockets[0].getsockname()[1]
        return port_found

    async def start(self) -> None:
        """Accepts, if it does not yet."""
        assert self._server is not None
        await self._server.start_serving()

    async def watch_timeouts(self) -> None:
        """Runs until cancelled: ends what has waited too long. One pass over all connections."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_INTERVAL_S)
            now = loop.time()
            for connection in list(self._connections):
                connection.check_timeouts(now)

    async def drain(self, timeout_s: float) -> bool:
        """Stops accepting, lets running answers finish; cuts off what is left after `timeout_s`.

        Returns:
            Whether everything finished by itself.
        """
        if self._server is not None:
            self._server.close()
        for stream in list(self._handshakes):
            stream.abort()  # nothing was asked for yet
        for connection in list(self._connections):
            connection.close_if_idle()
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            for connection in list(self._connections):
                connection.abort()
            return False
        return True

    @property
    def connections(self) -> int:
        return len(self._connections)

    @property
    def handshakes(self) -> int:
        """TLS connections that are not made yet; they count among those there may be."""
        return len(self._handshakes)

    # Told by the handler

    def opened(self, connection: ClientConnection) -> None:
        self._connections.add(connection)
        self._empty.clear()
        if self._too_many:
            connection.abort()

    def closed(self, connection: ClientConnection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    # Told by streams that begin with a TLS handshake

    def handshake_begun(self, stream: TlsStream) -> None:
        self._handshakes.add(stream)
        if self._too_many:
            stream.abort()

    def handshake_over(self, stream: TlsStream, failure: Exception | None) -> None:
        self._handshakes.discard(stream)
        if failure is not None:
            peer = stream.get_extra_info("peername")
            log.debug("no TLS with %s: %s", peer[0] if peer else "a client", failure)

    # inside

    def _accept(self) -> asyncio.Protocol:
        connection = ClientConnection(self._handler, asyncio.get_running_loop())
        if self._tls is None:
            return connection
        return TlsStream(connection, self._tls, self, self._handler.timeouts.request_head_s)

    @property
    def _too_many(self) -> bool:
        return len(self._connections) + len(self._handshakes) > self._max_connections
