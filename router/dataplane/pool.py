"""The connections to one replica: idle ones are reused newest first, new ones opened when none is.

Newest first keeps the working set small, so that the oldest idle out at the replica's side.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from router.dataplane.replica_connection import ReplicaConnection
from router.dataplane.tls import TlsSide, connect_tls
from router.dataplane.tunnel_connection import TunnelConnection

Connection = ReplicaConnection | TunnelConnection
_Made = TypeVar("_Made", ReplicaConnection, TunnelConnection)


class PoolFull(Exception):
    """The replica has as many connections as it may have."""


class ConnectFailed(Exception):
    """No connection could be made; the message says why."""


class ConnectTooSlow(ConnectFailed):
    """No connection could be made in time."""


class ReplicaPool:
    """Connections to one replica. Owned by the event loop that created it."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        max_connections: int,
        connect_timeout_s: float,
        max_head_bytes: int,
        tls: TlsSide | None = None,
    ) -> None:
        """
        Args:
            tls: None: plain TCP.
        """
        self._host = host
        self._port = port
        self._max_connections = max_connections
        self._connect_timeout_s = connect_timeout_s
        self._max_head_bytes = max_head_bytes
        self._tls = tls
        self._idle: list[ReplicaConnection] = []
        self._open: set[Connection] = set()
        self._connecting = 0
        self.host_header = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode()

    def take_idle(self) -> ReplicaConnection | None:
        """An open connection, at once, or None: then `connect`."""
        return self._idle.pop() if self._idle else None

    async def connect(self) -> ReplicaConnection:
        """A new connection, to be used again. Raises as `open` does."""
        return await self.open(ReplicaConnection)

    async def open(self, make: Callable[["ReplicaPool", int], _Made]) -> _Made:
        """A new connection, made of this pool and its bound on heads; idle ones stay idle, but for
        the oldest where there would be one too many.

        Raises:
            PoolFull: the replica's connections are all in use.
            ConnectFailed: refused, unreachable, or not to be trusted.
            ConnectTooSlow: not within `connect_timeout_s`, a TLS handshake included.
        """
        if self._full and self._idle:
            oldest = self._idle[0]
            self.connection_gone(oldest)
            oldest.abandon()
        if self._full:
            raise PoolFull(f"{self._max_connections} connections are open")
        self._connecting += 1
        connection = make(self, self._max_head_bytes)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._reach(connection)
        except asyncio.CancelledError:
            connection.abandon()  # it may just have been made
            raise
        except TimeoutError as error:
            connection.abandon()
            raise ConnectTooSlow(f"no connection within {self._connect_timeout_s} s") from error
        except OSError as error:
            raise ConnectFailed(error.strerror or str(error)) from error
        finally:
            self._connecting -= 1
        self._open.add(connection)
        return connection

    async def _reach(self, connection: asyncio.Protocol) -> None:
        host, port = self._host, self._port
        if self._tls is not None:
            await connect_tls(connection, host, port, self._tls, self._connect_timeout_s)
        else:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: connection, host, port)

    def close(self) -> None:
        """Closes every connection; answers under way break."""
        for connection in list(self._open):
            connection.abandon()

    @property
    def open_connections(self) -> int:
        return len(self._open)

    @property
    def idle_connections(self) -> int:
        return len(self._idle)

    def check(self) -> None:
        assert set(self._idle) <= self._open
        assert len(set(self._idle)) == len(self._idle)
        assert self._connecting >= 0
        assert len(self._open) <= self._max_connections

    @property
    def _full(self) -> bool:
        return len(self._open) + self._connecting >= self._max_connections

    # The connections' owner

    def connection_idle(self, connection: ReplicaConnection) -> None:
        self._idle.append(connection)

    def connection_gone(self, connection: Connection) -> None:
        self._open.discard(connection)
        if isinstance(connection, ReplicaConnection) and connection in self._idle:
            self._idle.remove(connection)
