"""How far the router has read: lets a test send bytes in pieces that stay pieces."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager

from router.dataplane.client_connection import ClientConnection
from router.dataplane.replica_connection import ReplicaConnection
from tests.support.data_plane import TIMEOUT_S


class Reads:
    """Counts the bytes that connections of one kind were given."""

    def __init__(self) -> None:
        self.bytes = 0
        self._changed = asyncio.Event()

    def note(self, data: bytes) -> None:
        self.bytes += len(data)
        self._changed.set()

    async def until(self, total: int) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while self.bytes < total:
                self._changed.clear()
                await self._changed.wait()

    async def send(self, send: Callable[[bytes], Awaitable[None]], pieces: Iterable[bytes]) -> None:
        """Each piece once the router has read the one before it."""
        for piece in pieces:
            target = self.bytes + len(piece)
            await send(piece)
            await self.until(target)


@contextmanager
def reads_of(kind: type[ClientConnection] | type[ReplicaConnection]) -> Iterator[Reads]:
    """Counted from here on, over all connections of that kind."""
    reads = Reads()
    plain = kind.data_received

    def counted(self: ClientConnection | ReplicaConnection, data: bytes) -> None:
        reads.note(data)
        plain(self, data)  # type: ignore[arg-type]

    kind.data_received = counted  # type: ignore[method-assign]
    try:
        yield reads
    finally:
        kind.data_received = plain  # type: ignore[method-assign]


def splits(data: bytes) -> Iterator[list[bytes]]:
    """In two pieces, at every position; then in single bytes."""
    for position in range(1, len(data)):
        yield [data[:position], data[position:]]
    yield [data[index : index + 1] for index in range(len(data))]
