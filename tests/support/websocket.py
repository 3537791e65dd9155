"""WebSocket handshakes in bytes, and replicas that take, refuse or spoil them."""

from tests.support.data_plane import Call, DataPlane, Peer, Script

SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
FIELDS = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def upgrade(path: bytes = b"/v1/realtime", fields: bytes = FIELDS) -> bytes:
    """A handshake's bytes."""
    return b"GET " + path + b" HTTP/1.1\r\nHost: router\r\n" + fields + b"\r\n"


async def echo(call: Call) -> None:
    """Sends back what comes, until no more does."""
    await call.send(SWITCHED)
    while data := await call.reader.read(65536):
        await call.send(data)


def says(data: bytes) -> Script:
    """Answers that, and waits for the router to leave."""

    async def script(call: Call) -> None:
        await call.send(data)
        await call.reader.read()

    return script


async def opened(plane: DataPlane, receive_buffer_bytes: int | None = None) -> Peer:
    """A client with an open tunnel."""
    client = await plane.connect(receive_buffer_bytes)
    await client.send(upgrade())
    head = await client.head()
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n"), head
    return client
