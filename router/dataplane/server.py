"""Listens for clients, watches their timeouts, and drains: finishes what runs, no more."""

import asyncio

from router.dataplane.client_connection import ClientConnection, Handler

_SWEEP_INTERVAL_S = 0.5
_BACKLOG = 4096


class Server:
    """The client side of the data plane. The handler keeps its back-references in here."""

    def __init__(self, handler: Handler, max_connections: int) -> None:
        self._handler = handler
        self._max_connections = max_connections
        self._connections: set[ClientConnection] = set()
        self._server: asyncio.Server | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    async def listen(self, host: str, port: int, *, shared: bool = False) -> int:
        """Starts to accept; returns the port.

        Args:
            shared: The kernel spreads new connections over all processes that listen so.

        Raises:
            OSError: the address cannot be had.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: ClientConnection(self._handler, loop),
            host,
            port,
            backlog=_BACKLOG,
            reuse_port=shared or None,
        )
        port_found: int = self._server.sockets[0].getsockname()[1]
        return port_found

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

    # Told by the handler

    def opened(self, connection: ClientConnection) -> None:
        self._connections.add(connection)
        self._empty.clear()
        if len(self._connections) > self._max_connections:
            connection.abort()

    def closed(self, connection: ClientConnection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()
